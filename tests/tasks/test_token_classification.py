import pytest
from transformers import pipeline

from hfbatch.errors import SpecError
from hfbatch.tasks.entities import Entity, without_overlaps
from tests import models
from tests.inline import plan_of, run_inline
from tests.models import sentences
from tests.tasks.contract import Case, assert_close, check
from tests.zoo import text as zoo

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
TEXTS = [
    *sentences(10, longest=30),
    *(
        "",
        "x",
        "naïve café 電影 ☃ 😀 unknown",
        "שלום the film مرحبا",
        "  great,  isn't it?\n\nParis.",
        "good [SEP] bad",
    ),
    *("good " * 61, "good " * 62, "good " * 63, "bad film " * 200),
]
pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")  # said by the reference


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that marks where words go on, and one that does not."""
    root = tmp_path_factory.mktemp("taggers")
    return {
        "bert": models.bert(root / "bert", "BertForTokenClassification", **NAMED),
        "deberta_v2": zoo.deberta_v2(root / "deberta_v2", "DebertaV2ForTokenClassification", **NAMED),
    }


def reference(folder, texts, **params):
    tagger = pipeline("token-classification", model=str(folder), device="cpu", **params)
    found = [[dict(entity) for entity in tagger(text)] for text in texts]
    return [[{**entity, "score": float(entity["score"])} for entity in row] for row in found]


def entities_of(folder, tmp_path, texts, **params):
    return run_inline(plan_of(Case("ner", folder, {"text": texts}, params).job(tmp_path)))["entities"].to_pylist()


@pytest.mark.parametrize(("kind", "params"), [("bert", {}), ("deberta_v2", {"aggregation_strategy": "simple"})])
def test_entities_equal_transformers_pipeline(folders, tmp_path, kind, params):
    output = check(Case("token-classification", folders[kind], {"text": TEXTS}, params), tmp_path)
    made, expected = output["entities"].to_pylist(), reference(folders[kind], TEXTS, **params)
    assert_close(made, expected)
    assert made[10] == [], "the empty text"
    assert len({entity["word"] for row in made for entity in row}) > 20
    assert output["truncated"].to_pylist() == [False] * (len(TEXTS) - 2) + [True] * 2


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("kind", ["bert", "deberta_v2"])
def test_tokens_are_joined_as_transformers_joins_them(folders, tmp_path, kind, strategy):
    params = {"aggregation_strategy": strategy, "ignore_labels": ["LOC"]}
    made = entities_of(folders[kind], tmp_path, TEXTS, **params)
    assert_close(made, reference(folders[kind], TEXTS, **params))
    found = {entity["entity_group"] for row in made for entity in row}
    assert found >= {"O", "PER"}
    assert "LOC" not in found


@pytest.mark.parametrize(("kind", "stride"), [("bert", 0), ("bert", 20), ("deberta_v2", 20)])
def test_a_long_text_is_read_in_windows(folders, tmp_path, kind, stride):
    params = {"aggregation_strategy": "simple", "stride": stride}
    texts = ["good film", " ".join(sentences(30, seed=3)), "bad film " * 100]
    output = check(Case("ner", folders[kind], {"text": texts}, params), tmp_path)
    assert_close(output["entities"].to_pylist(), reference(folders[kind], texts, **params))
    assert output["truncated"].to_pylist() == [False] * 3
    assert output["entities"][1][-1]["end"].as_py() > len(texts[1]) - 20


def test_of_entities_that_overlap_the_longest_stays_then_the_surest():
    found = [Entity("A", 0.5, 0, "w", *place) for place in [(0, 4), (6, 9), (2, 8), (8, 9), (20, 22)]]
    rival = Entity("B", 0.9, 0, "w", 20, 22)
    assert without_overlaps([*found, rival]) == [found[2], found[3], rival]
    assert without_overlaps([]) == []


def test_a_text_over_the_limit_is_an_error_where_nothing_may_be_cut(folders, tmp_path):
    texts = ["good " * 200, "good", "good " * 100_000]
    job = Case("ner", folders["bert"], {"text": texts}, {"truncation": False}).job(tmp_path)
    errors = run_inline(plan_of(job))["error"].to_pylist()
    assert errors == ["too_long: 202 tokens, the limit is 64", None, "too_long: over 822 tokens, the limit is 64"]


def test_a_tokenizer_without_offsets_gives_entities_without_places(tmp_path):
    import transformers

    folder, letters = tmp_path / "esm", [*"ACDEFGHIKLMNPQRSTVWY"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *letters]))
    transformers.EsmTokenizer(folder / "vocab.txt", model_max_length=30).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    shape |= {"vocab_size": 25, "max_position_embeddings": 32, "pad_token_id": 1, "mask_token_id": 4}
    zoo.save(folder, "EsmForTokenClassification", transformers.EsmConfig(**shape, **NAMED))
    texts = ["MKTAYIAKQR", "GGGX", "", "MKV" * 20]
    made = entities_of(folder, tmp_path, texts, ignore_labels=[])
    assert_close(made, reference(folder, texts, ignore_labels=[]))
    assert {(entity["start"], entity["end"]) for row in made for entity in row} == {(None, None)}
    with pytest.raises(SpecError, match=r"needs a fast tokenizer .*write simple or none"):
        entities_of(folder, tmp_path, texts, aggregation_strategy="first")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stride": 8}, "aggregation_strategy other than none; write simple"),
        ({"stride": 62, "aggregation_strategy": "simple"}, "stride is 62, and a window holds 62 tokens of text"),
        ({"ignore_labels": ["PER"]}, "no entity is called 'PER'; write some of O, B-PER, I-PER"),
        ({"ignore_labels": ["B-PER"], "aggregation_strategy": "max"}, "no entity is called 'B-PER'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(folders, tmp_path, params, message):
    with pytest.raises(SpecError, match=message):
        plan_of(Case("ner", folders["bert"], {"text": ["good"]}, params).job(tmp_path))


def test_a_model_without_the_head_is_refused(masked, tmp_path):
    with pytest.raises(SpecError, match="BertForMaskedLM, and this takes a BertForTokenClassification"):
        plan_of(Case("ner", masked, {"text": ["good"]}).job(tmp_path))
