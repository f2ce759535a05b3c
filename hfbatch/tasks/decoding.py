"""Continuous batching: rows join and leave the batch that is being decoded, token by token.

`decode` runs the rows of a block through a `Running` (decoders.py), longest first, so that prompts of about one length
are computed together and the last rows to end are short ones. `way_of` says at start whether a model and its settings
can be run so; what cannot goes the way of model.generate, one padded batch after another (generation.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hfbatch.sequences import Array, Ragged
from hfbatch.tasks.base import KEY, Batch, Flat, Outputs
from hfbatch.tasks.choosing import Choice, Row, seeded
from hfbatch.tasks.decoders import Decoder, EncoderDecoder, Running

if TYPE_CHECKING:
    from torch import Tensor

    from hfbatch.tasks.generation import Generator
else:
    Tensor: TypeAlias = Any

_SHARED = 16  # tokens: shorter beginnings are not worth a pass of their own
_DYNAMIC = ("dynamic", "longrope")  # rotary positions that depend on the longest row of a batch
_ATTENTION = ("sdpa", "eager")  # what takes a mask of its own for every row
_WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention", "attention_chunk_size")
_CLOSE, _CLOSE_16 = 1e-3, 0.1  # how far logits may be off, of their spread; with 16 bits


def decode(
    running: Running,
    rows: Sequence[Row],
    choose: Callable[[Tensor, Sequence[Row]], Tensor],
    over: Callable[[Sequence[Row]], Sequence[bool]],
    alive: Callable[[int], None],
) -> None:
    """Write all `rows` to their ends.

    `over`: which rows end with their last token; `alive`: called before a step, with how many ended in the last one.
    """
    waiting, finished = sorted(rows, key=lambda row: -row.cost), 0
    while waiting or running.rows:
        alive(finished)
        count = running.admits(waiting)
        if count:
            fresh, waiting = waiting[:count], waiting[count:]
            logits = running.join(fresh)
        else:
            fresh, logits = running.rows, running.step()
        for row, token in zip(fresh, choose(logits, fresh).tolist(), strict=True):
            row.add(token)
        ended = {id(row) for row, now in zip(fresh, over(fresh), strict=True) if now or row.full}
        finished = len(ended)
        if ended:
            running.leave(np.flatnonzero([id(row) not in ended for row in running.rows]))


def complete(generator: Generator, model: Any, batch: Batch, room: Array) -> Outputs:
    """What Generator gives, for all sequences of `batch`; `room` (sequences,): new tokens of each, at most."""
    import torch

    model = getattr(model, "_orig_mod", model)  # shapes change with every step: compiling would never end
    sources = batch.sequences.ragged("input_ids")
    encodes = bool(model.config.is_encoder_decoder)
    start = np.array([generator.settings.get("decoder_start_token_id", 0)])
    streams = seeded(batch.sequences.dense(KEY), generator)
    rows: list[Row] = []
    for number in range(len(sources)):
        source = sources[number]
        prompt = start if encodes else source
        for stream in streams[number].tolist():
            ids = np.zeros(len(prompt) + int(room[number]), dtype=np.int64)
            ids[: len(prompt)] = prompt
            rows.append(Row(number, ids, len(prompt), stream, len(ids) + (len(source) if encodes else 0)))
    running: Running
    if encodes:

        def encoded(index: Array) -> tuple[Tensor, Tensor]:
            part = batch.part(index)
            return part.inputs["input_ids"], part.mask

        running = EncoderDecoder(model, batch.room, encoded)
    else:
        running = Decoder(model, batch.room, shared_front(sources))
    with torch.inference_mode():
        decode(running, rows, Choice(generator, decoder=not encodes), generator.over, batch.alive)
    return _outputs(rows, generator.texts)


def shared_front(prompts: Ragged) -> Array:
    """The ids that all `prompts` begin with, each of which goes on behind them; none where they are few."""
    if len(prompts) < 2:
        return prompts.values[:0]
    first, most = prompts[0], int(prompts.lengths.min()) - 1
    for number in range(1, len(prompts)):
        differing = np.flatnonzero(prompts[number][:most] != first[:most])
        most = int(differing[0]) if len(differing) else most
    return first[:most] if most >= _SHARED else first[:0]


def _outputs(rows: Sequence[Row], texts: int) -> Outputs:
    import torch

    counts = np.array([row.made for row in rows], dtype=np.int32).reshape(-1, texts)
    tokens = np.concatenate([row.ids[row.prompt : row.length] for row in rows])
    return {
        "tokens": Flat(torch.from_numpy(tokens.astype(np.int32)), counts.sum(axis=1, dtype=np.int64)),
        "token_counts": torch.from_numpy(counts),
        "ended": torch.tensor([row.ended for row in rows]).reshape(-1, texts),
    }


def way_of(generator: Generator, model: Any) -> str | None:
    """Why `model` with these settings has to go the way of model.generate; None: it is decoded here."""
    if generator.beams > 1:
        return f"a search with {generator.beams} beams"
    unknown = sorted(set(generator.settings) - Choice.KNOWN)
    if unknown:
        return f"the setting {', '.join(unknown)}"
    model = getattr(model, "_orig_mod", model)
    reason = _unlike(model, generator)
    if reason is not None:
        return reason
    try:
        off = _distance(model)
    except Exception as error:  # whatever it is that this model does not take
        return f"{model.config.model_type} refuses what is asked of it: {type(error).__name__}: {error}"
    allowed = _CLOSE if model.dtype.itemsize >= 4 else _CLOSE_16
    return None if off <= allowed else f"{model.config.model_type} answers a row beside others {off:.1g} off"


def _unlike(model: Any, generator: Generator) -> str | None:
    """What a look at the class and the config of `model` says against it."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation not in _ATTENTION:
        return f"attention by {config._attn_implementation}"
    layers = DynamicCache(config=config).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if others or not layers:
        return f"{model.config.model_type} keeps {', '.join(others) or 'nothing'} in its cache"
    windows = [name for name in _WINDOWS if getattr(config, name, None) is not None]
    if windows:  # which a layer may count from the end of the batch, and no short rehearsal would show it
        return f"attention within a window ({windows[0]})"
    if any(kind in str(getattr(config, "rope_parameters", None)) for kind in _DYNAMIC):
        return "rotary positions that depend on the longest row"
    if model.config.is_encoder_decoder:
        start = generator.settings.get("decoder_start_token_id")
        return None if isinstance(start, int) else "no one token starts its texts"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{model.config.model_type} cannot be told positions"
    return None


def _distance(model: Any) -> float:
    """How far the logits of rows that come and go are from those of each row alone, at most; of their spread."""
    import torch

    spread = np.random.default_rng(0).integers(0, model.config.get_text_config(decoder=True).vocab_size, (3, 12))
    spread[:, :3] = spread[0, :3]
    sources = torch.from_numpy(spread[:, 3:]).to(model.device)
    rows = [Row(number, spread[number].astype(np.int64), prompt) for number, prompt in enumerate((5, 8, 6))]
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            rows = [Row(row.sequence, row.ids, 1) for row in rows]

            def padded(index: Array) -> tuple[Tensor, Tensor]:
                mask = torch.arange(9, device=model.device) < torch.tensor([[9], [6], [8]], device=model.device)[index]
                return sources[index] * mask, mask.long()

            alone = [_alone(model, row, padded(np.array([row.sequence]))) for row in rows]
            found = _rehearsed(EncoderDecoder(model, (10**6, 128), padded), rows, len(rows))
        else:
            alone = [_alone(model, row) for row in rows]
            found = _rehearsed(Decoder(model, (10**6, 128), rows[0].ids[:3]), rows, 2)
    off = [(made - alone[row][place]).norm() / alone[row][place].std() for row, place, made in found]
    size = float(model.config.get_text_config(decoder=True).vocab_size)
    return float(torch.stack(off).max()) / float(np.sqrt(size))


def _alone(model: Any, row: Row, source: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(tokens, vocabulary) float32: the logits behind each token of `row`, by a plain call."""
    import torch

    ids = torch.from_numpy(row.ids[None]).to(model.device)
    if source is None:
        made = model(input_ids=ids, use_cache=False)
    else:
        real = source[1][0].bool()
        made = model(input_ids=source[0][:, real], decoder_input_ids=ids, use_cache=False)
    logits: Tensor = made.logits[0].float()
    return logits


def _rehearsed(running: Running, rows: list[Row], first: int) -> list[tuple[int, int, Tensor]]:
    """(row, place, logits) for rows that join, the last of them later than the `first`, and leave one by one."""
    found: list[tuple[int, int, Tensor]] = []

    def note(fresh: Sequence[Row], logits: Tensor) -> None:
        for row, made in zip(fresh, logits, strict=True):
            found.append((row.sequence, row.length - 1, made))
            row.made += 1  # the token that follows is there already

    note(rows[:first], running.join(rows[:first]))
    note(running.rows, running.step())
    if first < len(rows):
        note(rows[first:], running.join(rows[first:]))
    note(running.rows, running.step())
    running.leave(np.array([1, 2]))
    note(running.rows, running.step())
    return found
