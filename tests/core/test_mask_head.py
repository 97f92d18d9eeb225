"""Mask logits: the folded form is the definition, queries times keys, with the same gradients."""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sail_lightning.model.model import MaskHead

SIZES = st.integers(1, 6)


def by_definition(head: MaskHead, states: Tensor, features: Tensor) -> Tensor:
    """Every pixel's key, then every product: (n, h, w)."""
    keys = head.feature_projector(features.permute(1, 2, 0))
    return torch.einsum("nc,hwc->nhw", head.seg_projector(states), keys)


@given(count=st.integers(0, 5), height=SIZES, width=SIZES, channels=SIZES, size=SIZES, seed=st.integers(0, 99))
def test_the_folded_form_is_queries_times_keys(
    count: int, height: int, width: int, channels: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    head = MaskHead(4, channels, size)
    states, features = torch.randn(count, 4, requires_grad=True), torch.randn(channels, height, width).requires_grad_()
    exact = copy.deepcopy(head).double()
    inputs = [tensor.detach().double().requires_grad_() for tensor in (states, features)]
    expected = by_definition(exact, *inputs)
    upstream = torch.randn(count, height, width)
    (expected * upstream).sum().backward()
    found = head.logits(head.queries(states)[None], features[None])[0]
    (found * upstream).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = zip([states, features, *head.parameters()], [*inputs, *exact.parameters()], strict=True)
    for ours, reference in pairs:
        torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_keys_are_the_projector_of_the_features() -> None:
    torch.manual_seed(0)
    head, features = MaskHead(4, 6, 5), torch.randn(2, 6, 3, 4)
    expected = head.feature_projector(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(head.keys(features), expected)
