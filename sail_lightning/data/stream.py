"""Training data as a stream of packed batches: deterministic, sharded over ranks and workers, without end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.batch import Counts, PackedBatch, Place
from sail_lightning.encoding.collate import pack, pack_stream
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailError

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a stream has been trained on: what a checkpoint keeps, so that a resumed run reads on exactly there.

    A shard is what one worker of one rank reads, `rank * workers + worker`; workers take turns.

    `places`: of the shards; one that is not named is at its beginning.
    `turn`: the worker, the same on each rank, whose batch comes next.
    """

    places: dict[int, Place] = field(default_factory=dict)
    turn: int = 0

    def advanced(self, batch: PackedBatch, workers: int) -> Progress:
        """The progress after one more batch."""
        if batch.cursor is None:
            return self
        shard, place = batch.cursor
        return Progress({**self.places, shard: place}, (shard % workers + 1) % workers)

    def merged(self, others: Iterable[dict[int, Place]]) -> Progress:
        """With the places of other ranks. Each rank moves its own shards on and knows the others' from before."""
        places = dict(self.places)
        for shard, place in (item for other in others for item in other.items()):
            places[shard] = max(place, places.get(shard, place), key=lambda one: one.read)
        return Progress(places, self.turn)

    def reshared(self, before: int, now: int) -> Progress:
        """The same samples read by another number of shards: what is left is dealt out anew, none lost or doubled.

        Sample n of shard s is number s + n * shards of the stream.
        """
        places = {shard: self.places.get(shard, Place()) for shard in range(before)}
        end = max(shard + (place.next - 1) * before + 1 for shard, place in places.items())
        left = {shard + number * before for shard, place in places.items() for number in place.waiting}
        for shard, place in places.items():
            left |= set(range(shard + place.next * before, end, before))
        dealt = {}
        for shard in range(now):
            waiting = sorted(number // now for number in left if number % now == shard)
            dealt[shard] = Place(max(0, -(-(end - shard) // now)), tuple(waiting))
        return Progress(dealt)


FEW_FAULTS = 10
"""A run goes on with so many broken records, whatever their share: a share of a few records says nothing."""


@dataclass(frozen=True)
class _Numbered:
    """An encoded sample and its number in the shard."""

    number: int
    sample: EncodedSample

    def __len__(self) -> int:
        return len(self.sample)


class PackedStream(IterableDataset[PackedBatch]):
    """Encodes and packs a source. A finite source is repeated, newly shuffled on each pass.

    Training is counted in steps, so every rank always has a next batch and none waits for another.

    Args:
        source: what to read.
        encoder: of the model that will read it.
        token_budget: most tokens a batch.
        seed: of the shuffling.
        rank: of this process.
        world_size: number of processes.
        look_ahead: encoded samples among which each batch chooses (`pack_stream`).
        max_fault_rate: share of a shard's records that may be broken; 0 stops at the first.

    Broken records are skipped, and each is told once, with the batch that follows it (`PackedBatch.faults`).

    `progress` is where the next iterator begins. It is read when that starts: by then worker processes have a copy.
    """

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        token_budget: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        look_ahead: int = 1,
        max_fault_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.source, self.encoder, self.token_budget, self.seed = source, encoder, token_budget, seed
        self.rank, self.world_size, self.look_ahead = rank, world_size, look_ahead
        self.max_fault_rate = max_fault_rate
        self.progress = Progress()
        self._shuffled = (-1, np.empty(0, np.int64))  # a pass, and its order
        self._told = False

    def __iter__(self) -> Iterator[PackedBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # A loader asks its worker 0 first: that one reads for the worker whose turn it is.
        shard = self.rank * workers + (worker + self.progress.turn) % workers
        place = self.progress.places.get(shard, Place())
        skipped: dict[int, str] = {}
        samples = self._encoded(shard, self.world_size * workers, place, skipped)
        for group in pack_stream(samples, self.token_budget, self.look_ahead):
            faults = tuple(skipped.values())
            place = place.after([*skipped, *(item.number for item in group)])
            skipped.clear()
            batch = replace(pack([item.sample for item in group]), cursor=(shard, place), faults=faults)
            self._tell(batch)
            yield batch

    def _encoded(self, shard: int, shards: int, place: Place, skipped: dict[int, str]) -> Iterator[_Numbered]:
        """What a shard has left to read, in its own order: that is also the order in which samples wait.

        Records that cannot be read are put into `skipped`.
        """
        faults = 0
        for read, number in enumerate(chain(place.waiting, count(place.next)), 1):
            of_stream = shard + number * shards
            try:
                sample = self.source.draw(self._index(of_stream), np.random.default_rng([self.seed, of_stream]))
                encoded = self.encoder.encode(sample)
            except SailError as error:
                faults += 1
                skipped[number] = str(error)
                limit = FEW_FAULTS if self.max_fault_rate else 0
                if faults > max(limit, self.max_fault_rate * read):
                    raise self._too_many(faults, read, error) from None
                continue
            yield _Numbered(number, encoded)

    def _too_many(self, faults: int, read: int, last: SailError) -> SailError:
        if faults == 1:
            return type(last)(f"{last}; to skip such records, set data.max_fault_rate")
        return type(last)(
            f"{faults} of the {read} records read so far are broken, more than data.max_fault_rate "
            f"({self.max_fault_rate:g}) allows; the last: {last}"
        )

    def _tell(self, batch: PackedBatch) -> None:
        """Says once that a sample is longer than the budget."""
        if len(batch) <= self.token_budget or self._told:
            return
        self._told = True
        name = " ".join(part for part in (batch.samples[0].source, batch.samples[0].id) if part)
        logger.warning(
            "%s has %s tokens, more than token_budget %s: it makes a batch of its own, as will others that are so long",
            name or "a sample",
            len(batch),
            self.token_budget,
        )

    def _index(self, number: int) -> int:
        """The index in the source of a sample of the stream: passes over a finite source are joined end to end."""
        if self.source.length is None:
            return number
        epoch, place = divmod(number, self.source.length)
        if epoch != self._shuffled[0]:
            self._shuffled = (epoch, self.source.order(np.random.default_rng([self.seed, epoch])))
        return int(self._shuffled[1][place])


class Windows:
    """Attaches to each batch the counts of its accumulation window, so that sums can be divided before the first
    backward pass. Wraps any iterable of batches; looks one window ahead.

    Args:
        batches: to wrap.
        size: batches a window.
        begun: batches of the first epoch that a resumed run had trained on before; what they leave of a window is one
            of its own.
        limit: batches of an epoch, after which the optimiser steps, whole window or not; None where it has no end.
    """

    def __init__(self, batches: Iterable[PackedBatch], size: int, begun: int = 0, limit: int | None = None) -> None:
        self.batches, self.size, self.begun, self.limit = batches, size, begun, limit

    def __iter__(self) -> Iterator[PackedBatch]:
        batches = iter(self.batches)
        # An epoch may have become shorter than what was trained on of it: then this one is new.
        done, self.begun = (self.begun if self.limit is None or self.begun < self.limit else 0), 0
        while window := list(islice(batches, self._end(done) - done)):
            done += len(window)
            total = sum((batch.counts for batch in window), Counts(0, 0, 0))
            for batch in window:
                yield replace(batch, window=total)

    def _end(self, done: int) -> int:
        """Where in the epoch the window ends that the next batch is in."""
        end = (done // self.size + 1) * self.size
        return end if self.limit is None else min(end, self.limit)
