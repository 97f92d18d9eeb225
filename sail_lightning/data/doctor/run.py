"""Reads every record of every split, in parallel, and puts what was found together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from sail_lightning.data.doctor.checks import Checker
from sail_lightning.data.doctor.duplicates import HELD_OUT, HeldOut, Seen, copies, duplicates
from sail_lightning.data.doctor.leaf_sources import Leaf, leaves
from sail_lightning.data.doctor.report import Report
from sail_lightning.data.doctor.state import Chunk, State
from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError

T = TypeVar("T")
FORMAT = 2
"""Of the state; another one is not gone on with."""
CHUNK = 128
"""Records that a process looks at in one go, and that a stopped check may have to look at again."""


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
    """Looks at every record.

    Args:
        splits: sources by split: `train`, `val`, `test`.
        folder: where the state is kept.
        encoder: of the model that shall read them; without one, lengths are not looked at.
        only: which splits are read; all by default. The others still count as held out.
        workers: processes that read; 0 reads in this one.
        limit: first records of each source that are read; all by default, and 1,000 of one without an end.
        restart: begin anew, whatever the state.
        settings: what else tells this check from another in the same folder.
        chunk: records that a process looks at in one go.
        tell: called with the number of records that are done and that of all.

    Raises:
        SailUsageError: a mixture whose settings contradict each other.
        SailError: a process that died.
    """
    chosen = [split for split in splits if only is None or split in only]
    read = [leaf for split in chosen for leaf in leaves(split, splits[split], limit)]
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
    seen = [Seen(leaf) for leaf in read]
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


def _fingerprint(read: Sequence[Leaf], encoder: Encoder | None, settings: list[object]) -> str:
    """Changes with the settings, the records that are used and the annotation files."""
    parts: list[object] = [FORMAT, *settings, encoder and [encoder.max_tokens, encoder.max_side, encoder.patch_size]]
    for leaf in read:
        files = leaf.source.files if isinstance(leaf.source, IndexedSource) else ()
        stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()]
        used = hashlib.sha256(np.asarray(leaf.indices, np.int64).tobytes()).hexdigest()
        parts.append([leaf.split, leaf.name, type(leaf.source).__qualname__, len(leaf), used, stamps])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


class _Chunks(Dataset[Chunk]):
    """Chunks by number."""

    def __init__(
        self, read: Sequence[Leaf], tasks: Sequence[tuple[int, int]], size: int, encoder: Encoder | None
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
