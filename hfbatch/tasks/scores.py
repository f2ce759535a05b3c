"""Logits to the labels and scores of a classifier, as transformers' classification pipelines make them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from hfbatch.sequences import Array

Function: TypeAlias = Literal["none", "softmax", "sigmoid"]
LABEL = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())])


def fields(top_k: int | None) -> list[tuple[str, pa.DataType]]:
    """The columns that `best_labels` makes: label and score, or `labels` where top_k may give several."""
    return [("label", pa.string()), ("score", pa.float32())] if top_k == 1 else [("labels", pa.list_(LABEL))]


def best_labels(scores: Array, config: Any, top_k: int | None) -> list[pa.Array]:
    """The columns of `fields` for scores (rows, labels); equal scores keep the order of the labels.

    `top_k` None, or over the number of labels: all.
    """
    top = min(top_k or scores.shape[1], scores.shape[1])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    names = np.array([config.id2label[number] for number in range(scores.shape[1])], dtype=object)[best].ravel()
    columns = [
        pa.array(names, pa.string()),
        pa.array(np.take_along_axis(scores, best, axis=1).ravel(), pa.float32()),
    ]
    if top_k == 1:
        return columns
    offsets = pa.array(np.arange(len(scores) + 1, dtype=np.int32) * np.int32(top))
    return [pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(LABEL)))]


def scores_of(logits: Array, config: Any, function: Function | None) -> Array:
    """Scores (rows, labels) of logits (rows, labels). `function` None: what the config's problem_type asks for."""
    function = function or _default_function(config)
    if function == "softmax":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
    if function == "sigmoid":
        with np.errstate(over="ignore"):  # a score of 0
            return np.asarray(1 / (1 + np.exp(-logits)))
    return logits


def _default_function(config: Any) -> Function:
    """Transformers' rule, in its order: regression, multi-label or one label, several labels."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"
