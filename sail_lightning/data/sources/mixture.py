"""A data source that mixes others: repeated or weighted, limited, and without the images of held-out sets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.sources.base import Source
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.registry import register
from sail_lightning.sample import Sample
from sail_lightning.settings.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt

CYCLE = 997
"""Number of samples within which a weighted mixture has its exact shares, to one sample; each source has at least one.

It is a prime, so that readers that take every n-th sample still see every position of the cycle.
"""
SPREAD = 32
"""Largest number of slots by which a source's position in the cycle is moved at random."""


@register
class Mixture(Source):
    """Mixes sources. It keeps no state: an index determines its record, so runs resume and shard as with one source.

    Without `weights` a pass holds each record as often as `repeats` says, and is shuffled as a whole. With `weights`
    the mixture is endless: sources are interleaved evenly in these shares, each in shuffled passes of its own.

    Args:
        sources: Sources by name; null drops one that an earlier config named.
        repeats: Number of times that a pass holds each record, by source; 1 by default. Not allowed with `weights`.
        weights: Shares by source, of any sum, at least one sample in 997; a source without one is left out.
        limits: Number of records that are used, by source: the same random ones in every run.
        exclude: Held-out sets by name; records with their images are left out of all sources.
        seed: Seed of the choice of limited records, and of the order of a weighted mixture.

    Raises:
        SailUsageError: Arguments contradict each other, or name an unknown source.
    """

    def __init__(
        self,
        sources: dict[str, Source | None],
        repeats: dict[str, PositiveInt] | None = None,
        weights: dict[str, NonNegativeFloat] | None = None,
        limits: dict[str, PositiveInt] | None = None,
        exclude: dict[str, Source | None] | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.sources = {name: source for name, source in sources.items() if source is not None}
        self.repeats, self.limits, self.seed = dict(repeats or {}), dict(limits or {}), seed
        self.weights = {name: weight for name, weight in (weights or {}).items() if weight}
        self.exclude = {name: source for name, source in (exclude or {}).items() if source is not None}
        self._orders: dict[
            str, tuple[int, NDArray[np.int64]]
        ] = {}  # by weighted source: number of a pass, and its order
        if not self.sources:
            raise SailUsageError("a mixture needs at least one source")
        for argument in ("repeats", "limits", "weights"):
            for name in getattr(self, argument):
                if name not in sources:
                    raise SailUsageError(f"{argument} names {name}, but the sources are {', '.join(sources)}")
        if self.weights and self.repeats:
            raise SailUsageError("a mixture has repeats or weights, not both: weights are shares, however many records")
        if weights is not None:
            self.sources = {name: source for name, source in self.sources.items() if name in self.weights}
            if not self.sources:
                raise SailUsageError("the weights leave no source")
            if len(self.sources) > CYCLE:
                raise SailUsageError(f"a mixture can weigh {CYCLE} sources, not {len(self.sources)}")

    @property
    def children(self) -> Mapping[str, Source]:
        return self.sources

    @property
    def length(self) -> int | None:
        if self.weights:
            return None
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        source, place = self._find(index)
        return source[place]

    def sample_record(self, index: int, rng: np.random.Generator) -> Sample:
        source, place = self._find(index)
        return source.sample_record(place, rng)

    def full_record(self, index: int) -> Sample:
        source, place = self._find(index)
        return source.full_record(place)

    def faults(self, index: int) -> list[str]:
        source, place = self._find(index)
        return source.faults(place)

    def image_keys(self) -> NDArray[np.uint64]:
        used = [
            (source.image_keys()[self._kept[name]], self.repeats.get(name, 1)) for name, source in self.sources.items()
        ]
        return np.concatenate([np.tile(keys, repeats) for keys, repeats in used])

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns a random mix of the sources, in which each one keeps its own `order`."""
        starts = np.concatenate([[0], self._ends[:-1]])
        owners = rng.permutation(np.repeat(np.arange(len(starts)), np.diff(self._ends, prepend=0)))
        order = np.empty(len(owners), np.int64)
        for part, name in enumerate(self.sources):
            count = len(self._kept[name])
            passes = [again * count + self._own_order(name, rng) for again in range(self.repeats.get(name, 1))]
            order[owners == part] = starts[part] + np.concatenate(passes)
        return order

    def _own_order(self, name: str, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns one pass over a source's used records, as indices into them."""
        kept, order = self._kept[name], self.sources[name].order(rng)
        return np.searchsorted(kept, order[np.isin(order, kept)])

    def records(self, name: str) -> NDArray[np.int64] | None:
        """Returns the indices of the records of a source that are used; None for an endless source."""
        return self._kept.get(name)

    # -- numbers to records -------------------------------------------------------------------------------------------

    def _find(self, index: int) -> tuple[Source, int]:
        if self.weights:
            return self._interleaved(index)
        if not 0 <= index < self._ends[-1]:
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        name = list(self.sources)[part]
        kept = self._kept[name]
        return self.sources[name], int(kept[(index - (self._ends[part - 1] if part else 0)) % len(kept)])

    def _interleaved(self, index: int) -> tuple[Source, int]:
        cycle, slot = divmod(index, CYCLE)
        owners, ranks = self._cycle
        part = int(owners[slot])
        name = list(self.sources)[part]
        number = cycle * int((owners == part).sum()) + int(ranks[slot])
        kept = self._kept.get(name)
        if kept is None:
            return self.sources[name], number
        epoch, place = divmod(number, len(kept))
        known, order = self._orders.get(name, (-1, kept))
        if known != epoch:
            order = self._own_order(name, np.random.default_rng([self.seed, 1, part, epoch]))
            self._orders[name] = (epoch, order)
        return self.sources[name], int(kept[order[place]])

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        counts = []
        for name in self.sources:
            if name not in self._kept:
                raise SailUsageError(f"{name} is endless; give the mixture weights, or the source a number of samples")
            counts.append(len(self._kept[name]) * self.repeats.get(name, 1))
        return np.cumsum(counts)

    @cached_property
    def _kept(self) -> dict[str, NDArray[np.int64]]:
        """Indices of the records that are used, by finite source."""
        parts = [source.image_keys() for source in self.exclude.values()]
        held_out = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
        held_out = held_out[held_out != 0]
        kept = {}
        for place, (name, source) in enumerate(self.sources.items()):
            if source.length is None:
                if name in self.limits:
                    raise SailUsageError(
                        f"{name} is endless and cannot be limited; give the source itself a number of samples"
                    )
                continue
            use = np.arange(source.length)
            if len(held_out):
                use = use[~np.isin(source.image_keys(), held_out)]
            if (limit := self.limits.get(name)) is not None and limit < len(use):
                use = np.sort(np.random.default_rng([self.seed, 0, place]).choice(use, limit, replace=False))
            if not len(use):
                raise SailError(f"{name} has no records{' that exclude leaves' if len(held_out) else ''}; drop it")
            kept[name] = use
        return kept

    @cached_property
    def _cycle(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of each slot of a cycle, and the number of earlier slots of that source in the cycle.

        A source with n slots has one in each n-th of the cycle, at a random position that is moved back by up to
        `SPREAD` slots. With even spacing, two readers that take every other sample could each see one source only.
        """
        weights = np.array([self.weights[name] for name in self.sources])
        share = weights / weights.sum() * CYCLE
        counts = np.maximum(np.floor(share).astype(int), 1)
        while (left := CYCLE - counts.sum()) != 0:  # largest remainders first
            gap = np.where((counts > 1) | (left > 0), share - counts, np.inf)
            counts[np.argmax(gap) if left > 0 else np.argmin(gap)] += 1 if left > 0 else -1
        rng = np.random.default_rng([self.seed, 2])
        places = np.concatenate([(np.arange(count) + rng.random(count)) / count for count in counts])
        places += rng.random(CYCLE) * SPREAD / CYCLE
        owners = np.repeat(np.arange(len(counts)), counts)[np.argsort(places)]
        ranks = np.empty(CYCLE, np.int64)
        for part, count in enumerate(counts):
            ranks[owners == part] = np.arange(count)
        return owners, ranks
