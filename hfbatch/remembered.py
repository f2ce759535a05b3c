"""What the run that finished an output had bound, so that a rerun with nothing to do loads no tokenizer and no torch.

It answers only the very same question (spec, commit, columns, versions), and only `nothing to do`: what is to run is
always bound anew. Written into the run's started.json, which carries a checksum of itself.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from hfbatch.errors import HfbatchError
from hfbatch.hub import PinnedModel
from hfbatch.job import Job, canonical
from hfbatch.ledger import Ledger
from hfbatch.report import versions
from hfbatch.spec import JobSpec
from hfbatch.store import open_store

_PLAIN = ("name", "task", "params", "dtype", "attn_implementation", "reads", "prefix", "where", "output")
_TUPLES, _SCHEMAS = ("keep", "media_prefixes", "partition_by"), ("given", "input_schema", "output_schema")


def question(spec: JobSpec, model: PinnedModel, schema: pa.Schema) -> str:
    """A hash of all that `bind` takes and of the code that does it."""
    asked = {
        "spec": spec.model_dump(mode="json", exclude={"vars"}),
        "model": vars(model),
        "schema": _written(schema),
        "versions": versions(),
    }
    return hashlib.sha256(canonical(asked).encode()).hexdigest()


def note(asked: str, job: Job) -> dict[str, Any]:
    """What to write down of `job`; nothing where code of the model's own, or other models, have a say."""
    if not asked or job.trust_remote_code or job.companions:
        return {}
    fields: dict[str, Any] = {name: getattr(job, name) for name in (*_PLAIN, *_TUPLES)}
    fields |= {name: _written(getattr(job, name)) for name in _SCHEMAS}
    return {"question": asked, "job": fields, "row_bytes": job.make_task().max_bytes_per_row()}


def recall(asked: str, spec: JobSpec, model: PinnedModel) -> tuple[Job, int] | None:
    """The job that the finished run had, and the most bytes of a row of its output; None where that is not known."""
    try:
        ledger = Ledger(open_store(spec.output.path))
        run_id = (ledger.success() or {}).get("run_id")
        started = ledger.run_file(str(run_id), "started.json") if run_id else None
    except HfbatchError:
        return None  # told by who needs it
    noted = (started or {}).get("bound") or {}
    if noted.get("question") != asked:
        return None
    return _job(noted["job"], spec, model), int(noted["row_bytes"])


def _job(fields: Mapping[str, Any], spec: JobSpec, model: PinnedModel) -> Job:
    plain = {name: fields[name] for name in _PLAIN} | {name: tuple(fields[name]) for name in _TUPLES}
    schemas = {name: _read(fields[name]) for name in _SCHEMAS}
    job = Job(model=model, trust_remote_code=False, errors=spec.errors, **plain, **schemas)
    return replace(job, model_place=spec.origin.problem(("model", "id"), "").place)


def _written(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _read(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))
