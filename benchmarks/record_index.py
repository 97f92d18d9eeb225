"""Measures the time to make and open an index of records, and the memory that a reader of it needs.

A record is a photo with two objects, each an outline of ten corners and three phrases: about 600 bytes. The baseline is
the official style: the annotation file parsed by each process that reads it, and its records kept as dictionaries.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sail_lightning.data import records

READ = 20_000
"""Number of records that a reader reads, in random order."""
Opener = Callable[[Path], Callable[[int], Any]]
"""Opens the index at a path; returns a function that reads a record by index."""


def measure(count: int = 1_000_000) -> dict[str, float]:
    """Builds and reads an index of `count` records, each reader in a fresh process.

    Returns:
        `records`, `build_s`, `disk_mib`; of a reader `open_s`, until the first record is read, `records_per_s`, and
        `memory_mib`, its own (shared with no other) beyond that of an idle process; of the baseline `baseline_open_s`
        and `baseline_memory_mib`.
    """
    with tempfile.TemporaryDirectory() as folder:
        index, listed = Path(folder) / "index", Path(folder) / "rows.json"
        start = time.perf_counter()
        records.build(index, rows(count), lambda row: row["image"])
        built = time.perf_counter() - start
        with listed.open("w", encoding="utf-8") as file:  # one list, as annotation files are
            file.write("[" + ",\n".join(json.dumps(row) for row in rows(count)) + "]")
        ours = _in_a_fresh_process(_open_index, index, count)
        baseline = _in_a_fresh_process(_open_list, listed, count)
        return {
            "records": float(count),
            "build_s": built,
            "disk_mib": sum(path.stat().st_size for path in index.iterdir()) / 2**20,
            **ours,
            **{f"baseline_{name}": baseline[name] for name in ("open_s", "memory_mib")},
        }


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Yields records that differ from each other."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 640, (64, 20)).tolist()
    for number in range(count):
        objects = [
            {
                "ann_id": 2 * number + index,
                "segmentation": [corners[(number + index) % 64]],
                "phrases": [f"the {kind} thing number {number}" for kind in ("left", "largest", "red and round")],
            }
            for index in range(2)
        ]
        yield {"id": str(number), "image": f"{number:012d}.jpg", "height": 480, "width": 640, "objects": objects}


def _open_index(path: Path) -> Callable[[int], Any]:
    return records.RecordIndex(path).__getitem__


def _open_list(path: Path) -> Callable[[int], Any]:
    found: list[Any] = json.loads(path.read_bytes())
    return found.__getitem__


def _in_a_fresh_process(opener: Opener, path: Path, count: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_reader, args=(opener, path, count, sender))
    process.start()
    found: dict[str, float] = receiver.recv()
    process.join()
    return found


def _reader(opener: Opener, path: Path, count: int, sender: Any) -> None:
    idle = _private_mib()
    start = time.perf_counter()
    read = opener(path)
    read(0)
    opened = time.perf_counter() - start
    order = np.random.default_rng(1).integers(0, count, READ)
    start = time.perf_counter()
    for number in order:
        read(int(number))
    taken = time.perf_counter() - start
    sender.send({"open_s": opened, "records_per_s": READ / taken, "memory_mib": _private_mib() - idle})


def _private_mib() -> float:
    """Returns the memory of this process alone, in MiB (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
