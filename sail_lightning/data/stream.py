"""Training data as a stream of packed batches: deterministic, sharded over ranks and workers, without end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from sail_lightning.batch import Counts, PackedBatch
from sail_lightning.data.collate import pack, pack_stream
from sail_lightning.data.sources.base import Source
from sail_lightning.data.transform import EncodedSample, Encoder


@dataclass
class Progress:
    """How far a stream has been trained on: what a checkpoint keeps, so that a resumed run reads on exactly there.

    A shard is what one worker of one rank reads, `rank * workers + worker`; workers take turns.

    `places`: samples trained on, by shard; a shard that is not named is at its beginning.
    `turn`: the worker, the same on each rank, whose batch comes next.
    """

    places: dict[int, int] = field(default_factory=dict)
    turn: int = 0

    def advanced(self, batch: PackedBatch, workers: int) -> Progress:
        """The progress after one more batch."""
        if batch.cursor is None:
            return self
        shard, place = batch.cursor
        return Progress({**self.places, shard: place}, (shard % workers + 1) % workers)


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

    `progress` is where the next iterator begins. It is read when that starts: by then worker processes have a copy.
    """

    def __init__(
        self, source: Source, encoder: Encoder, token_budget: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__()
        self.source, self.encoder, self.token_budget, self.seed = source, encoder, token_budget, seed
        self.rank, self.world_size = rank, world_size
        self.progress = Progress()

    def __iter__(self) -> Iterator[PackedBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # A loader asks its worker 0 first: that one reads for the worker whose turn it is.
        shard = self.rank * workers + (worker + self.progress.turn) % workers
        place = self.progress.places.get(shard, 0)
        for group in pack_stream(self._encoded(shard, self.world_size * workers, place), self.token_budget):
            place += len(group)
            yield replace(pack(group), cursor=(shard, place))

    def _encoded(self, shard: int, shards: int, place: int) -> Iterator[EncodedSample]:
        for index in self._order(shard + place * shards, shards):
            yield self.encoder.encode(self.source[index])

    def _order(self, first: int, step: int) -> Iterator[int]:
        """Every `step`-th index of the source, passes over a finite one joined end to end, from place `first` on."""
        length = self.source.length
        if length is None:
            yield from count(first, step)
            return
        shuffled, order = -1, np.empty(0, np.int64)
        for place in count(first, step):
            epoch, index = divmod(place, length)
            if epoch != shuffled:
                shuffled, order = epoch, np.random.default_rng([self.seed, epoch]).permutation(length)
            yield int(order[index])


class Windows:
    """Attaches to each batch the counts of its accumulation window, so that sums can be divided before the first
    backward pass. Wraps any iterable of batches; looks one window ahead.

    Args:
        batches: to wrap.
        size: batches a window.
        begun: batches of the first window that a resumed run had trained on before; its rest is a window of its own.
    """

    def __init__(self, batches: Iterable[PackedBatch], size: int, begun: int = 0) -> None:
        self.batches, self.size, self.begun = batches, size, begun

    def __iter__(self) -> Iterator[PackedBatch]:
        batches = iter(self.batches)
        begun, self.begun = self.begun % self.size, 0
        while window := list(islice(batches, self.size - begun)):
            begun = 0
            total = sum((batch.counts for batch in window), Counts(0, 0, 0))
            for batch in window:
                yield replace(batch, window=total)
