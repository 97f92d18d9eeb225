"""The layout of token sequences for training, evaluation and generation: ids, positions, spans and target rows.

A sequence is built from ids, never from a string with thousands of placeholders. Shapes use the letters of
`interfaces`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sail_lightning.sequence.attention_plan import Span, SpanKind
from sail_lightning.settings.renames import renamed

Int = NDArray[np.int64]


LayoutToken = str | int
"""A token by name, or by id once resolved; a negative number is a learned vector of the backbone."""
PATCH_ONLY, CLASS_VECTOR, ROW_VECTOR = -1, -2, -3
"""Ids that are in no vocabulary: a position that holds only the patch, and EVE's learned vectors, of which one stands
for the image and one ends each row."""


@dataclass(frozen=True)
class ImageLayout:
    """The tokens around and among the patches of an image; the defaults are those of SOLO, SAIL and Pixel-SAIL.

    Attributes:
        start: Tokens before the patches.
        patch: Token at each patch.
        row_end: Tokens after each row of patches.
        end: Tokens after the patches. `start`, the rows and `end` form one block.
        after: Tokens after the block, which are text.
        grid_positions: Whether the position of a patch is its row and column; otherwise tokens are counted one by one.
        bidirectional: Whether the tokens of the block all attend to one another.
    """

    start: tuple[LayoutToken, ...] = ("<vision>",)
    patch: LayoutToken = "<vpatch>"
    row_end: tuple[LayoutToken, ...] = ()
    end: tuple[LayoutToken, ...] = ("</vision>",)
    after: tuple[LayoutToken, ...] = ()
    grid_positions: bool = True
    bidirectional: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of the tokens of the layout."""
        marks = (*self.start, self.patch, *self.row_end, *self.end, *self.after)
        return tuple(mark for mark in marks if isinstance(mark, str))

    def resolve(self, table: Mapping[str, int]) -> ImageLayout:
        """The layout with token ids in place of names."""

        def ids(marks: tuple[LayoutToken, ...]) -> tuple[LayoutToken, ...]:
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
class TokenSequence:
    """One sample, laid out as L tokens.

    Attributes:
        ids: Token ids, (L,).
        positions: Positions, (3, L): temporal, height, width.
        spans: Spans that together cover all tokens.
        patch_rows: Rows of the patches, image by image.
        grids: The (rows, columns) of patches of each image.
        vision: Whether each token is a vision token, which is a patch or a learned vector, (L,) bool.
        prefix: Number of tokens up to the end of the last image.
        target_rows: Rows with a supervised *next* token.
        target_ids: That next token of each of them.
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
        """The rows that hold a token id, in order."""
        return np.flatnonzero(self.ids == token)

    @property
    def next_position(self) -> int:
        """The position, on all three axes, of the token after the last."""
        return int(self.positions.max()) + 1 if len(self) else 0


@dataclass
class SequenceBuilder:
    """Lays out images and texts in the order in which they are added."""

    layout: ImageLayout
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
        """Adds an image with a grid of (rows, columns) patches.

        With grid positions, the patch (r, c) of a block that starts at position s has the position (s, s + r, s + c);
        the next token has s + max(rows, columns) on all axes (official `generate_mm_pos_ids_singleit`).
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

    def text(self, ids: Sequence[int], supervised: bool = False) -> SequenceBuilder:
        """Adds text tokens; with `supervised` they are targets of the language loss."""
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

    def build(self) -> TokenSequence:
        """The finished sequence."""
        ids = np.concatenate([np.empty(0, np.int64), *self._ids])
        supervised = np.concatenate([np.empty(0, bool), *self._supervised])
        targets = np.flatnonzero(supervised[1:])
        return TokenSequence(
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


def _marks(marks: Sequence[LayoutToken]) -> Int:
    return np.asarray(marks, np.int64) if marks else np.empty(0, np.int64)


__getattr__ = renamed(__name__, {"Mark": "LayoutToken", "PictureLayout": "ImageLayout", "Sequence": "TokenSequence"})
