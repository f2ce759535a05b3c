"""A model behind torch.compile that sees a handful of shapes (shapes.py), each compiled when it first comes.

One graph for the whole model, or none: what cannot be compiled runs as it is, and the report says why. On a GPU the
graphs are CUDA graphs, which cost one launch instead of one an operator; their outputs lie where the next run of them
writes, so they are copied. All else that an engine asks of a model (a row alone, a second look in float32) has other
shapes, and is asked of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from hfbatch.devices import is_out_of_memory
from hfbatch.layout import PaddedBatch
from hfbatch.packer import CLOSE, CLOSE_HALF
from hfbatch.results import to_numpy
from hfbatch.sequences import Column, Ragged
from hfbatch.shapes import Shapes, widths_up_to
from hfbatch.tasks.base import Task
from hfbatch.tasks.text import model_max_length

if TYPE_CHECKING:
    from hfbatch.spec import Machine

PATIENCE_S = 1200.0  # for one shape; it takes from seconds to a few minutes
LIMIT = 256  # shapes that torch may know of one model's code; by itself it gives up after 8
TEXT = frozenset(("input_ids", "token_type_ids"))


def compiled_for(
    model: Any, task: Task, machine: Machine, device: torch.device, tokens: int
) -> tuple[Any, Compiled | None]:
    """What `model` becomes, and what stands before it where batches are text that goes through it in one call.

    `tokens`: of a batch at most.
    """
    if not machine.compile:
        return model, None
    if not task.single or task.generates or task.adapted or task.inputs[0] != "input_ids" or {*task.inputs} - TEXT:
        return torch.compile(model, dynamic=True), None
    return model, Compiled(model, task, device, tokens, machine.max_batch_rows)


def mode_of(device: torch.device) -> str:
    """Of torch.compile."""
    return "reduce-overhead" if device.type == "cuda" else "default"


class Compiled:
    """Gives a batch its shape, and a model that is ready for it."""

    def __init__(self, model: Any, task: Task, device: torch.device, tokens: int, max_rows: int) -> None:
        """`tokens`, `max_rows`: of a batch at most."""
        positions = model_max_length(None, task.config)
        limit = min(filter(None, (positions, getattr(task, "limit", None), tokens)))
        widths = widths_up_to(limit)
        self._shapes = Shapes((*widths[:-1], min(widths[-1], positions or widths[-1])), tokens, max_rows)
        self.reason: str | None = None  # why nothing is compiled
        self._plain, self._task, self._ready = model, task, set[tuple[int, int]]()
        self._close = CLOSE if model.dtype == torch.float32 else CLOSE_HALF
        model.config.use_cache = False  # it would be one more output, for a next token that never comes
        self._mode, self._copied = mode_of(device), device.type == "cuda"
        # torch keeps CUDA graphs by thread, and an actor is called from more than one.
        self._thread = ThreadPoolExecutor(1, "compiled") if self._copied else None

    @cached_property
    def _graph(self) -> Any:
        return torch.compile(self._plain, fullgraph=True, dynamic=False, mode=self._mode)

    @property
    def shapes(self) -> Shapes | None:
        """What batches are cut to; None: nothing is compiled."""
        return self._shapes if self.reason is None else None

    @property
    def layout(self) -> str:
        """For the report."""
        if self.reason is not None:
            return f"padded (compile: {self.reason})"
        return f"padded to {len(self._shapes.widths)} widths, compiled" + (" to CUDA graphs" if self._copied else "")

    def ready(self, batch: PaddedBatch, budget: int, renew: Callable[..., None]) -> tuple[PaddedBatch, Any]:
        """`batch` in its shape, and what stands for the model then; as they are where it has none.

        `renew`: see watchdog.Watchdog; called with PATIENCE_S where the shape has to be compiled first.
        """
        shapes = self.shapes
        shape = None if shapes is None else shapes.of(batch.real.shape[1], len(batch.sequences), budget)
        if shape is None:
            return batch, self._plain
        shaped, model = batch.widened(shape[1]), partial(self._run, shape[0])
        if shape not in self._ready:
            renew(PATIENCE_S)
            self._warm(batch, shaped, model)
            renew()
            self._ready.add(shape)
        return (shaped, model) if self.reason is None else (batch, self._plain)

    def _warm(self, batch: PaddedBatch, shaped: PaddedBatch, model: Callable[..., Any]) -> None:
        """Compile, and hold what comes out against the model's own results.

        Raises what the model itself raises over `batch`: that says nothing about the compiler.
        """
        forward = self._task.forward
        with torch.inference_mode():  # its tensors are of another kind, and another kind is compiled anew
            try:
                for _ in range(3 if self._copied else 1):  # CUDA graphs are compiled, then recorded, then replayed
                    found = to_numpy(forward(model, shaped))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                forward(self._plain, batch)
                cause = getattr(error, "inner_exception", error)  # what a backend raised
                self.reason = f"{type(cause).__name__}: {cause}".partition("\n")[0][:200]
            else:
                expected = to_numpy(forward(self._plain, shaped))
                if others := [name for name in expected if not _near(expected[name], found[name], self._close)]:
                    self.reason = f"compiled, its {others[0]} are others"

    def _run(self, rows: int, **inputs: torch.Tensor) -> Any:
        """The model's output for `inputs`, computed with `rows` rows."""
        if self._thread is None:
            return self._filled(rows, inputs)
        return self._thread.submit(self._filled, rows, inputs).result()

    def _filled(self, rows: int, inputs: dict[str, torch.Tensor]) -> Any:
        own = len(inputs["input_ids"])
        from torch._dynamo import config  # seconds, which only what compiles spends

        patched: Any = config.patch(recompile_limit=LIMIT)
        with torch.inference_mode(), patched:
            if self._copied:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            made = self._graph(**{name: _with_rows(value, rows) for name, value in inputs.items()})
            return tree_map_only(torch.Tensor, lambda value: value[:own].clone() if self._copied else value[:own], made)


def _with_rows(value: torch.Tensor, rows: int) -> torch.Tensor:
    """(own rows, ...) -> (rows, ...), with the last one again: a row of padding alone could be not finite."""
    more = rows - len(value)
    return torch.cat([value, value[-1:].expand(more, *value.shape[1:])]) if more else value


def _near(one: Column, other: Column, close: float) -> bool:
    """Of floats alone: where two labels are equally likely, either may come first."""
    if isinstance(one, Ragged) and isinstance(other, Ragged):
        one, other = one.values, other.values
    if isinstance(one, Ragged) or isinstance(other, Ragged) or one.shape != other.shape:
        return False
    if not np.issubdtype(one.dtype, np.floating):
        return True
    finite = np.isfinite(one) & np.isfinite(other)
    one, other = one[finite], other[finite]
    return bool((np.abs(one - other) <= close * max(1.0, np.abs(one).max(initial=0))).all())
