"""Prompt encoders: how regions change the packed embeddings, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sail_lightning.interfaces import Dims, PromptEncoder, Regions
from sail_lightning.plugins.prompt_encoders import NoPrompts, PromptInjection, RegionPooling

TOKENS, WIDTH = 12, 6
ALL = [PromptInjection, RegionPooling, NoPrompts]


def built(encoder: PromptEncoder) -> PromptEncoder:
    dims = Dims(hidden_size=WIDTH, patch_size=16)
    assert encoder.build(dims) == dims
    return encoder


def regions(covers: list[list[int]], mentions: list[list[int]]) -> Regions:
    """Region r covers the rows covers[r] and is mentioned at the rows mentions[r]."""

    def pairs(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        flat = [(row, region) for region, listed in enumerate(rows) for row in listed]
        table = torch.tensor(flat, dtype=torch.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    boxes = torch.rand(len(covers), 2, 2).sort(1).values.flatten(1)  # x0, y0, x1, y1
    return Regions(torch.arange(len(covers)), *pairs(covers), *pairs(mentions), boxes)


def inputs(count: int) -> tuple[Tensor, Tensor]:
    """Embeddings (T, D) and region tokens (R, D)."""
    return torch.randn(TOKENS, WIDTH, requires_grad=True), torch.randn(count, WIDTH, requires_grad=True)


rows = st.lists(st.integers(0, TOKENS - 1), max_size=6, unique=True)


@given(covers=st.lists(rows, max_size=4))
def test_injection_adds_to_every_patch_the_projected_tokens_of_all_regions_over_it(covers: list[list[int]]) -> None:
    encoder = built(PromptInjection())
    assert isinstance(encoder.proj, nn.Linear)
    embeddings, tokens = inputs(len(covers))
    expected = embeddings.detach().clone()
    for region, covered in enumerate(covers):
        for row in covered:
            expected[row] += encoder.proj.weight @ tokens[region]
    output = encoder(embeddings, regions(covers, [[]] * len(covers)), tokens)
    torch.testing.assert_close(output, expected)


@given(covers=st.lists(rows, max_size=4), data=st.data())
def test_pooling_adds_the_projected_mean_of_a_regions_patches_at_its_mentions(
    covers: list[list[int]], data: st.DataObject
) -> None:
    mentions = data.draw(st.lists(rows, min_size=len(covers), max_size=len(covers)))
    encoder = built(RegionPooling())
    assert isinstance(encoder.proj, nn.Linear)
    embeddings, tokens = inputs(len(covers))
    expected = embeddings.detach().clone()
    for covered, mentioned in zip(covers, mentions, strict=True):
        mean = embeddings[covered].mean(0) if covered else torch.zeros(WIDTH)
        for row in mentioned:
            expected[row] += encoder.proj.weight @ mean
    output = encoder(embeddings, regions(covers, mentions), tokens)
    torch.testing.assert_close(output, expected)


def test_no_prompts_ignores_regions() -> None:
    embeddings, tokens = inputs(2)
    assert built(NoPrompts())(embeddings, regions([[1, 2], [3]], [[7], [8]]), tokens) is embeddings


@pytest.mark.parametrize("plugin", ALL)
def test_embeddings_are_not_changed_in_place(plugin: type[PromptEncoder]) -> None:
    encoder = built(plugin())
    embeddings, tokens = inputs(1)
    before = embeddings.detach().clone()
    encoder(embeddings, regions([[1, 2]], [[7]]), tokens)
    assert torch.equal(embeddings, before)


@pytest.mark.parametrize("plugin", ALL)
def test_a_batch_without_regions_is_unchanged_and_gives_zero_gradients(plugin: type[PromptEncoder]) -> None:
    encoder = built(plugin())
    embeddings, tokens = inputs(0)
    output = encoder(embeddings, regions([], []), tokens)
    assert torch.equal(output, embeddings)
    output.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_injection_trains_the_prompt_embeddings() -> None:
    encoder = built(PromptInjection())
    embeddings, tokens = inputs(2)
    encoder(embeddings, regions([[1, 2], []], [[], []]), tokens).square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0].any()
    assert not tokens.grad[1].any(), "a region without patches has nothing to learn from"


def test_pooling_trains_through_the_patches() -> None:
    encoder = built(RegionPooling())
    embeddings, tokens = inputs(1)
    encoder(embeddings, regions([[1, 2]], [[7]]), tokens)[7].sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.any(1).nonzero().flatten().tolist() == [1, 2, 7]


def test_pooling_of_a_large_region_loses_nothing_in_half_precision() -> None:
    encoder = built(RegionPooling())
    assert isinstance(encoder.proj, nn.Linear)
    nn.init.eye_(encoder.proj.weight)
    encoder.bfloat16()
    embeddings = torch.ones(5000, WIDTH, dtype=torch.bfloat16)
    pooled = encoder(embeddings, regions([list(range(4999))], [[4999]]), torch.zeros(1, WIDTH))
    assert torch.equal(pooled[4999], torch.full((WIDTH,), 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("plugin", ALL)
def test_autocast_keeps_the_dtype_of_the_embeddings(plugin: type[PromptEncoder]) -> None:
    encoder = built(plugin())
    embeddings, tokens = inputs(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(embeddings, regions([[1, 2]], [[7]]), tokens)
    assert output.dtype == torch.float32
    exact = encoder(embeddings, regions([[1, 2]], [[7]]), tokens)
    torch.testing.assert_close(output, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("plugin", ALL)
def test_the_number_of_prompt_tokens_is_a_setting_of_all(plugin: type[PromptEncoder]) -> None:
    assert plugin().num_prompts == 15
    assert plugin(num_prompts=3).num_prompts == 3  # type: ignore[call-arg]
