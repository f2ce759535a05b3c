"""What the run that finished an output had bound, so that a rerun with nothing to do loads no tokenizer and no torch.

It answers only the very same question (spec, commit, columns, versions), and only `nothing to do`: what is to run is
always bound anew. Written into the run's started.json, which carries a checksum of itself.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from hfbatch.errors import HfbatchError
from hfbatch.hub import PinnedModel
from hfbatch.job import Job, Step, canonical
from hfbatch.ledger import Ledger
from hfbatch.report import versions
from hfbatch.spec import JobSpec
from hfbatch.store import open_store

_STEP = ("name", "task", "params", "dtype", "attn_implementation", "reads", "prefix", "where", "sources")
_JOB = ("name", "keep", "where", "output", "partition_by")
_STEP_SCHEMAS, _JOB_SCHEMAS = ("given", "writes"), ("input_schema", "output_schema")


def question(spec: JobSpec, models: Sequence[PinnedModel], schema: pa.Schema) -> str:
    """A hash of all that `bind` takes and of the code that does it."""
    asked = {
        "spec": spec.model_dump(mode="json", exclude={"vars"}),
        "models": [vars(model) for model in models],
        "schema": _written(schema),
        "versions": versions(),
    }
    return hashlib.sha256(canonical(asked).encode()).hexdigest()


def note(asked: str, job: Job) -> dict[str, Any]:
    """What to write down of `job`; nothing where code of a model's own, or other models, have a say."""
    if not asked or job.guards is not None or any(step.trust_remote_code or step.companions for step in job.steps):
        return {}
    steps = [_fields(step, (*_STEP, "media_prefixes"), _STEP_SCHEMAS) for step in job.steps]
    fields = _fields(job, _JOB, _JOB_SCHEMAS) | {"steps": steps}
    return {"question": asked, "job": fields, "row_bytes": job.max_bytes_per_row()}


def _fields(of: Job | Step, plain: Iterable[str], schemas: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in plain} | {name: _written(getattr(of, name)) for name in schemas}


def recall(asked: str, spec: JobSpec, models: Sequence[PinnedModel]) -> tuple[Job, int] | None:
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
    return _job(noted["job"], spec, models), int(noted["row_bytes"])


def _job(fields: Mapping[str, Any], spec: JobSpec, models: Sequence[PinnedModel]) -> Job:
    steps = []
    for number, (step, model) in enumerate(zip(fields["steps"], models, strict=True)):
        schemas = {name: _read(step[name]) for name in _STEP_SCHEMAS}
        plain = {name: step[name] for name in _STEP} | {"media_prefixes": tuple(step["media_prefixes"])}
        place = spec.origin.problem(spec.loc(number, "model", "id"), "").place
        steps.append(Step(model=model, trust_remote_code=False, model_place=place, **plain, **schemas))
    schemas = {name: _read(fields[name]) for name in _JOB_SCHEMAS}
    plain = {name: fields[name] for name in ("name", "where", "output")}
    tuples = {name: tuple(fields[name]) for name in ("keep", "partition_by")}
    whole: dict[str, Any] = {**plain, **tuples, **schemas}
    return Job(steps=tuple(steps), errors=spec.errors, **whole)


def _written(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _read(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))
