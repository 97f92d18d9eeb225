"""The KV cache: which slots keys and values are written to, and how rows are joined to groups."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.generation.kv_cache import MAX_GRID_CELLS, SlottedKVCache, group_rows, visibility_mask

CPU = torch.device("cpu")


def filled(rows: int, capacity: int) -> SlottedKVCache:
    """A cache of one layer, two heads and four channels, every slot of which holds something else."""
    cache = SlottedKVCache(rows, capacity)
    total = rows * cache.capacity
    cache.set_write_slots(torch.arange(total))
    cache.update(torch.randn(1, 2, total, 4), torch.randn(1, 2, total, 4), 0)
    return cache


def test_tokens_are_written_token_by_token_and_all_rows_are_given_back() -> None:
    cache = SlottedKVCache(2, 64)
    (view,) = (group.view(torch.ones(3, 64, dtype=torch.bool)) for group in group_rows([2, 1], CPU))
    cache.set_write_slots(torch.tensor([5, 6, 64 + 9]), [view])
    key, value = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    keys, values = cache.update(key, value, 0)
    assert keys.shape == values.shape == (2, 2, 64, 4)
    for found, given_ in ((keys, key), (values, value)):
        assert torch.equal(found[0, :, 5:7], given_[0, :, :2]) and torch.equal(found[1, :, 9], given_[0, :, 2])
        assert int((found != 0).sum()) == given_.numel()
    assert cache.layers[0][0].is_contiguous() and cache.layers[0][0].shape == (2, 64, 2, 4)


def test_a_packed_pass_gets_its_own_keys_back() -> None:
    cache = SlottedKVCache(1, 64)
    cache.set_write_slots(torch.tensor([3, 4]))
    key, value = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4)
    assert cache.update(key, value, 0) == (key, value)


def test_keys_are_kept_in_the_dtype_of_values() -> None:
    cache = SlottedKVCache(1, 64)
    cache.set_write_slots(torch.tensor([0]))
    cache.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4).bfloat16(), 0)
    assert {tensor.dtype for pair in cache.layers for tensor in pair} == {torch.bfloat16}


def test_rows_are_selected_copied_and_grown() -> None:
    cache = filled(3, 64)
    before = [tensor.clone() for tensor in cache.layers[0]]
    cache.copy(0, 2, 10)
    for tensor, old in zip(cache.layers[0], before, strict=True):
        assert torch.equal(tensor[2], torch.cat([old[0, :10], old[2, 10:]]))
    cache.select(torch.tensor([2, 1]))
    cache.grow(65)
    assert (cache.rows, cache.capacity) == (2, 128)
    for tensor, old in zip(cache.layers[0], before, strict=True):
        assert torch.equal(tensor[1, :64], old[1]) and not tensor[:, 64:].any()


@given(st.lists(st.integers(0, 40), max_size=40))
def test_groups_hold_every_token_once_and_are_not_mostly_empty(counts: list[int]) -> None:
    total = sum(counts)
    found = group_rows(counts, CPU)
    assert [group.tokens for group in found] == [sum(counts[row] for row in group.rows) for group in found]
    assert sum(group.tokens for group in found) == total
    rows = [row for group in found for row in group.rows]
    assert rows == sorted(set(rows)) and {row for row, count in enumerate(counts) if count} <= set(rows)
    for group in found:
        mask = torch.rand(group.tokens, 8) < 0.5
        view = group.view(mask)
        height, width, _ = view.mask.shape
        assert (view.first, height) == (group.first, len(group.counts))
        assert height == 1 or height * width <= min(2 * group.tokens + 16, MAX_GRID_CELLS)
        own = [view.mask[row, :count] for row, count in enumerate(group.counts)]
        assert torch.equal(torch.cat(own), mask)
        rest = [view.mask[row, count:] for row, count in enumerate(group.counts)]
        assert torch.cat(rest).all(), "a cell without any key would be NaN"


def test_a_token_sees_what_is_shared_and_its_own() -> None:
    shared, start, end = torch.tensor([[2, 0], [4, 1], [5, 3]])
    assert visibility_mask(shared, start, end, 6).int().tolist() == [[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]]
