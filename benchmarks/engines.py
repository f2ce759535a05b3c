"""Whole runs, from a Parquet file to Parquet files: hfbatch, Ray Data's documented recipe, Daft's embed_text.

Seconds of the steady state are from the first batch's beginning to the last one's end, taken where the model is; the
wall time is from the call to its return, starting and ending included.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.machine import peak_bytes
from benchmarks.setting import Ran, Runner, Setting


def hfbatch(setting: Setting) -> Runner:
    """`hfbatch.run`, as a job file and a machine file would have it."""
    import hfbatch

    value = VALUES[setting.task]

    def run(rows: list[int]) -> Ran:
        data, out = _subset(setting, rows), _empty(Path(setting.scratch) / "hfbatch")
        job = {
            "task": setting.task,
            "model": {"id": setting.model, "dtype": setting.dtype},
            "input": {"path": str(data), "keep": ["id"]},
            "params": setting.params,
            "output": {"path": str(out)},
        }
        machine = {"actors": 1, "threads_per_actor": setting.threads, "shard_rows": setting.shard_rows}
        if setting.device == "cpu":
            machine["gpus_per_actor"] = 0
        started = time.perf_counter()
        report = hfbatch.run(job, on=machine)
        wall = time.perf_counter() - started
        table = ds.dataset(out / "data").to_table()
        if table["error"].null_count < len(table):
            raise ValueError(f"{report.rows_failed} rows failed: {report.errors}")
        notes = {
            "forward_share": report.forward_share,
            "padding_share": report.padding_share,
            "start_s": report.seconds.start,
            "shards": report.shards,
        }
        seconds, memory = report.rows_new / report.rows_per_s, report.peak_memory_bytes
        return Ran(
            table["id"].to_pylist(),
            value(table),
            seconds,
            wall,
            report.tokens,
            report.padded_tokens,
            0.0,
            memory,
            notes,
        )

    return run


def ray_data(setting: Setting, batch: int) -> Runner:
    """The recipe of Ray's guide: a class that holds a SentenceTransformer, given to map_batches of `batch` rows."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # of Ray's 15, any other process would make a slower peer
    import ray

    class Embed:
        def __init__(self) -> None:
            import torch
            from sentence_transformers import SentenceTransformer

            options = {"dtype": getattr(torch, setting.dtype)}
            self.model = SentenceTransformer(setting.model, device=setting.device, model_kwargs=options)

        def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            import torch

            torch.set_num_threads(setting.threads)  # counted per thread, and Ray calls from another one each time
            started = time.time()
            embedding = self.model.encode(rows["text"].tolist(), batch_size=32)
            told = {"started": started, "ended": time.time(), "peak": peak_bytes()}
            return {"id": rows["id"], "embedding": embedding} | {k: np.full(len(embedding), v) for k, v in told.items()}

    def run(rows: list[int]) -> Ran:
        data, out = _subset(setting, rows), _empty(Path(setting.scratch) / "ray")
        started = time.perf_counter()
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        pool = ray.data.ActorPoolStrategy(size=1)
        gpus = {"num_gpus": 1} if setting.device != "cpu" else {}
        made = ray.data.read_parquet(str(data)).map_batches(Embed, batch_size=batch, compute=pool, **gpus)
        made.write_parquet(str(out))
        ray.shutdown()
        wall = time.perf_counter() - started
        table = ds.dataset(out).to_table()
        told = {name: table[name].to_numpy() for name in ("started", "ended", "peak")}
        seconds = float(told["ended"].max() - told["started"].min())
        return Ran(table["id"].to_pylist(), _vectors(table), seconds, wall, peak_bytes=int(told["peak"].max()))

    return run


def daft_embed(setting: Setting) -> Runner:
    """`embed_text` of its transformers provider, which calls sentence-transformers. It has no say in precision."""
    import daft
    from daft.ai.transformers.protocols.text_embedder import TransformersTextEmbedder
    from daft.functions import embed_text

    if setting.dtype != "float32":
        raise ValueError("embed_text runs the transformers provider in float32 only")
    import torch

    torch.set_num_threads(setting.threads)
    spans: list[tuple[float, float]] = []
    plain = TransformersTextEmbedder.embed_text

    def timed(self: Any, text: list[str]) -> Any:
        torch.set_num_threads(setting.threads)
        started = time.perf_counter()
        made = plain(self, text)
        spans.append((started, time.perf_counter()))
        return made

    TransformersTextEmbedder.embed_text = timed

    def run(rows: list[int]) -> Ran:
        data, out = _subset(setting, rows), _empty(Path(setting.scratch) / "daft")
        spans.clear()
        started = time.perf_counter()
        vector = embed_text(daft.col("text"), provider="transformers", model=setting.model)
        daft.read_parquet(str(data)).with_column("embedding", vector).select("id", "embedding").write_parquet(str(out))
        wall = time.perf_counter() - started
        table = ds.dataset(out).to_table()
        seconds = max(end for _, end in spans) - min(start for start, _ in spans) if spans else wall
        notes = {} if spans else {"steady": "not seen: the whole wall time"}
        return Ran(table["id"].to_pylist(), _vectors(table), seconds, wall, notes=notes)

    return run


def _subset(setting: Setting, rows: list[int]) -> Path:
    """The data, or a Parquet file of these rows of it."""
    table = pq.read_table(setting.data)
    if len(rows) == len(table):
        return Path(setting.data)
    path = Path(setting.scratch) / "subset.parquet"
    pq.write_table(table.take(rows), path, row_group_size=1024)
    return path


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _vectors(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy()).astype(np.float32)


def _columns(*names: str) -> Callable[[pa.Table], list[tuple[Any, float]]]:
    """Values that are a column, and their score where there is a second one."""

    def values(table: pa.Table) -> list[tuple[Any, float]]:
        columns = [table[name].to_pylist() for name in names]
        return list(zip(*columns, strict=True)) if len(names) > 1 else [(value, 0.0) for value in columns[0]]

    return values


def _entities(table: pa.Table) -> list[tuple[Any, float]]:
    rows = table["entities"].to_pylist()
    keys = (tuple((one["entity_group"], one["start"], one["end"]) for one in row) for row in rows)
    scores = (float(np.mean([one["score"] for one in row])) if row else 0.0 for row in rows)
    return list(zip(keys, scores, strict=True))


def _zero_shot(table: pa.Table) -> list[tuple[Any, float]]:
    labels, scores = table["labels"].to_pylist(), table["scores"].to_pylist()
    return [(tuple(names), own[0]) for names, own in zip(labels, scores, strict=True)]


VALUES: dict[str, Callable[[pa.Table], Any]] = {
    "feature-extraction": _vectors,
    "text-classification": _columns("label", "score"),
    "image-classification": _columns("label", "score"),
    "token-classification": _entities,
    "zero-shot-classification": _zero_shot,
    "question-answering": _columns("answer", "score"),
    "text-generation": _columns("generated_text"),
    "decision": _columns("answer", "score"),
}
