"""Questions on one picture share it: it is embedded, read and kept once, and each question goes on from there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.sequence.attention_plan import Span

ROW_QUESTIONS = 16
"""Questions of one row of the cache. Each looks past what the others said, so a picture with many more gets several."""


@dataclass(frozen=True)
class Group:
    """Questions (indices) with the same first `shared` tokens. One alone shares nothing, `shared` = 0."""

    members: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Row:
    """A row of the cache: the first tokens of a `group`, if these are shared, and its questions' own ones in order."""

    group: int
    shared: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class Seating:
    """Where the tokens of a batch of questions go. Questions and groups are indices; all is known on the host."""

    samples: tuple[EncodedSample, ...]
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, samples: Sequence[EncodedSample], room: int) -> Seating:
        """Groups samples by their pictures, and seats them in rows. Each has `room` for that many tokens to come.

        Questions that share nothing sit together as long as their row stays within the longest.
        """
        members: dict[bytes, list[int]] = {}
        for index, item in enumerate(samples):
            key = _prefix_key(item) if item.sequence.prefix else str(index).encode()
            members.setdefault(key, []).append(index)
        groups = tuple(
            Group(tuple(own), samples[own[0]].sequence.prefix if len(own) > 1 else 0) for own in members.values()
        )
        rows = []
        alone: list[tuple[int, int]] = []
        for place, group in enumerate(groups):
            if group.shared:
                parts = np.array_split(group.members, -(-len(group.members) // ROW_QUESTIONS))
                rows += [Row(place, group.shared, tuple(part.tolist())) for part in parts]
            else:
                alone.append((place, len(samples[group.members[0]]) + room))
        taken = [row.shared + sum(len(samples[i]) - row.shared + room for i in row.members) for row in rows]
        longest = max([*taken, *(length for _, length in alone)])
        bins: list[tuple[list[int], int]] = []
        for place, length in sorted(alone, key=lambda pair: -pair[1]):
            for at, (own, filled) in enumerate(bins):
                if len(own) < ROW_QUESTIONS and filled + length <= longest:
                    bins[at] = ([*own, place], filled + length)
                    break
            else:
                bins.append(([place], length))
        rows += [Row(own[0], 0, tuple(groups[place].members[0] for place in own)) for own, _ in bins]
        # Neighbours have about as many questions: they are attended to in one grid.
        rows.sort(key=lambda row: (row.shared == 0, -len(row.members)))
        return cls(tuple(samples), groups, tuple(rows))

    @property
    def order(self) -> list[int]:
        """Questions, row by row."""
        return [index for row in self.rows for index in row.members]

    @cached_property
    def row_of(self) -> dict[int, int]:
        """The row of each question."""
        return {index: place for place, row in enumerate(self.rows) for index in row.members}

    @cached_property
    def starts(self) -> dict[int, int]:
        """The slot of each question's first own token."""
        found: dict[int, int] = {}
        for row in self.rows:
            filled = row.shared
            for index in row.members:
                found[index] = filled
                filled += self.own(index)
        return found

    @property
    def filled(self) -> list[int]:
        """Slots of each row that what is given takes."""
        return [row.shared + sum(self.own(index) for index in row.members) for row in self.rows]

    def own(self, index: int) -> int:
        """Tokens of a question that it does not share."""
        return len(self.samples[index]) - self.rows[self.row_of[index]].shared

    def packed(self, group: Group) -> int:
        """Tokens of a group that are read in one packed row with those of others: the shared ones, or all of one."""
        return group.shared or len(self.samples[group.members[0]])

    def merged(self) -> list[EncodedSample]:
        """Of each group, the shared tokens followed by each question's own, as one sample to embed, not to read."""
        return [_merged([self.samples[index] for index in group.members], group.shared) for group in self.groups]


def spans_within(spans: Sequence[Span], length: int) -> list[Span]:
    """The spans of the first `length` tokens, which do not cut a picture."""
    found = []
    for span in spans:
        found.append(Span(span.kind, min(span.length, length)))
        length -= found[-1].length
    return found


def _prefix_key(item: EncodedSample) -> bytes:
    digest = hashlib.blake2b(item.patches.tobytes())
    digest.update(item.sequence.ids[: item.sequence.prefix].tobytes())
    digest.update(np.asarray(item.sequence.grids, np.int64).tobytes())
    for region in item.regions:
        digest.update(np.asarray([region.token_id, len(region.patch_rows)]).tobytes() + region.patch_rows.tobytes())
        digest.update(np.asarray(region.box).tobytes())
    return digest.digest()


def _merged(items: Sequence[EncodedSample], shared: int) -> EncodedSample:
    first, *others = items
    sequence = first.sequence
    parts = [sequence, *(item.sequence for item in others)]
    cuts = [0, *(shared for _ in others)]
    none = np.empty(0, np.int64)
    ids = np.concatenate([part.ids[cut:] for part, cut in zip(parts, cuts, strict=True)])
    mentions: list[list[np.ndarray]] = [[region.mention_rows] for region in first.regions]
    before = len(first)
    for item in others:
        for own, region in zip(mentions, item.regions, strict=True):
            rows = region.mention_rows
            own.append(rows[rows >= shared] - shared + before)
        before += len(item) - shared
    return replace(
        first,
        sequence=replace(
            sequence,
            ids=ids,
            positions=np.concatenate([part.positions[:, cut:] for part, cut in zip(parts, cuts, strict=True)], axis=1),
            spans=(Span("text", len(ids)),),
            vision=np.concatenate([part.vision[cut:] for part, cut in zip(parts, cuts, strict=True)]),
            target_rows=none,
            target_ids=none,
        ),
        regions=tuple(
            replace(region, mention_rows=np.concatenate(rows))
            for region, rows in zip(first.regions, mentions, strict=True)
        ),
        seg_rows=none,
        masks=(),
    )
