"""Mask logits: both fast ways equal the definition, `mask_logits(queries, keys)`, in values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.model.model import MaskHead, SailModel, mask_logits
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import NoPrompts
from sail_lightning.plugins.upsamplers import BilinearUpsampler, DeconvUpsampler

SIZES = st.integers(1, 6)


def by_hand(head: MaskHead, states: Tensor, features: Tensor) -> Tensor:
    """Every pixel's key, then every product: (n, h, w)."""
    keys = head.feature_projector(features.permute(1, 2, 0))
    return (head.seg_projector(states)[:, None, None] * keys).sum(-1)


@given(count=st.integers(0, 5), height=SIZES, width=SIZES, channels=SIZES, size=SIZES, seed=st.integers(0, 99))
def test_the_folded_form_is_queries_times_keys(
    count: int, height: int, width: int, channels: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    head = MaskHead(4, channels, size)
    states, features = torch.randn(count, 4, requires_grad=True), torch.randn(channels, height, width).requires_grad_()
    exact = copy.deepcopy(head).double()
    inputs = [tensor.detach().double().requires_grad_() for tensor in (states, features)]
    expected = by_hand(exact, *inputs)
    upstream = torch.randn(count, height, width)
    (expected * upstream).sum().backward()
    found = head.logits(head.queries(states)[None], features[None])[0]
    (found * upstream).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = zip([states, features, *head.parameters()], [*inputs, *exact.parameters()], strict=True)
    for ours, reference in pairs:
        torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_the_definition_is_queries_times_keys() -> None:
    torch.manual_seed(0)
    head, states, features = MaskHead(4, 6, 5), torch.randn(3, 4), torch.randn(6, 2, 7)
    found = mask_logits(head.queries(states), head.keys(features[None])[0])
    torch.testing.assert_close(found, by_hand(head, states, features))


def test_keys_are_the_projector_of_the_features() -> None:
    torch.manual_seed(0)
    head, features = MaskHead(4, 6, 5), torch.randn(2, 6, 3, 4)
    expected = head.feature_projector(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(head.keys(features), expected)


GRIDS = ((2, 3), (4, 2), (2, 3))


class RowByRow(DeconvUpsampler):
    """Applies the head to one row of mask features after the other."""

    def apply_head(self, features: Tensor, head: object) -> Tensor:
        return torch.cat([head(row) for row in self(features).split(1, 2)], 2)  # type: ignore[operator]


def model(upsampler: Upsampler) -> SailModel:
    """A model in float64 with 24 channels of vision tokens."""
    torch.manual_seed(0)
    backbone = SailQwen(hidden_size=24, intermediate_size=8, num_layers=1, num_heads=2, num_key_value_heads=1)
    made = SailModel(backbone, upsampler, NoPrompts(num_prompts=0), mask_channels=5)
    made.build(20)
    return made.double()


@pytest.mark.parametrize("upsampler", [BilinearUpsampler, DeconvUpsampler, RowByRow])
def test_predicted_masks_are_queries_times_the_keys_of_their_image(upsampler: type[Upsampler]) -> None:
    made = model(upsampler())
    tokens = [torch.randn(rows * columns, 24, dtype=torch.float64, requires_grad=True) for rows, columns in GRIDS]
    queries = {
        image: torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
        for image, count in ((0, 3), (1, 1), (2, 2))
    }
    keys = {
        image: maps
        for group in made.mask_features(tokens, GRIDS, range(3), tokens[0])
        for image, maps in zip(group.images, group.maps, strict=True)
    }
    expected = [mask_logits(queries[image], keys[image]) for image in queries]
    predicted = made.predict_masks(tokens, GRIDS, queries)
    found = [predicted[image] for image in queries]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    inputs = [*tokens, *queries.values(), *made.upsampler.parameters(), *made.mask_head.feature_projector.parameters()]
    upstream = [torch.randn_like(maps) for maps in expected]
    wanted = torch.autograd.grad(expected, inputs, upstream)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, upstream), wanted, rtol=1e-9, atol=1e-9)


def test_an_upsampler_that_overrides_read_still_works_and_is_warned_about() -> None:
    with pytest.warns(FutureWarning, match=r"read is now .*apply_head"):

        class Doubled(DeconvUpsampler):
            def read(self, features: Tensor, reader: object) -> Tensor:
                return 2 * super().read(features, reader)  # type: ignore[misc]

    upsampler = Doubled()
    upsampler.build(Dims(hidden_size=8, patch_size=16))
    tokens = torch.randn(1, 8, 2, 3)
    with pytest.warns(FutureWarning, match=r"read is now .*apply_head"):
        found = upsampler.apply_head(tokens, torch.sin)
    torch.testing.assert_close(found, 2 * upsampler(tokens).sin())


@pytest.mark.parametrize("upsampler", [BilinearUpsampler, DeconvUpsampler])
def test_a_call_of_read_still_works_and_warns(upsampler: type[Upsampler]) -> None:
    built = upsampler()
    built.build(Dims(hidden_size=8, patch_size=16))
    tokens = torch.randn(1, 8, 2, 3)
    with pytest.warns(FutureWarning, match=r"read is now .*apply_head"):
        found = built.read(tokens, torch.sin)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, built(tokens).sin())
