"""Checks every record of every split in parallel, and collects the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from sail_lightning.data.doctor.checks import Checker
from sail_lightning.data.doctor.duplicates import HELD_OUT, HeldOut, SourceScan, copies, duplicates
from sail_lightning.data.doctor.leaf_sources import LeafSource, flatten_sources
from sail_lightning.data.doctor.report import Report
from sail_lightning.data.doctor.state import Chunk, State
from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError

T = TypeVar("T")
FORMAT = 3
"""Version of the stored state; a check does not resume from another version."""
CHUNK = 128
"""Number of records that a process checks at a time, and that a stopped check may have to repeat."""


def check(
    splits: Mapping[str, Source],
    folder: Path,
    encoder: Encoder | None = None,
    only: Collection[str] | None = None,
    workers: int = 0,
    limit: int | None = None,
    restart: bool = False,
    settings: str = "",
    chunk: int = CHUNK,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Checks every record.

    Args:
        splits: Sources by split: `train`, `val`, `test`.
        folder: Folder of the state, for resuming.
        encoder: Encoder of the model that will read them; without one, lengths are not checked.
        only: Splits that are read; all by default. The others still count as held out.
        workers: Number of reading processes; 0 reads in this one.
        limit: Number of first records of each source that are read; all by default, and 1,000 of an endless one.
        restart: Whether to start anew, whatever the state.
        settings: Text that distinguishes this check from others in the same folder.
        chunk: Number of records that a process checks at a time.
        tell: Called with the number of records that are done and the number of all.

    Raises:
        SailUsageError: The settings of a mixture contradict each other.
        SailError: A reading process died.
    """
    chosen = [split for split in splits if only is None or split in only]
    read = [leaf for split in chosen for leaf in flatten_sources(split, splits[split], limit)]
    tasks = [(place, start) for place, leaf in enumerate(read) for start in range(0, len(leaf), chunk)]
    state = State(folder, _fingerprint(read, encoder, [settings, limit, chunk]), restart)
    total = sum(map(len, read))
    done = sum(one.counts[0] for one in state.done.values())
    tell(done, total)
    left = [number for number in range(len(tasks)) if number not in state.done]
    for one in _read(_Chunks(read, tasks, chunk, encoder), left, min(workers, len(left)) if len(left) > 1 else 0):
        state.add(one)
        done += one.counts[0]
        tell(done, total)
    seen = [SourceScan(leaf) for leaf in read]
    for number, (place, _) in enumerate(tasks):
        seen[place].add(state.done[number])
    held_out = HeldOut(splits)
    read_too = [one for one in seen if one.leaf.split in HELD_OUT]
    for leaf in seen:
        if leaf.leaf.split == "train":  # benchmarks do ask some questions twice
            leaks = list(held_out.leaks(leaf))
            leaf.faults += [*duplicates(leaf), *leaks, *copies(leaf, read_too, {fault.index for fault in leaks})]
    state.end()
    return Report(tuple(leaf.report() for leaf in seen), None if encoder is None else encoder.max_tokens)


def _fingerprint(read: Sequence[LeafSource], encoder: Encoder | None, settings: list[object]) -> str:
    """Returns a hash of the settings, the records that are used and the annotation files."""
    parts: list[object] = [FORMAT, *settings, encoder and [encoder.max_tokens, encoder.max_side, encoder.patch_size]]
    for leaf in read:
        files = leaf.source.files if isinstance(leaf.source, IndexedSource) else ()
        stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()]
        used = hashlib.sha256(np.asarray(leaf.indices, np.int64).tobytes()).hexdigest()
        parts.append([leaf.split, leaf.name, type(leaf.source).__qualname__, len(leaf), used, stamps])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


class _Chunks(Dataset[Chunk]):
    """Dataset of checked chunks, by chunk number."""

    def __init__(
        self, read: Sequence[LeafSource], tasks: Sequence[tuple[int, int]], size: int, encoder: Encoder | None
    ) -> None:
        self.read, self.tasks, self.size, self.checker = read, tasks, size, Checker(encoder)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> Chunk:
        place, start = self.tasks[number]
        leaf = self.read[place]
        some = range(start, min(start + self.size, len(leaf)))
        return Chunk.of(number, [self.checker.look(leaf.source, leaf.record(one)) for one in some])


def _read(chunks: _Chunks, numbers: Sequence[int], workers: int) -> Iterator[Chunk]:
    loader = DataLoader(chunks, batch_size=None, sampler=numbers, num_workers=workers, collate_fn=_as_it_is)
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SailError(
            f"a process that read records died ({str(error).splitlines()[0]}); the check goes on from there when it is "
            "run again, with --workers 0 to see why"
        ) from None


def _as_it_is(item: T) -> T:
    return item
