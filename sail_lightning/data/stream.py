"""Training data as a stream of packed batches: deterministic, sharded over ranks and workers, without end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.batch import Counts, PackedBatch, ShardCursor
from sail_lightning.encoding.collate import pack, pack_stream
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailError
from sail_lightning.settings.renames import renamed

logger = logging.getLogger(__name__)


@dataclass
class StreamState:
    """How far training has read a stream; checkpoints store it, so that a resumed run continues exactly there.

    A shard is what one worker of one rank reads: shard `rank * workers + worker`. Workers take turns.

    Attributes:
        cursors: The cursor of each shard; a shard without one is at its beginning.
        turn: Index of the worker, the same on each rank, that yields the next batch.
    """

    cursors: dict[int, ShardCursor] = field(default_factory=dict)
    turn: int = 0

    def advanced(self, batch: PackedBatch, workers: int) -> StreamState:
        """The state after one more batch."""
        if batch.cursor is None:
            return self
        shard, cursor = batch.cursor
        return StreamState({**self.cursors, shard: cursor}, (shard % workers + 1) % workers)

    def merged(self, others: Iterable[dict[int, ShardCursor]]) -> StreamState:
        """The state with the cursors of all ranks. A rank's cursors of other ranks' shards are out of date."""
        cursors = dict(self.cursors)
        for shard, cursor in (item for other in others for item in other.items()):
            cursors[shard] = max(cursor, cursors.get(shard, cursor), key=lambda one: one.read)
        return StreamState(cursors, self.turn)

    def reshard(self, before: int, now: int) -> StreamState:
        """The state for another number of shards: the samples left are distributed anew, none lost or read twice.

        Sample n of shard s is sample s + n * shards of the stream.
        """
        cursors = {shard: self.cursors.get(shard, ShardCursor()) for shard in range(before)}
        end = max(shard + (cursor.next - 1) * before + 1 for shard, cursor in cursors.items())
        left = {shard + number * before for shard, cursor in cursors.items() for number in cursor.waiting}
        for shard, cursor in cursors.items():
            left |= set(range(shard + cursor.next * before, end, before))
        dealt = {}
        for shard in range(now):
            waiting = sorted(number // now for number in left if number % now == shard)
            dealt[shard] = ShardCursor(max(0, -(-(end - shard) // now)), tuple(waiting))
        return StreamState(dealt)


MIN_FAULTS_BEFORE_ABORT = 10
"""A run continues with this many broken records whatever their share, which means little for so few."""


@dataclass(frozen=True)
class _Numbered:
    """An encoded sample and its number within the shard."""

    number: int
    sample: EncodedSample

    def __len__(self) -> int:
        return len(self.sample)


class PackedStream(IterableDataset[PackedBatch]):
    """Encodes and packs a source. A finite source repeats, shuffled anew in each pass.

    Training is counted in steps: every rank always has a next batch, and none waits for another. Broken records are
    skipped; each is reported once, with the batch that follows it (`PackedBatch.faults`).

    Args:
        source: The source to read.
        encoder: Encoder of the model that is trained.
        token_budget: Largest number of tokens in a batch; a longer sample makes a batch of its own.
        seed: Seed for shuffling.
        rank: Rank of this process.
        world_size: Number of processes.
        packing_buffer_size: Number of encoded samples from which each batch is filled (`pack_stream`).
        max_error_rate: Share of a shard's records that may be broken, 0 to 1; 0 stops at the first.

    Attributes:
        state: Where the next iterator begins. It is read when that iterator starts, when worker processes have
            their copy of it.
    """

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        token_budget: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        packing_buffer_size: int = 1,
        max_error_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.source, self.encoder, self.token_budget, self.seed = source, encoder, token_budget, seed
        self.rank, self.world_size, self.packing_buffer_size = rank, world_size, packing_buffer_size
        self.max_error_rate = max_error_rate
        self.state = StreamState()
        self._shuffled = (-1, np.empty(0, np.int64))  # a pass, and its order
        self._warned = False

    def __iter__(self) -> Iterator[PackedBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # A loader asks its worker 0 first: that one reads for the worker that has the turn.
        shard = self.rank * workers + (worker + self.state.turn) % workers
        cursor = self.state.cursors.get(shard, ShardCursor())
        skipped: dict[int, str] = {}
        samples = self._encoded(shard, self.world_size * workers, cursor, skipped)
        for group in pack_stream(samples, self.token_budget, self.packing_buffer_size):
            faults = tuple(skipped.values())
            cursor = cursor.after([*skipped, *(item.number for item in group)])
            skipped.clear()
            batch = replace(pack([item.sample for item in group]), cursor=(shard, cursor), faults=faults)
            self._warn_once(batch)
            yield batch

    def _encoded(self, shard: int, shards: int, cursor: ShardCursor, skipped: dict[int, str]) -> Iterator[_Numbered]:
        """The samples that a shard has left to read, in the shard's order, in which samples also wait.

        `skipped` is filled with the records that cannot be read: number within the shard to message.
        """
        faults = 0
        for read, number in enumerate(chain(cursor.waiting, count(cursor.next)), 1):
            of_stream = shard + number * shards
            try:
                sample = self.source.sample_record(
                    self._index(of_stream), np.random.default_rng([self.seed, of_stream])
                )
                encoded = self.encoder.encode(sample)
            except SailError as error:
                faults += 1
                skipped[number] = str(error)
                limit = MIN_FAULTS_BEFORE_ABORT if self.max_error_rate else 0
                if faults > max(limit, self.max_error_rate * read):
                    raise self._too_many(faults, read, error) from None
                continue
            yield _Numbered(number, encoded)

    def _too_many(self, faults: int, read: int, last: SailError) -> SailError:
        if faults == 1:
            return type(last)(f"{last}; to skip such records, set data.max_error_rate")
        return type(last)(
            f"{faults} of the {read} records read so far are broken, more than data.max_error_rate "
            f"({self.max_error_rate:g}) allows; the last: {last}"
        )

    def _warn_once(self, batch: PackedBatch) -> None:
        """Warns once that a sample is longer than the budget."""
        if len(batch) <= self.token_budget or self._warned:
            return
        self._warned = True
        name = " ".join(part for part in (batch.samples[0].source, batch.samples[0].id) if part)
        logger.warning(
            "%s has %s tokens, more than token_budget %s: it makes a batch of its own, as others of that length will",
            name or "a sample",
            len(batch),
            self.token_budget,
        )

    def _index(self, number: int) -> int:
        """The index in the source of sample `number` of the stream, which joins the passes over a finite source."""
        if self.source.length is None:
            return number
        epoch, index = divmod(number, self.source.length)
        if epoch != self._shuffled[0]:
            self._shuffled = (epoch, self.source.order(np.random.default_rng([self.seed, epoch])))
        return int(self._shuffled[1][index])


class AccumulationWindows:
    """Attaches to each batch the counts of its accumulation window, so that losses can be divided before the first
    backward pass. It wraps any iterable of batches and reads one window ahead.

    Args:
        batches: The batches to wrap.
        size: Number of batches in a window.
        begun: Number of batches of the first epoch that a resumed run has already trained on; the rest of the window
            that they end in is a window of its own.
        limit: Number of batches in an epoch, after which the optimizer steps even within a window; None if the epoch
            has no end.
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
                yield replace(batch, accumulation_counts=total)

    def _end(self, done: int) -> int:
        """The index in the epoch at which the window of the next batch ends."""
        end = (done // self.size + 1) * self.size
        return end if self.limit is None else min(end, self.limit)


__getattr__ = renamed(__name__, {"Progress": "StreamState", "Windows": "AccumulationWindows"})
