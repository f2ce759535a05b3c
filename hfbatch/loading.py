"""A job's checkpoint to a model on a device, ready for inference; or why its weights do not serve the task."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfbatch.errors import SpecError
from hfbatch.precision import widen_heads
from hfbatch.tasks.base import Task
from hfbatch.trust import without_code
from hfbatch.weights import unreadable

if TYPE_CHECKING:
    from hfbatch.job import Step

_HEADS = re.compile("For(.*Classification|QuestionAnswering|ObjectDetection)$")  # whose output goes into no layer again


def load_model(step: Step, task: Task, device: torch.device) -> Any:
    """The checkpoint on `device`, ready for inference. SpecError when it has no weights for this task's head."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = step.fetch_model()
    options: dict[str, Any] = {
        "dtype": getattr(torch, step.dtype),
        "attn_implementation": step.attn_implementation,
        "trust_remote_code": step.trust_remote_code,
        "code_revision": step.model.code_revision,
        "use_safetensors": None if step.model.allow_pickle else True,  # None: where there are none, pickles
        "weights_only": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        with without_code(step.model.id, step.trust_remote_code):
            model, loading = getattr(transformers, task.auto_class(task.config)).from_pretrained(folder, **options)
    except Exception as error:
        if failure := unreadable(step.model.id, Path(folder), error):
            raise failure from error
        raise
    missing = sorted(key for key in loading["missing_keys"] if not _is_unused(key, task))
    if missing:
        raise SpecError([step.problem_with_head(missing)])
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = task.pad_value("input_ids")
    if step.dtype != "float32" and _HEADS.search(type(model).__name__):
        widen_heads(model)
    return model.eval().to(device)


def _is_unused(key: str, task: Task) -> bool:
    return any(key.startswith(prefix) or f".{prefix}" in key for prefix in task.unused_weights)
