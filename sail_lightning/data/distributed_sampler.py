"""Questions dealt to ranks and batches: those about one picture stay together, so that it is read once."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = list[int]
"""Of records in their source."""


def deal(
    pictures: NDArray[np.uint64], size: int, rank: int = 0, world_size: int = 1, answered: Collection[int] = ()
) -> list[Numbers]:
    """The batches of one rank.

    Batches are laid out for the whole source, then what was answered is struck out: a run that goes on where another
    was killed asks the same batches, in which answers are the same to the last bit. Only the batch during which it was
    killed is a smaller one. Official code: chunks of ceil(n / ranks) + 1 that left ranks idle, and lists that each rank
    made of the files that it happened to see (E26).

    Args:
        pictures: what names the picture of each record; 0 for one that shares it with no other.
        size: most questions of a batch.
        rank: of the process that asks.
        world_size: number of processes.
        answered: numbers that are not asked again.

    Returns:
        numbers of records, batch by batch. No rank is without a batch if there is one open question for each.
    """
    done = frozenset(answered)
    groups = _groups(pictures)
    left = [_open(share, size, done) for share in _shares(groups, world_size)]
    if not all(left):
        remaining = [rest for group in groups if (rest := [number for number in group if number not in done])]
        if len(remaining) < world_size:
            remaining = [[number] for group in remaining for number in group]
        left = [_open(share, size, done) for share in _shares(remaining, world_size)]
    return left[rank]


def _open(groups: Sequence[Numbers], size: int, done: Collection[int]) -> list[Numbers]:
    left = ([number for number in batch if number not in done] for batch in _batches(groups, size))
    return [batch for batch in left if batch]


def _groups(pictures: NDArray[np.uint64]) -> list[Numbers]:
    """Records of one picture, pictures in the order in which they first appear."""
    found: dict[int, Numbers] = {}
    groups: list[Numbers] = []
    for number, picture in enumerate(pictures.tolist()):
        if not picture or picture not in found:
            groups.append([])
            found[picture] = groups[-1]
        found[picture].append(number)
    return groups


def _shares(groups: Sequence[Numbers], world_size: int) -> list[list[Numbers]]:
    """Each group to the rank that has the fewest questions so far."""
    shares: list[list[Numbers]] = [[] for _ in range(world_size)]
    heap = [(0, rank) for rank in range(world_size)]
    for group in groups:
        asked, rank = heapq.heappop(heap)
        shares[rank].append(group)
        heapq.heappush(heap, (asked + len(group), rank))
    return shares


def _batches(groups: Sequence[Numbers], size: int) -> Iterator[Numbers]:
    """Groups joined to batches; one that fits into a batch is not split."""
    batch: Numbers = []
    for group in groups:
        if batch and len(batch) + len(group) > size >= len(group):
            yield batch
            batch = []
        for number in group:
            batch.append(number)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch
