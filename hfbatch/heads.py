"""Does a checkpoint have the head that a task needs? Told from its config, before any weights are read.

transformers would load a base model into any head and fill it with random numbers. What this lets through, because
a class has another name but the right weights, `model.load_model` checks again by the weights themselves.
"""

from __future__ import annotations

from typing import Any


def check(auto_class: str, config: Any) -> None:
    """ValueError where the checkpoint was saved from a class that has no weights for `auto_class`'s head."""
    saved = list(getattr(config, "architectures", None) or ())
    if auto_class == "AutoModel" or auto_class in (getattr(config, "auto_map", None) or {}):
        return
    if any(name.endswith(auto_class.removeprefix("AutoModel")) for name in saved):
        return  # most of them; the table below costs the import of torch
    wanted = _heads(auto_class).get(config.model_type, ())
    if not wanted:
        raise ValueError(f"transformers has no {auto_class} for models of type {config.model_type!r}")
    if saved and not set(saved) & set(wanted) and set(saved) <= _known(config.model_type):
        raise ValueError(f"it is a {saved[0]}, and this takes a {' or '.join(wanted)}: it has no weights for the head")


def _heads(auto_class: str) -> dict[str, tuple[str, ...]]:
    """Model type -> names of the classes that `auto_class` makes of it."""
    import transformers

    names = getattr(transformers, auto_class)._model_mapping._model_mapping
    return {kind: (name,) if isinstance(name, str) else tuple(name) for kind, name in names.items()}


def _known(model_type: str) -> set[str]:
    """All classes of a model type that transformers' tables of heads name; those for pretraining have several heads."""
    from transformers.models.auto import modeling_auto as tables

    found = set[str]()
    for table in dir(tables):
        if table.endswith("MAPPING_NAMES") and table != "MODEL_FOR_PRETRAINING_MAPPING_NAMES":
            names = getattr(tables, table).get(model_type, ())
            found |= {names} if isinstance(names, str) else set(names)
    return found
