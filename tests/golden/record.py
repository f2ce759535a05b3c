"""What transformers 4.57 gives for the tasks whose pipelines transformers 5 dropped: writes *.json beside this file.

Run once, and again only for new cases: transformers 5 cannot. From the repository's root, beside an installed torch,
pillow and sentencepiece:

    pip install --no-deps --target /tmp/t457 transformers==4.57.1 'huggingface_hub<1' 'tokenizers<0.23'
    PYTHONPATH=/tmp/t457:. python tests/golden/record.py

A file holds {transformers, records}; a record {kind, head, config, task, params, inputs, expected}: one expected value
an input, or {"error": its first line} where 4.57 raised. `kind` and `config` make the checkpoint (tests/zoo/), images
are PNG in base64, scores are rounded to 7 digits. checkpoints.json holds the digest of each kind's weights.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from tests.models import sentences
from tests.zoo import digest, pictures, text, vqa

HERE = Path(__file__).parent
LONG = " ".join(sentences(8, seed=5))
QUESTION = "where is the river?"
CONTEXTS = {
    "short": "paris is a city and the river is great",
    "one word": "london",
    "one character": "x",
    "space": " ",
    "empty": "",
    "emoji": "the 😀 happy actor 👩‍👩‍👧 was in london 🌧️ at night",
    "right to left": "הנהר בפריס הוא great and the city is שמח מאוד",
    "new lines": "one two\nthree\t four\r\n\r\nfive   six seven",
    "several windows": LONG,
    "twice the same": "the city of paris and the city of paris and The City of Paris",
    "accents": "Éléonore was in PARIS, naïve and façade; ﬁve rivers",
}
QUESTIONS = [
    *({"question": QUESTION, "context": context} for context in CONTEXTS.values()),
    {"question": "who was happy and sad?", "context": LONG},
    {"question": "", "context": "the city of paris"},
    {"question": " ".join(sentences(4, seed=8)), "context": "the city of paris and the river of london " * 3},
]
ANSWERING = [
    {},
    {"top_k": 3},
    {"doc_stride": 8},
    {"max_answer_len": 2, "top_k": 2},
    {"max_seq_len": 36, "doc_stride": 4},
    {"max_question_len": 4},
    {"handle_impossible_answer": True},
    {"handle_impossible_answer": True, "top_k": 4},
    {"align_to_words": False, "top_k": 2},
]
TEXTS = [*sentences(5, seed=3, longest=12), "x", "the 😀 river שלום", "", " ".join(sentences(3, seed=6))]
SEARCHES = [
    {"max_new_tokens": 8},
    {"max_new_tokens": 8, "num_beams": 1},
    {"max_new_tokens": 10, "num_beams": 3, "num_return_sequences": 2},
    {"max_new_tokens": 6, "num_beams": 2, "length_penalty": 0.5, "repetition_penalty": 1.3},
    {"max_length": 12, "min_length": 5, "num_beams": 1},
]
LANGUAGES = {"src_lang": "en_XX", "tgt_lang": "de_DE"}
IMAGES = [
    {"seed": 1, "size": (48, 32)},
    {"seed": 2, "size": (33, 57)},
    {"seed": 3, "mode": "L"},
    {"seed": 4, "mode": "RGBA"},
]


def heads() -> dict[str, Any]:
    """Every kind of checkpoint, with the function that makes it."""
    return {
        n: f for m in (text, vqa) for n, f in vars(m).items() if inspect.isfunction(f) and f.__module__ == m.__name__
    }


def cases() -> list[tuple[str, str, str, dict, list[dict], list[dict]]]:
    """(task, kind, head, config, parameter sets, inputs)."""
    articles, limits = [{"text": t} for t in TEXTS], [{}, *SEARCHES]
    t5, bart = ("t5", "T5ForConditionalGeneration"), ("bart", "BartForConditionalGeneration")
    asking = [
        {"image": base64.b64encode(pictures.png(**image)).decode(), "question": question}
        for image in IMAGES
        for question in ("is the dog red?", "what?")
    ]
    return [
        *(
            ("question-answering", kind, head, {"max_length": 48}, ANSWERING, QUESTIONS)
            for kind, head in (
                ("bert", "BertForQuestionAnswering"),
                ("roberta", "RobertaForQuestionAnswering"),
                ("deberta_v2", "DebertaV2ForQuestionAnswering"),
            )
        ),
        ("summarization", *t5, {}, limits, articles),
        ("summarization", *bart, {}, limits, articles),
        ("translation_en_to_de", *t5, {}, limits, articles),
        ("translation", *bart, {}, limits[:2], articles),
        ("translation", "marian", "MarianMTModel", {}, limits, articles),
        (
            "translation",
            "mbart",
            "MBartForConditionalGeneration",
            {},
            [{**p, **LANGUAGES} for p in limits[:3]],
            articles,
        ),
        ("text2text-generation", *t5, {}, SEARCHES, articles),
        ("text2text-generation", *t5, {}, [{}], articles[:2]),  # 256 tokens by four beams
        ("text2text-generation", *bart, {}, limits, articles),
        (
            "visual-question-answering",
            "vilt",
            "ViltForQuestionAnswering",
            {},
            [{}, {"top_k": 1}, {"top_k": 99}],
            asking,
        ),
        ("visual-question-answering", "blip", "BlipForQuestionAnswering", {}, [{}], asking),
    ]


def rounded(value: Any) -> Any:
    """Numbers to 7 digits after the point, in whatever they lie."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 7) if isinstance(value, float) else value


def answer(run: Any, row: dict, params: dict) -> Any:
    """The pipeline's value for one input."""
    try:
        if "context" in row:
            return run(**row, **params)
        if "image" in row:
            image = Image.open(io.BytesIO(base64.b64decode(row["image"])))
            return run(image=image, question=row["question"], **params)
        return run(row["text"], **params)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizer's panic (a stride of a window or more) is no Exception
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def weights(folder: Path) -> str:
    """The digest of a checkpoint as its own class loads it."""
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return digest(getattr(transformers, name).from_pretrained(folder))


def write(name: str, content: dict) -> None:
    """One JSON file beside this one."""
    (HERE / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False) + "\n")


def main() -> None:
    """Builds the checkpoints, runs the pipelines, writes the files."""
    assert transformers.__version__.startswith("4.57."), transformers.__version__
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        digests = {kind: weights(make(Path(scratch) / kind)) for kind, make in heads().items()}
        write("checkpoints", digests)
        for number, (task, kind, head, config, sets, rows) in enumerate(cases()):
            folder = heads()[kind](Path(scratch) / str(number), head, **config)
            run = transformers.pipeline(task, model=str(folder), device="cpu")
            name = task.split("_")[0]
            for params in sets:
                expected = [rounded(answer(run, row, dict(params))) for row in rows]
                record = {"kind": kind, "head": head, "config": config, "task": task, "params": params}
                found.setdefault(name, []).append({**record, "inputs": rows, "expected": expected})
            write(name, {"transformers": transformers.__version__, "records": found[name]})


if __name__ == "__main__":
    main()
