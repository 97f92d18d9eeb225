"""Prefix sharing: an image is embedded, read and cached once, and all questions about it continue from there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.sequence.attention_plan import Span
from sail_lightning.settings.renames import renamed

MAX_SEQUENCES_PER_ROW = 16
"""Questions in one row of the cache. Each of them attends over the slots of the others, which are masked, so an image
with many more questions gets several rows."""

__getattr__ = renamed(
    __name__, {"Group": "PrefixGroup", "Seating": "PrefixSchedule", "ROW_QUESTIONS": "MAX_SEQUENCES_PER_ROW"}
)


@dataclass(frozen=True)
class PrefixGroup:
    """Questions (indices into the batch) whose first `prefix_length` tokens are the same.

    A question that shares its prefix with no other is a group of its own with `prefix_length` 0.
    """

    members: tuple[int, ...]
    prefix_length: int


@dataclass(frozen=True)
class Row:
    """A row of the cache: the shared prefix of a group, if it has one, and then the suffixes of its questions in order.

    `group` and `members` are indices. A row without a shared prefix may hold questions of several groups; `group` is
    then that of the first.
    """

    group: int
    prefix_length: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class PrefixSchedule:
    """Which tokens of a batch of questions share a prefix, and which slots of the cache they take.

    Questions, groups and rows are indices. Everything here is known on the host; nothing waits for a device. The
    *prefix* of a question is what it shares with others of its group; its *suffix* is the rest.
    """

    samples: tuple[EncodedSample, ...]
    groups: tuple[PrefixGroup, ...]
    rows: tuple[Row, ...]
    decode_capacity: int

    @classmethod
    def build(cls, samples: Sequence[EncodedSample], decode_capacity: int) -> PrefixSchedule:
        """Groups samples by their images and visual prompts, and assigns the groups to rows of the cache.

        Args:
            samples: One or more questions, each with an open last turn.
            decode_capacity: How many slots each question has for the tokens of its answer.
        """
        members: dict[bytes, list[int]] = {}
        for index, item in enumerate(samples):
            key = _prefix_key(item) if item.sequence.prefix else str(index).encode()
            members.setdefault(key, []).append(index)
        groups = tuple(
            PrefixGroup(tuple(own), samples[own[0]].sequence.prefix if len(own) > 1 else 0) for own in members.values()
        )
        lengths = [len(item) + decode_capacity for item in samples]
        rows = _shared_rows(groups)
        longest = max((_row_length(row, lengths) for row in rows), default=0)
        rows += _packed_rows(groups, lengths, longest)
        # Neighbouring rows have about as many questions, so that one attention grid covers them with little padding.
        rows.sort(key=lambda row: (row.prefix_length == 0, -len(row.members)))
        return cls(tuple(samples), groups, tuple(rows), decode_capacity)

    @property
    def order(self) -> list[int]:
        """The questions, row by row."""
        return [index for row in self.rows for index in row.members]

    @cached_property
    def row_of(self) -> dict[int, int]:
        """The row of each question."""
        return {index: number for number, row in enumerate(self.rows) for index in row.members}

    @cached_property
    def suffix_starts(self) -> dict[int, int]:
        """The slot of the first token of each question's suffix."""
        found: dict[int, int] = {}
        for row in self.rows:
            start = row.prefix_length
            for index in row.members:
                found[index] = start
                start += self.suffix_length(index)
        return found

    @property
    def used_slots(self) -> list[int]:
        """How many slots of each row the questions take, before any answer."""
        return [row.prefix_length + sum(map(self.suffix_length, row.members)) for row in self.rows]

    @property
    def capacity(self) -> int:
        """How many slots a row needs for its questions and the first `decode_capacity` tokens of their answers."""
        return max(
            used + self.decode_capacity * len(row.members) for used, row in zip(self.used_slots, self.rows, strict=True)
        )

    def prefix_length(self, index: int) -> int:
        """The number of tokens that a question shares with others."""
        return self.rows[self.row_of[index]].prefix_length

    def suffix_length(self, index: int) -> int:
        """The number of tokens of a question that it does not share."""
        return len(self.samples[index]) - self.prefix_length(index)

    def prefill_length(self, group: PrefixGroup) -> int:
        """The number of tokens of a group in the packed prefill: its shared prefix, or the whole of one question."""
        return group.prefix_length or len(self.samples[group.members[0]])

    def block_lengths(self, group: PrefixGroup) -> list[int]:
        """The parts of a group in `merged`: what the packed prefill reads, then each suffix behind a shared prefix."""
        suffixes = [self.suffix_length(index) for index in group.members if group.prefix_length]
        return [self.prefill_length(group), *suffixes]

    def merged(self) -> list[EncodedSample]:
        """One sample per group, to embed but not to read: the shared prefix followed by the suffix of each question."""
        return [_merged([self.samples[index] for index in group.members], group.prefix_length) for group in self.groups]


def spans_within(spans: Sequence[Span], length: int) -> list[Span]:
    """Returns the spans of the first `length` tokens, a number that does not fall within an image."""
    found = []
    for span in spans:
        found.append(Span(span.kind, min(span.length, length)))
        length -= found[-1].length
    return found


def _shared_rows(groups: Sequence[PrefixGroup]) -> list[Row]:
    """Rows of the groups that share a prefix: one each, or several where a group has too many questions for one."""
    rows = []
    for number, group in enumerate(groups):
        if group.prefix_length:
            parts = np.array_split(group.members, -(-len(group.members) // MAX_SEQUENCES_PER_ROW))
            rows += [Row(number, group.prefix_length, tuple(part.tolist())) for part in parts]
    return rows


def _row_length(row: Row, lengths: Sequence[int]) -> int:
    """The slots that a row needs for questions that have so many tokens each."""
    return row.prefix_length + sum(lengths[index] - row.prefix_length for index in row.members)


def _packed_rows(groups: Sequence[PrefixGroup], lengths: Sequence[int], longest: int) -> list[Row]:
    """Rows of the questions that share nothing: packed, longest first, as far as no row exceeds the longest of all."""
    alone = [(number, lengths[group.members[0]]) for number, group in enumerate(groups) if not group.prefix_length]
    longest = max([longest, *(length for _, length in alone)])
    bins: list[tuple[list[int], int]] = []
    for number, length in sorted(alone, key=lambda pair: -pair[1]):
        for position, (own, filled) in enumerate(bins):
            if len(own) < MAX_SEQUENCES_PER_ROW and filled + length <= longest:
                bins[position] = ([*own, number], filled + length)
                break
        else:
            bins.append(([number], length))
    return [Row(own[0], 0, tuple(groups[number].members[0] for number in own)) for own, _ in bins]


def _prefix_key(item: EncodedSample) -> bytes:
    """A digest of everything that the states of a question's prefix depend on."""
    digest = hashlib.blake2b(item.patches.tobytes())
    digest.update(item.sequence.ids[: item.sequence.prefix].tobytes())
    digest.update(np.asarray(item.sequence.grids, np.int64).tobytes())
    for region in item.regions:
        digest.update(np.asarray([region.token_id, len(region.patch_rows)]).tobytes() + region.patch_rows.tobytes())
        digest.update(np.asarray(region.box).tobytes())
    return digest.digest()


def _merged(items: Sequence[EncodedSample], prefix_length: int) -> EncodedSample:
    """The first sample, followed by what the others have behind the prefix, as one sample."""
    first, *others = items
    sequence = first.sequence
    parts = [sequence, *(item.sequence for item in others)]
    cuts = [0, *(prefix_length for _ in others)]
    none = np.empty(0, np.int64)
    ids = np.concatenate([part.ids[cut:] for part, cut in zip(parts, cuts, strict=True)])
    mentions: list[list[np.ndarray]] = [[region.mention_rows] for region in first.regions]
    before = len(first)
    for item in others:
        for own, region in zip(mentions, item.regions, strict=True):
            rows = region.mention_rows
            own.append(rows[rows >= prefix_length] - prefix_length + before)
        before += len(item) - prefix_length
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
