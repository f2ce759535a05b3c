"""What is measured: for each benchmark its task, model and rows, the routes to its values, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.setting import Route

OURS = "hfbatch"
SORTS = 1000  # rows of a turn at least, for routes that sort: of fewer they would pad more than of a whole corpus


@dataclass(frozen=True)
class Gate:
    """The rate of `ours` over that of the best route whose name begins with `route` must reach `least`."""

    route: str
    least: float
    what: str
    ours: str = OURS


@dataclass(frozen=True)
class Bench:
    """One comparison. `reference` is the route whose values are right."""

    task: str
    params: dict[str, Any]
    model: str
    corpus: str
    rows: int  # 60 s and more of hfbatch on two cores
    routes: tuple[Route, ...]
    gates: tuple[Gate, ...]
    reference: str = "pipeline 1"
    limits: tuple[Gate, ...] = field(default=())  # of the share of the GEMM limit


def _pipelines(*batches: int) -> tuple[Route, ...]:
    return tuple(Route(f"pipeline {n}", "pipelines.make", {"batch": n}, least=max(32, 4 * n)) for n in batches)


def _sentence_transformers(*batches: int) -> tuple[Route, ...]:
    maker = "encoders.sentence_transformers"
    return tuple(Route(f"sentence-transformers {n}", maker, {"batch": n}, least=SORTS) for n in batches)


HFBATCH = Route(OURS, "engines.hfbatch", whole=True)
BFLOAT16 = replace(HFBATCH, name=f"{OURS}, bfloat16", dtype="bfloat16")
SLOWEST, PLAIN = "pipeline, batches of 32", "pipeline, one at a time"
LIKE_A_PIPELINE = (Gate("pipeline 32", 4.0, SLOWEST), Gate("pipeline 1", 1.5, PLAIN))

EMBEDDING = Bench(
    task="feature-extraction",
    params={"pooling": "mean", "normalize": True},
    model="minilm",
    corpus="licences",
    rows=6000,
    routes=(
        *_pipelines(1, 8, 32),
        *_sentence_transformers(32, 8, 16, 64),
        *(Route(f"bare, padded {n}", "encoders.padded", {"budget": n}, least=SORTS) for n in (1024, 2048)),
        *(Route(f"bare, packed {n}", "encoders.packed", {"budget": n}, least=SORTS) for n in (1024, 2048)),
        Route("bare, packed 2048, prepacked", "encoders.packed", {"budget": 2048, "prepacked": True}, least=SORTS),
        Route("gemm", "encoders.gemm"),
        HFBATCH,
        BFLOAT16,
        Route("Ray Data 1024", "engines.ray_data", {"batch": 1024}, whole=True, share=0.5),
        Route("Ray Data 32", "engines.ray_data", {"batch": 32}, whole=True, share=0.2),
        Route("Daft", "engines.daft_embed", whole=True, share=0.5),
    ),
    gates=(
        Gate("pipeline 32", 5.0, SLOWEST),
        Gate("pipeline 1", 1.9, PLAIN),
        Gate("sentence-transformers 32", 1.7, "sentence-transformers as it comes"),
        Gate("sentence-transformers", 1.4, "sentence-transformers, its best batch size"),
        Gate("Ray Data", 1.7, "Ray Data's recipe with sentence-transformers"),
        Gate("bare", 0.95, "the fastest bare loop"),
        Gate(OURS, 1.6, "itself in float32, when in bfloat16", ours=BFLOAT16.name),
    ),
    limits=(Gate("gemm", 0.75, "the GEMM limit"),),
)


def _text_bench(task: str, params: dict[str, Any], model: str, corpus: str, rows: int) -> Bench:
    routes = (*_pipelines(1, 8, 32), HFBATCH)
    return Bench(task, params, model, corpus, rows, routes, LIKE_A_PIPELINE)


def _decisions(model: str, gates: tuple[Gate, ...]) -> Bench:
    """What a post is about. `model` says by its decision template whether the question is before the post."""
    options = [
        {"food": "what people eat and drink, diets, vitamins, recipes and how food is made or sold"},
        {"exercise": "sport, fitness, walking, weight that is lost or gained by moving"},
        {"illness": "diseases, outbreaks, symptoms, patients and what it is like to be ill"},
        {"treatment": "drugs, vaccines, operations, therapies and the studies that test them"},
        {"politics": "laws, insurance, money, hospitals and the people who run the health system"},
    ]
    params = {"question": "What is the post mainly about?", "options": options}
    return Bench("decision", params, model, "tweets", 500, (*_pipelines(1), HFBATCH), gates)


BENCHES: dict[str, Bench] = {
    "embedding": EMBEDDING,
    "classification": _text_bench("text-classification", {"top_k": 1}, "minilm-classifier", "licences", 6000),
    "token-classification": _text_bench(
        "token-classification", {"aggregation_strategy": "simple"}, "minilm-ner", "licences", 6000
    ),
    "zero-shot": _text_bench(
        "zero-shot-classification",
        {"candidate_labels": ["nutrition", "exercise", "sleep", "medicine", "politics"]},
        "minilm-nli",
        "licences",
        1500,
    ),
    "question-answering": _text_bench("question-answering", {"doc_stride": 128}, "minilm-qa", "questions", 3000),
    "generation": Bench(
        task="text-generation",
        params={"do_sample": False, "max_new_tokens": 64},
        model="decoder-50m",
        corpus="prompts",
        rows=200,
        routes=(
            Route("one by one", "decoders.static_batches", {"batch": 1}, least=16),
            Route("pipeline 8", "pipelines.make", {"batch": 8}, least=64),
            *(Route(f"static, sorted {n}", "decoders.static_batches", {"batch": n}, least=200) for n in (8, 16, 32)),
            HFBATCH,
        ),
        gates=(Gate("pipeline 8", 3.0, "pipeline, batches of 8"), Gate("static", 1.2, "static batches by length")),
        reference="one by one",
    ),
    "decision": _decisions("smollm2-labels", (Gate("pipeline 1", 5.0, PLAIN),)),
    "decision-text-first": _decisions("smollm2", ()),
    "image-classification": Bench(
        task="image-classification",
        params={"top_k": 1},
        model="vit-small",
        corpus="pictures",
        rows=1000,
        routes=(*_pipelines(1, 8, 32), HFBATCH),
        gates=(),
    ),
}


def on_gpu(bench: Bench) -> Bench:
    """The same with batches that fill a GPU, and without what only a CPU has."""
    changed = []
    for route in bench.routes:
        if route.options.get("prepacked") or route.dtype is not None:
            continue
        if "budget" in route.options:
            budget = 16 * route.options["budget"]
            route = replace(route, name=f"{route.name.rpartition(' ')[0]} {budget}", options={"budget": budget})
        changed.append(route)
    more = _sentence_transformers(128, 256) if bench is EMBEDDING else ()
    return replace(bench, routes=(*changed, *more))
