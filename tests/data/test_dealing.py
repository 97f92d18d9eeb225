"""Questions dealt to ranks and batches."""

from __future__ import annotations

from itertools import chain, groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data.distributed_sampler import distributed_batches

sources = st.lists(st.integers(0, 6), max_size=40).map(lambda names: np.array(names, np.uint64))
sizes, worlds = st.integers(1, 9), st.integers(1, 5)


def numbers(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


@given(sources, sizes, worlds, st.sets(st.integers(0, 39)))
def test_every_open_question_is_asked_once_and_no_batch_is_too_large(
    pictures: np.ndarray, size: int, ranks: int, answered: set[int]
) -> None:
    dealt = [distributed_batches(pictures, size, rank, ranks, answered) for rank in range(ranks)]
    assert sorted(chain.from_iterable(map(numbers, dealt))) == sorted(set(range(len(pictures))) - answered)
    assert all(1 <= len(batch) <= size for batches in dealt for batch in batches)


@given(sources, sizes, worlds, st.sets(st.integers(0, 39)))
def test_e26_no_rank_is_idle_while_there_is_a_question_for_each(
    pictures: np.ndarray, size: int, ranks: int, answered: set[int]
) -> None:
    dealt = [distributed_batches(pictures, size, rank, ranks, answered) for rank in range(ranks)]
    still_open = len(set(range(len(pictures))) - answered)
    assert all(dealt) or still_open < ranks


@given(sources, sizes)
def test_an_image_whose_questions_fit_into_a_batch_is_read_once(pictures: np.ndarray, size: int) -> None:
    batches = distributed_batches(pictures, size)
    for picture in set(pictures.tolist()) - {0}:
        asked = np.flatnonzero(pictures == picture).tolist()
        holding = [batch for batch in batches if set(batch) & set(asked)]
        assert len(holding) == 1 or len(asked) > size


def test_images_stay_in_the_order_in_which_they_first_appear() -> None:
    assert distributed_batches(np.array([5, 0, 5, 7, 0, 7], np.uint64), 2) == [[0, 2], [1], [3, 5], [4]]


def test_records_without_a_shared_image_fill_batches_in_order() -> None:
    assert distributed_batches(np.zeros(5, np.uint64), 2) == [[0, 1], [2, 3], [4]]
    assert [distributed_batches(np.zeros(5, np.uint64), 2, rank, 2) for rank in range(2)] == [[[0, 2], [4]], [[1, 3]]]


@given(sources, sizes, st.integers(0, 40))
def test_a_resumed_run_asks_the_batches_that_an_unbroken_one_would_have_asked(
    pictures: np.ndarray, size: int, stop: int
) -> None:
    whole = distributed_batches(pictures, size)
    done = numbers(whole[:stop])
    assert distributed_batches(pictures, size, completed=done) == whole[stop:]


@given(sources, worlds)
def test_ranks_get_as_many_questions_as_images_allow(pictures: np.ndarray, ranks: int) -> None:
    shares = [len(numbers(distributed_batches(pictures, 4, rank, ranks))) for rank in range(ranks)]
    named = sorted(pictures[pictures > 0].tolist())
    largest = max((len(list(group)) for _, group in groupby(named)), default=1)
    assert max(shares) - min(shares) <= max(1, largest)
