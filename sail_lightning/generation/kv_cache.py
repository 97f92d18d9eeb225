"""Keys and values of many questions at once: a row of slots a picture, whose questions all look at it there.

A cache is token-major, (rows, capacity, G, E) per layer, and allocated once. Where a token lies is of no matter, for
positions are in the keys and masks say who sees which slot: so the questions of a row take its slots in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sail_lightning.interfaces import CacheView, KeyValueCache

BLOCK = 64
"""Capacities and looked-at lengths are multiples of this: kernels want aligned masks."""
MAX_PLACES = 4096
"""Queries of one grid, unless a single row has more: the mask of a grid is dense."""


def whole_blocks(slots: int) -> int:
    """At least `slots`, in whole blocks."""
    return -(-slots // BLOCK) * BLOCK


class SlotCache(KeyValueCache):
    """Keys and values in `rows` x `capacity` slots a layer (whole blocks of them), in the dtype of the values.

    `expect` announces each pass: which slots its tokens take, and who looks where.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, whole_blocks(capacity)
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._slots = torch.empty(0, dtype=torch.int64)
        self._views: tuple[CacheView, ...] = ()

    def expect(self, slots: Tensor, views: Sequence[CacheView] = ()) -> None:
        """Announces a pass over T tokens, to be written at `slots` (T,) int64, row * capacity + slot.

        Without views the pass is packed: its tokens look at each other only, as its plan says.
        """
        self._slots, self._views = slots, tuple(views)

    def views(self) -> tuple[CacheView, ...]:
        return self._views

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            shape = (self.rows, self.capacity, key.shape[1], key.shape[3])
            # Zeros, for a masked slot is multiplied by zero, and what was never written may be anything.
            self.layers.append((value.new_zeros(shape), value.new_zeros(shape)))
        stored = self.layers[layer]
        for slots, new in zip(stored, (key, value), strict=True):
            slots.flatten(0, 1).index_copy_(0, self._slots, new[0].transpose(0, 1).to(slots.dtype))
        if not self._views:
            return key, value
        return stored[0].transpose(1, 2), stored[1].transpose(1, 2)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` slots of row `source` to row `target`."""
        for pair in self.layers:
            for slots in pair:
                slots[target, :length] = slots[source, :length]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows (R,) int64, in this order."""
        self.rows = len(rows)
        # One layer after the other: two whole caches are never alive at once.
        for layer, (keys, values) in enumerate(self.layers):
            self.layers[layer] = (keys.index_select(0, rows), values.index_select(0, rows))

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` slots a row; what is there stays where it is."""
        capacity = whole_blocks(capacity)
        for layer, pair in enumerate(self.layers):
            grown = [slots.new_zeros(self.rows, capacity, *slots.shape[2:]) for slots in pair]
            for room, slots in zip(grown, pair, strict=True):
                room[:, : self.capacity] = slots
            self.layers[layer] = (grown[0], grown[1])
        self.capacity = capacity


@dataclass(frozen=True)
class Band:
    """A run of rows with about as many new tokens each, so that a grid of them has few empty places.

    `counts` are the new tokens of the rows from `first` on; `places` (their sum,) int64 are where these lie in the grid
    (rows, width), row by row; None where they fill it.
    """

    first: int
    counts: tuple[int, ...]
    places: Tensor | None

    @property
    def tokens(self) -> int:
        """All new tokens."""
        return sum(self.counts)

    @property
    def rows(self) -> range:
        """Its rows of the cache."""
        return range(self.first, self.first + len(self.counts))

    def view(self, sees: Tensor) -> CacheView:
        """The view of its tokens that see these slots, (tokens, length) bool."""
        width = max(self.counts)
        if self.places is not None:  # what is computed at an empty place is dropped, but it must see something
            grid = sees.new_ones(len(self.counts) * width, sees.shape[1])
            sees = grid.index_copy_(0, self.places, sees)
        return CacheView(self.tokens, self.first, self.places, sees.unflatten(0, (-1, width)))


def bands(counts: Sequence[int], device: torch.device) -> list[Band]:
    """Cuts rows with so many new tokens each into bands, of which none is much more than half empty."""
    cuts: list[tuple[int, int]] = []
    start: int | None = None
    for row, count in enumerate(counts):
        if start is not None:
            own = counts[start : row + 1]
            if len(own) * max(own) <= min(2 * sum(own) + 16, MAX_PLACES):
                continue
            cuts.append((start, row))
        start = row if count else None
    if start is not None:
        cuts.append((start, len(counts)))
    found = []
    for first, end in cuts:
        while counts[end - 1] == 0:
            end -= 1
        own = counts[first:end]
        width, places = max(own), None
        if min(own) < width:
            taken = [row * width + place for row, count in enumerate(own) for place in range(count)]
            places = torch.tensor(taken, device=device)
        found.append(Band(first, tuple(own), places))
    return found


def visible(shared: Tensor, start: Tensor, end: Tensor, length: int) -> Tensor:
    """Which of `length` slots T tokens see, (T, length) bool: those below `shared` (T,), and those in [start, end)."""
    slots = torch.arange(length, device=start.device)
    return (slots < shared[:, None]) | ((slots >= start[:, None]) & (slots < end[:, None]))
