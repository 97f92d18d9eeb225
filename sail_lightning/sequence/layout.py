"""One layout for training, evaluation and generation: ids, positions, spans and the rows that matter.

A sequence is built from numbers, never from a string with thousands of placeholders. Letters as in `interfaces`.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sail_lightning.sequence.attention_plan import Span, SpanKind

Int = NDArray[np.int64]


Mark = str | int
"""A token by name (or by id, once resolved), or a learned vector of the backbone, a negative number."""
PATCH_ONLY, CLASS_VECTOR, ROW_VECTOR = -1, -2, -3
"""Ids that no vocabulary has: nothing but the patch that is put there; EVE's learned vectors, one of the picture and
one that ends each row."""


@dataclass(frozen=True)
class PictureLayout:
    """What stands around and among the patches of a picture; the default is that of SOLO, SAIL and Pixel-SAIL.

    `start`, rows of `patch` each closed by `row_end`, and `end` form one block, which sees itself wholly if
    `bidirectional`; `after` follows it. With `grid_positions` a patch stands at its row and column, else tokens are
    counted one by one.
    """

    start: tuple[Mark, ...] = ("<vision>",)
    patch: Mark = "<vpatch>"
    row_end: tuple[Mark, ...] = ()
    end: tuple[Mark, ...] = ("</vision>",)
    after: tuple[Mark, ...] = ()
    grid_positions: bool = True
    bidirectional: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of the tokens that it is made of."""
        marks = (*self.start, self.patch, *self.row_end, *self.end, *self.after)
        return tuple(mark for mark in marks if isinstance(mark, str))

    def resolve(self, table: Mapping[str, int]) -> PictureLayout:
        """The same with ids for names."""

        def ids(marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
            return tuple(table[mark] if isinstance(mark, str) else mark for mark in marks)

        return replace(
            self,
            start=ids(self.start),
            patch=ids((self.patch,))[0],
            row_end=ids(self.row_end),
            end=ids(self.end),
            after=ids(self.after),
        )


@dataclass(frozen=True)
class Sequence:
    """One laid out sample of L tokens.

    `ids` (L,); `positions` (3, L), rows temporal, height, width; `spans` cover all tokens; `patch_rows` are the rows of
    patches, picture by picture, and `grids` their (rows, columns); `vision` (L,) is True at vision tokens, which are
    patches and learned vectors; `prefix` tokens lead up to the end of the last picture; `target_rows` are the rows
    whose *next* token is supervised and `target_ids` that token.
    """

    ids: Int
    positions: Int
    spans: tuple[Span, ...]
    patch_rows: Int
    grids: tuple[tuple[int, int], ...]
    vision: NDArray[np.bool_]
    prefix: int
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

    layout: PictureLayout
    _ids: list[Int] = field(default_factory=list)
    _positions: list[Int] = field(default_factory=list)
    _supervised: list[NDArray[np.bool_]] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _patch_rows: list[Int] = field(default_factory=list)
    _vision: list[NDArray[np.bool_]] = field(default_factory=list)
    _grids: list[tuple[int, int]] = field(default_factory=list)
    _length: int = 0
    _next: int = 0
    _prefix: int = 0

    def image(self, grid: tuple[int, int]) -> SequenceBuilder:
        """Adds a picture of rows x columns patches, laid out as `layout` says.

        With grid positions, patch (r, c) after a start at position s stands at (s, s + r, s + c); the next token
        resumes at s + max(rows, columns) on all axes (official `generate_mm_pos_ids_singleit`).
        """
        rows, columns = grid
        layout = self.layout
        row = _marks([layout.patch] * columns + list(layout.row_end))
        before, cells, behind = len(layout.start), rows * len(row), len(layout.end)
        ids = np.concatenate([_marks(layout.start), np.tile(row, rows), _marks(layout.end)])
        positions = np.tile(np.arange(self._next, self._next + len(ids)), (3, 1))
        if layout.grid_positions:
            first = self._next + before
            block = positions[:, before : before + cells]
            block[0] = first
            block[1] = first + np.repeat(np.arange(rows), len(row))
            block[2] = first + np.tile(np.arange(len(row)), rows)
            positions[:, before + cells :] = first + max(rows, len(row)) + np.arange(behind)
            resume = first + max(rows, len(row)) + behind
        else:
            resume = self._next + len(ids)
        places = before + np.arange(cells).reshape(rows, len(row))[:, :columns].ravel()
        self._patch_rows.append(self._length + places)
        self._grids.append(grid)
        vision = (ids == layout.patch) | (ids < 0)
        self._add("image" if layout.bidirectional else "text", ids, positions, np.zeros(len(ids), bool), resume, vision)
        if layout.after:
            self.text(_marks(layout.after).tolist())
        self._prefix = self._length
        return self

    def text(self, ids: Seq[int], supervised: bool = False) -> SequenceBuilder:
        """Adds words; `supervised` ones are to be predicted."""
        steps = np.arange(self._next, self._next + len(ids))
        flags = np.full(len(ids), supervised)
        return self._add("text", np.asarray(ids, np.int64), np.tile(steps, (3, 1)), flags, self._next + len(ids))

    def _add(
        self,
        kind: SpanKind,
        ids: Int,
        positions: Int,
        supervised: NDArray[np.bool_],
        resume: int,
        vision: NDArray[np.bool_] | None = None,
    ) -> SequenceBuilder:
        self._ids.append(ids)
        self._positions.append(positions)
        self._supervised.append(supervised)
        self._vision.append(np.zeros(len(ids), bool) if vision is None else vision)
        if kind == "text" and self._spans and self._spans[-1].kind == "text":
            self._spans[-1] = Span("text", self._spans[-1].length + len(ids))
        else:
            self._spans.append(Span(kind, len(ids)))
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
            vision=np.concatenate([np.empty(0, bool), *self._vision]),
            prefix=self._prefix,
            target_rows=targets,
            target_ids=ids[targets + 1],
        )


def _marks(marks: Seq[Mark]) -> Int:
    return np.asarray(marks, np.int64) if marks else np.empty(0, np.int64)
