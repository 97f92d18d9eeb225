"""The KV cache of many questions at once: one row of slots per image, which all questions about it attend over.

A cache is token-major, (rows, capacity, G, E) per layer, and allocated once. The slot of a token does not matter,
because positions are in the keys and masks say which slots a token sees: so the questions of a row take turns at its
slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sail_lightning.interfaces import CacheView, KeyValueCache
from sail_lightning.settings.renames import renamed

BLOCK = 64
"""Capacities and attended lengths, in slots, are multiples of this, because kernels want aligned masks."""
MAX_GRID_CELLS = 4096
"""Queries in one attention grid, unless a single row has more: the mask of a grid is dense."""

_RENAMED = {"SlotCache": "SlottedKVCache", "bands": "group_rows", "visible": "visibility_mask"}
__getattr__ = renamed(__name__, _RENAMED | {"Band": "RowGroup", "whole_blocks": "round_up_to_block"})


def round_up_to_block(slots: int) -> int:
    """Returns the smallest multiple of `BLOCK` that is at least `slots`."""
    return -(-slots // BLOCK) * BLOCK


class SlottedKVCache(KeyValueCache):
    """Keys and values in `rows` x `capacity` slots per layer, in the dtype of the values.

    `set_write_slots` comes before each pass of the backbone: it says which slots its tokens are written to, and which
    ones they see.

    Args:
        rows: Number of rows.
        capacity: Slots per row, rounded up to a multiple of `BLOCK`.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, round_up_to_block(capacity)
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._slots = torch.empty(0, dtype=torch.int64)
        self._views: tuple[CacheView, ...] = ()

    def set_write_slots(self, slots: Tensor, views: Sequence[CacheView] = ()) -> None:
        """Prepares a pass over T tokens.

        Args:
            slots: (T,) int64, where the tokens are written: row * capacity + slot.
            views: Which slots the tokens see. Without views the pass is packed: its tokens see each other only, as its
                attention plan says.
        """
        self._slots, self._views = slots, tuple(views)

    def views(self) -> tuple[CacheView, ...]:
        return self._views

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            shape = (self.rows, self.capacity, key.shape[1], key.shape[3])
            # Zeros, because a masked slot is multiplied by zero, and memory that was never written may hold NaN.
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
        # One layer after the other, so that two whole caches are never alive at once.
        for layer, (keys, values) in enumerate(self.layers):
            self.layers[layer] = (keys.index_select(0, rows), values.index_select(0, rows))

    def grow(self, capacity: int) -> None:
        """Grows each row to at least `capacity` slots; what is stored keeps its slots."""
        capacity = round_up_to_block(capacity)
        for layer, pair in enumerate(self.layers):
            grown = [slots.new_zeros(self.rows, capacity, *slots.shape[2:]) for slots in pair]
            for larger, slots in zip(grown, pair, strict=True):
                larger[:, : self.capacity] = slots
            self.layers[layer] = (grown[0], grown[1])
        self.capacity = capacity


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows with about as many new tokens each, so that a grid of them has few empty cells.

    `counts` are the numbers of new tokens of the rows from `first` on. `scatter_index` (their sum,) int64 holds the
    cells of these tokens in the grid (rows, width), counted row by row; None where they fill it.
    """

    first: int
    counts: tuple[int, ...]
    scatter_index: Tensor | None

    @property
    def tokens(self) -> int:
        """The number of new tokens of all rows."""
        return sum(self.counts)

    @property
    def rows(self) -> range:
        """The rows of the cache that belong to the group."""
        return range(self.first, self.first + len(self.counts))

    def view(self, mask: Tensor) -> CacheView:
        """Returns how the group's tokens see the slots of their rows, from a mask (tokens, length) bool."""
        width = max(self.counts)
        if self.scatter_index is not None:  # the output of an empty cell is dropped, but it must see something
            grid = mask.new_ones(len(self.counts) * width, mask.shape[1])
            mask = grid.index_copy_(0, self.scatter_index, mask)
        return CacheView(self.tokens, self.first, self.scatter_index, mask.unflatten(0, (-1, width)))


def group_rows(counts: Sequence[int], device: torch.device) -> list[RowGroup]:
    """Groups rows by their numbers of new tokens, so that no grid is much more than half empty.

    Args:
        counts: The number of new tokens of each row. Rows without any are in no group, or between others of one.
        device: Where the index tensors of the groups are made.
    """
    groups = []
    for first, end in _ranges(counts):
        while counts[end - 1] == 0:
            end -= 1
        own = counts[first:end]
        width, index = max(own), None
        if min(own) < width:
            cells = [row * width + column for row, count in enumerate(own) for column in range(count)]
            index = torch.tensor(cells, device=device)
        groups.append(RowGroup(first, tuple(own), index))
    return groups


def _ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    """The (first, end) of runs of rows, each extended as long as its grid is small or not mostly empty."""
    ranges: list[tuple[int, int]] = []
    start: int | None = None
    for row, count in enumerate(counts):
        if start is not None:
            own = counts[start : row + 1]
            if len(own) * max(own) <= min(2 * sum(own) + 16, MAX_GRID_CELLS):
                continue
            ranges.append((start, row))
        start = row if count else None
    if start is not None:
        ranges.append((start, len(counts)))
    return ranges


def visibility_mask(prefix: Tensor, start: Tensor, end: Tensor, length: int) -> Tensor:
    """Which of `length` slots T tokens see: (T, length) bool.

    A token sees the slots below `prefix` (T,), which are shared, and those from `start` (T,) up to, but not
    including, `end` (T,).
    """
    slots = torch.arange(length, device=start.device)
    return (slots < prefix[:, None]) | ((slots >= start[:, None]) & (slots < end[:, None]))
