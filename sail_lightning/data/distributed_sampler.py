"""Batches of questions for each rank: questions about one image stay together, so that the image is read once."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sail_lightning.settings.renames import renamed

Indices = list[int]
"""Indices of records in their source."""


def distributed_batches(
    image_keys: NDArray[np.uint64], size: int, rank: int = 0, world_size: int = 1, completed: Collection[int] = ()
) -> list[Indices]:
    """The batches of one rank.

    Batches are made for the whole source; then completed records are removed from them. So a run that continues one
    that was stopped answers the same batches, to the last bit alike, except for the batch in which it was stopped. The
    official code gave each rank a chunk of ceil(n / ranks) + 1 records, which left ranks idle, and each rank listed
    the files that it found itself (E26).

    Args:
        image_keys: A number for the image of each record (`Source.image_keys`); 0 for an image of its own.
        size: Largest number of questions in a batch.
        rank: Rank of the process.
        world_size: Number of processes.
        completed: Indices of records that are left out.

    Returns:
        Indices of records, batch by batch. No rank is without a batch if there is an open question for each.
    """
    done = frozenset(completed)
    groups = _groups(image_keys)
    left = [_open(share, size, done) for share in _shares(groups, world_size)]
    if not all(left):
        remaining = [rest for group in groups if (rest := [index for index in group if index not in done])]
        if len(remaining) < world_size:
            remaining = [[index] for group in remaining for index in group]
        left = [_open(share, size, done) for share in _shares(remaining, world_size)]
    return left[rank]


def _open(groups: Sequence[Indices], size: int, done: Collection[int]) -> list[Indices]:
    left = ([index for index in batch if index not in done] for batch in _batches(groups, size))
    return [batch for batch in left if batch]


def _groups(image_keys: NDArray[np.uint64]) -> list[Indices]:
    """The records of each image; images are in the order of their first record."""
    found: dict[int, Indices] = {}
    groups: list[Indices] = []
    for index, key in enumerate(image_keys.tolist()):
        if not key or key not in found:
            groups.append([])
            found[key] = groups[-1]
        found[key].append(index)
    return groups


def _shares(groups: Sequence[Indices], world_size: int) -> list[list[Indices]]:
    """The groups of each rank: every group goes to the rank that has the fewest questions so far."""
    shares: list[list[Indices]] = [[] for _ in range(world_size)]
    heap = [(0, rank) for rank in range(world_size)]
    for group in groups:
        count, rank = heapq.heappop(heap)
        shares[rank].append(group)
        heapq.heappush(heap, (count + len(group), rank))
    return shares


def _batches(groups: Sequence[Indices], size: int) -> Iterator[Indices]:
    """Groups joined to batches; a group that fits into a batch is not split."""
    batch: Indices = []
    for group in groups:
        if batch and len(batch) + len(group) > size >= len(group):
            yield batch
            batch = []
        for index in group:
            batch.append(index)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


__getattr__ = renamed(__name__, {"deal": "distributed_batches"})
