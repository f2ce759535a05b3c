"""Models that decode a changing set of rows: `join` starts some, `step` gives each a token's logits, `leave` ends some.

A row's logits are those that the model gives the row alone. `Decoder` lets rows join at any time: each has its own
place in slots.py. An encoder-decoder counts positions for the batch as a whole, so with `EncoderDecoder` rows start
together; they leave one by one as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from hfbatch.sequences import Array
from hfbatch.tasks.choosing import Row
from hfbatch.tasks.slots import Pass, Slots

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor: TypeAlias = Any

_ROWS = 128  # that run at once: more win nothing, and logits have the size of the vocabulary each
_PROMPTS = 4  # so many prefills fill the budget: what is gained by more at once is little
_HOST_PREFILL = 1024  # tokens: of more at once the activations outgrow a CPU's cache
_HOST_BYTES = 2**30  # of keys and values in main memory; as many as the weights have, but no more than twice these


class Running(Protocol):
    """Rows in the making, with all that the model remembers of them."""

    rows: list[Row]  # in the order of `step`

    def admits(self, waiting: Sequence[Row]) -> int:
        """How many of the first of `waiting` should join now; not 0 where nothing runs."""
        ...

    def join(self, rows: Sequence[Row]) -> Tensor:
        """Logits (rows, vocabulary) of the first token that each of `rows` makes; they come behind those that run."""
        ...

    def step(self) -> Tensor:
        """Logits (rows, vocabulary) behind the last token of every row."""
        ...

    def leave(self, kept: Array) -> None:
        """Only the rows at the places `kept`, which rise, go on; their order may change."""
        ...


class Decoder:
    """A language model whose layers keep plain keys and values."""

    def __init__(self, model: Any, room: tuple[int, int], front: Array | None = None) -> None:
        """`room`: (tokens, rows) at once, each row with all it may become. `front`: ids that all prompts begin with."""
        from transformers import DynamicCache

        self.model, self.device, (self.budget, self.most) = model, model.device, room
        self.rows: list[Row] = []
        self.slots = Slots(len(DynamicCache(config=model.config).layers), model.device)
        self._filling, self._allowed, self._front = True, 0, 0
        weights = sum(each.nbytes for each in model.parameters())
        self._host_bytes = min(max(_HOST_BYTES, weights), 2 * _HOST_BYTES)
        if front is not None and len(front):
            self.slots.fit(1, len(front), len(front))
            self._prefill([front], 0)
            for layer in self.slots.layers:
                layer.keep_front(len(front))
            self._front = len(front)

    def admits(self, waiting: Sequence[Row]) -> int:
        """As many as there is room for, once a quarter of the slots is free; a few at a time."""
        if not waiting:
            return 0
        longest = max(len(row.ids) for row in (waiting[0], *self.rows))
        self._allowed = min(max(1, self._tokens() // longest), _ROWS, self.most, len(self.rows) + len(waiting))
        free = self._allowed - len(self.rows)
        self._filling = bool(free > 0 and (self._filling or 4 * free >= self._allowed or not self.rows))
        if not self._filling:
            return 0
        most = self.budget // _PROMPTS if self.device.type != "cpu" else _HOST_PREFILL
        return min(free, max(1, most // max(1, waiting[0].prompt - self._front)))

    def _tokens(self) -> int:
        """That may be in the slots; in main memory as many as have room, which the first row tells."""
        if self.device.type != "cpu":
            return self.budget
        layers = [layer.keys for layer in self.slots.layers if layer.keys is not None]
        size = int(sum(2 * keys.shape[1] * keys.shape[3] * keys.element_size() for keys in layers))
        return min(self.budget, self._host_bytes // size) if size else 0

    def join(self, rows: Sequence[Row]) -> Tensor:
        """A prompt of several texts is computed once."""
        import torch

        first, (of, sources) = len(self.rows), _distinct(rows)
        running = [*self.rows, *rows]
        tokens, most = max(row.length for row in running), max(len(row.ids) for row in running)
        self.slots.fit(max(len(running), self._allowed), tokens, most)
        logits = self._prefill([rows[number].ids[self._front : rows[number].prompt] for number in of], first)
        if len(of) < len(rows):
            self.slots.spread(first, sources)
        self.rows, self.slots.rows = running, len(running)
        return logits[torch.from_numpy(sources).to(self.device)]

    def _prefill(self, prompts: Sequence[Array], first: int) -> Tensor:
        """Padded behind their ends, where nothing that counts looks at."""
        import torch

        lengths = np.array([len(each) for each in prompts])
        ids, start = np.zeros((len(prompts), lengths.max()), dtype=np.int64), self._front
        for number, each in enumerate(prompts):
            ids[number, : len(each)] = each
        places = torch.arange(start, start + ids.shape[1], device=self.device)
        mask = None
        if start:
            seen = torch.arange(start + ids.shape[1], device=self.device)
            mask = self._masked((seen <= places[:, None])[None, None])
        self.slots.now = Pass(first, start)
        with _last_alone(self.model, torch.from_numpy(lengths - 1).to(self.device)):
            return self._forward(torch.from_numpy(ids).to(self.device), places[None].expand(len(ids), -1), mask)

    def step(self) -> Tensor:
        """One token a row, each at its own place."""
        import torch

        lengths = np.array([row.length for row in self.rows])
        longest, most = int(lengths.max()), max(len(row.ids) for row in self.rows)
        self.slots.fit(len(self.rows), longest, most)
        ids = np.array([[row.ids[row.length - 1]] for row in self.rows], dtype=np.int64)
        places = torch.from_numpy(lengths - 1).to(self.device)
        self.slots.now = Pass(places=places, longest=longest)
        mask = (torch.arange(longest, device=self.device) <= places[:, None])[:, None, None]
        return self._forward(torch.from_numpy(ids).to(self.device), places[:, None], self._masked(mask))

    def _forward(self, ids: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        made = self.model(
            input_ids=ids,
            position_ids=places,
            attention_mask=mask,
            past_key_values=self.slots.cache,
            use_cache=True,
        )
        logits: Tensor = made.logits[:, -1].float()
        return logits

    def _masked(self, mask: Tensor) -> Tensor:
        """`mask` as what attention takes: to be added, of the model's type."""
        made: Tensor = mask.new_zeros(mask.shape, dtype=self.model.dtype)
        return made.masked_fill_(~mask, _least(self.model.dtype))

    def leave(self, kept: Array) -> None:
        """The last rows move into the gaps."""
        order = self.slots.keep(kept, max(row.length for row in self.rows))
        self.rows = [self.rows[place] for place in order]


class EncoderDecoder:
    """An encoder-decoder."""

    def __init__(self, model: Any, room: tuple[int, int], sources: Callable[[Array], tuple[Tensor, Tensor]]) -> None:
        """`sources`: the encoder's (ids, mask) of some sequences, padded. `room`: see Decoder, sources counted."""
        self.model, self.sources, (self.budget, self.most) = model, sources, room
        self.rows: list[Row] = []
        self._cache: Any = None
        self._states: Any = None  # (rows, longest source, size)
        self._mask: Any = None  # (rows, longest source)

    def admits(self, waiting: Sequence[Row]) -> int:
        """As many as the budget takes, when nothing runs."""
        if self.rows or not waiting:
            return 0
        return min(max(1, self.budget // max(row.cost for row in waiting[:_ROWS])), _ROWS, self.most)

    def join(self, rows: Sequence[Row]) -> Tensor:
        """Each source goes through the encoder once, beside those of about its length."""
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        of, copies = _distinct(rows)
        self._states, self._mask = self._encoded(np.array([rows[number].sequence for number in of]))
        self._select(torch.from_numpy(copies).to(self._mask.device))
        config = self.model.config.get_text_config(decoder=True)
        self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        self.rows = list(rows)
        return self._forward([row.ids[: row.prompt] for row in rows])

    def _encoded(self, sequences: Array) -> tuple[Tensor, Tensor]:
        """States and mask of all `sequences`, padded with zeros to the longest."""
        import torch
        from torch.nn.functional import pad

        encoder, made = self.model.get_encoder(), []
        for part in np.array_split(sequences, min(_PROMPTS, len(sequences))):
            ids, mask = self.sources(part)
            made.append((encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask))
        longest = max(mask.shape[1] for _, mask in made)
        states = [pad(state, (0, 0, 0, longest - state.shape[1])) for state, _ in made]
        return torch.cat(states), torch.cat([pad(mask, (0, longest - mask.shape[1])) for _, mask in made])

    def step(self) -> Tensor:
        """One token a row, all at the same place."""
        return self._forward([row.ids[row.length - 1 : row.length] for row in self.rows])

    def _forward(self, ids: Sequence[Array]) -> Tensor:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        made = self.model(
            decoder_input_ids=torch.from_numpy(np.stack(ids)).to(self._mask.device),
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = made.logits[:, -1].float()
        return logits

    def leave(self, kept: Array) -> None:
        """Their keys and values are dropped."""
        import torch

        if len(kept):
            index = torch.from_numpy(kept).to(self._mask.device)
            self._cache.batch_select_indices(index)
            self._select(index)
        self.rows = [self.rows[place] for place in kept]

    def _select(self, index: Tensor) -> None:
        self._states, self._mask = self._states[index], self._mask[index]


def _distinct(rows: Sequence[Row]) -> tuple[Array, Array]:
    """The places where another sequence begins, and for each row which of those is its own; texts stand together."""
    sequences = np.array([row.sequence for row in rows])
    begins = np.flatnonzero(np.diff(sequences, prepend=-1))
    return begins, np.searchsorted(begins, np.arange(len(rows)), side="right") - 1


@contextmanager
def _last_alone(model: Any, last: Tensor) -> Iterator[None]:
    """The head of `model` sees of each row no more than the token at `last` (rows,), which is all that is wanted.

    In this thread: another may be in the same model.
    """
    import torch

    rows, mine = torch.arange(len(last), device=last.device), threading.get_ident()

    def pick(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (given[0][rows, last][:, None], *given[1:]) if threading.get_ident() == mine else None

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def _least(dtype: Any) -> float:
    import torch

    return float(torch.finfo(dtype).min)
