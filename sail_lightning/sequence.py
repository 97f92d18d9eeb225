"""One layout for training, evaluation and generation: ids, positions, spans and the rows that matter.

A sequence is built from numbers, never from a string with thousands of placeholders. Letters as in `interfaces`.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sail_lightning.plan import Span

Int = NDArray[np.int64]


@dataclass(frozen=True)
class LayoutIds:
    """Ids of the three tokens that a picture is laid out with."""

    start: int
    patch: int
    end: int


@dataclass(frozen=True)
class Sequence:
    """One laid out sample of L tokens.

    `ids` (L,); `positions` (3, L), rows temporal, height, width; `spans` cover all tokens; `patch_rows` are the rows of
    vision tokens, picture by picture, and `grids` their (rows, columns); `target_rows` are the rows whose *next* token
    is supervised and `target_ids` that token.
    """

    ids: Int
    positions: Int
    spans: tuple[Span, ...]
    patch_rows: Int
    grids: tuple[tuple[int, int], ...]
    target_rows: Int
    target_ids: Int

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, token: int) -> Int:
        """Rows that hold a token id, in order."""
        return np.flatnonzero(self.ids == token)

    @property
    def next_position(self) -> int:
        """Position, on all three axes, of a token that would follow."""
        return int(self.positions.max()) + 1 if len(self) else 0


@dataclass
class SequenceBuilder:
    """Lays out pictures and texts in the order they are given."""

    layout: LayoutIds
    _ids: list[Int] = field(default_factory=list)
    _positions: list[Int] = field(default_factory=list)
    _supervised: list[NDArray[np.bool_]] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _patch_rows: list[Int] = field(default_factory=list)
    _grids: list[tuple[int, int]] = field(default_factory=list)
    _length: int = 0
    _next: int = 0

    def image(self, grid: tuple[int, int]) -> SequenceBuilder:
        """Adds `<vision>`, rows x columns vision tokens, `</vision>`: one bidirectional span, both ends included.

        Patch (r, c) after a start at position s stands at (s, s + r, s + c); the next token resumes at
        s + max(rows, columns) on all axes (official `generate_mm_pos_ids_singleit`).
        """
        rows, columns = grid
        count = rows * columns
        ids = np.full(count + 2, self.layout.patch, np.int64)
        ids[0], ids[-1] = self.layout.start, self.layout.end
        first = self._next + 1
        positions = np.empty((3, count + 2), np.int64)
        positions[:, 0] = self._next
        positions[0, 1:-1] = first
        positions[1, 1:-1] = first + np.repeat(np.arange(rows), columns)
        positions[2, 1:-1] = first + np.tile(np.arange(columns), rows)
        positions[:, -1] = first + max(rows, columns)
        self._patch_rows.append(np.arange(self._length + 1, self._length + 1 + count))
        self._grids.append(grid)
        return self._add("image", ids, positions, np.zeros(count + 2, bool), int(positions[0, -1]) + 1)

    def text(self, ids: Seq[int], supervised: bool = False) -> SequenceBuilder:
        """Adds words; `supervised` ones are to be predicted."""
        steps = np.arange(self._next, self._next + len(ids))
        flags = np.full(len(ids), supervised)
        return self._add("text", np.asarray(ids, np.int64), np.tile(steps, (3, 1)), flags, self._next + len(ids))

    def _add(self, kind: str, ids: Int, positions: Int, flags: NDArray[np.bool_], resume: int) -> SequenceBuilder:
        self._ids.append(ids)
        self._positions.append(positions)
        self._supervised.append(flags)
        if kind == "text" and self._spans and self._spans[-1].kind == "text":
            self._spans[-1] = Span("text", self._spans[-1].length + len(ids))
        else:
            self._spans.append(Span("image" if kind == "image" else "text", len(ids)))
        self._length += len(ids)
        self._next = resume
        return self

    def build(self) -> Sequence:
        """The finished sequence."""
        ids = np.concatenate([np.empty(0, np.int64), *self._ids])
        supervised = np.concatenate([np.empty(0, bool), *self._supervised])
        targets = np.flatnonzero(supervised[1:])
        return Sequence(
            ids=ids,
            positions=np.concatenate([np.empty((3, 0), np.int64), *self._positions], axis=1),
            spans=tuple(span for span in self._spans if span.length),
            patch_rows=np.concatenate([np.empty(0, np.int64), *self._patch_rows]),
            grids=tuple(self._grids),
            target_rows=targets,
            target_ids=ids[targets + 1],
        )
