"""Which files of a checkpoint are its weights: safetensors, or pickles where they are allowed and all there is.

A pickle is a program, and loading it runs it; torch's weights_only narrows that down. So pickled weights are neither
fetched nor read unless the job says `allow_pickle`, and never beside safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from hfbatch.errors import AccessRefused, StorageError

SAFE = ("*.safetensors",)
PICKLED = ("pytorch_model*.bin",)  # the names that transformers reads


def weights_among(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that transformers would load: those at the top, without what is kept for other programs."""
    patterns = tuple(patterns)
    at_the_top = (name for name in names if "/" not in name and not name.startswith("consolidated"))
    return sorted(name for name in at_the_top if any(fnmatch(name, pattern) for pattern in patterns))


def refuse_pickles(model_id: str, commit: str, names: Iterable[str], allowed: bool) -> None:
    """AccessRefused where pickled weights are all there is among `names`, and the job does not allow them."""
    names = list(names)
    pickles = weights_among(names, PICKLED)
    if pickles and not allowed and not weights_among(names, SAFE):
        raise AccessRefused(
            f"{model_id} has no safetensors weights at {commit[:19]}, only pickled ones ({pickles[0]}), which can run "
            "code and are refused; convert them once with AutoModel.from_pretrained(...).save_pretrained(folder) and "
            "write that folder, or write allow_pickle: true under model to load them with torch's weights_only"
        )


def unreadable(model_id: str, folder: Path, error: Exception) -> AccessRefused | StorageError | None:
    """What to raise when weights in `folder` could not be loaded; None where the fault is not in the files."""
    if damaged := _damaged(folder):
        cure = "fetch it again: delete it and the file it links to" if damaged.is_symlink() else "write the file again"
        return StorageError(f"{damaged}, weights of {model_id}, is damaged or cut short; {cure}, then run again")
    if any(type(cause).__name__ == "UnpicklingError" for cause in (error, error.__cause__, error.__context__)):
        return AccessRefused(
            f"{model_id}: the pickled weights in {folder} are damaged, or hold more than numbers, which weights_only "
            "refuses; take a checkpoint that has safetensors"
        )
    return None


def _damaged(folder: Path) -> Path | None:
    """The first safetensors file that is cut short or no safetensors at all; only headers are read."""
    for name in weights_among((path.name for path in folder.iterdir()), SAFE):
        path = folder / name
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, size))
        try:
            ends = [entry["data_offsets"][1] for key, entry in json.loads(header).items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return path
        if size != 8 + length + max(ends, default=0):
            return path
    return None
