"""Stored features: how far they are from the teacher's own is known, and told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.features.codec import Error, encode


def features(seed: int, spread: float) -> Tensor:
    """Channels of very different size, as those of real experts are; one is zero."""
    generator = torch.Generator().manual_seed(seed)
    scale = spread ** torch.rand(6, 1, 1, generator=generator)
    scale[2] = 0
    return scale * torch.randn(6, 4, 5, generator=generator)


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 1000.0))
@settings(max_examples=50)
def test_int8_is_off_by_at_most_half_a_step_of_each_channel(seed: int, spread: float) -> None:
    exact = features(seed, spread)
    entry, _ = encode(exact, "int8")
    assert entry.scale is not None and entry.values.dtype == torch.int8
    step = exact.abs().amax((1, 2)) / 127
    assert ((entry.decoded() - exact).abs().amax((1, 2)) <= 0.501 * step).all()


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 1000.0))
@settings(max_examples=50)
def test_float16_is_off_by_at_most_half_a_thousandth(seed: int, spread: float) -> None:
    exact = features(seed, spread)
    entry, _ = encode(exact, "float16")
    assert ((entry.decoded() - exact).abs() <= exact.abs() / 2048 + 1e-7).all()


@pytest.mark.parametrize("stored_as", ["float16", "int8"])
def test_the_error_is_the_largest_and_the_relative_one_over_all_images(stored_as: str) -> None:
    pictures = [features(seed, 100.0) for seed in range(3)]
    entries = [encode(exact, stored_as) for exact in pictures]  # type: ignore[arg-type]
    error = sum((error for _, error in entries), Error())
    difference = torch.stack([entry.decoded() - exact for (entry, _), exact in zip(entries, pictures, strict=True)])
    assert error.largest == pytest.approx(difference.abs().max().item())
    assert error.relative == pytest.approx((difference.norm() / torch.stack(pictures).norm()).item(), rel=1e-4)


def test_features_of_bfloat16_are_kept_exactly_as_float16() -> None:
    exact = features(0, 10.0).bfloat16()
    entry, error = encode(exact, "float16")
    assert torch.equal(entry.decoded(), exact.float()) and error.largest == 0


def test_bytes_are_one_a_number_for_int8_and_two_for_float16() -> None:
    exact = features(0, 10.0)
    assert encode(exact, "float16")[0].size == 2 * exact.numel()
    assert encode(exact, "int8")[0].size == exact.numel() + 4 * len(exact)


def test_no_features_at_all_have_no_error() -> None:
    assert Error().relative == 0
    assert encode(torch.zeros(2, 1, 1), "int8")[1].relative == 0


def test_features_that_cannot_be_stored_are_one_sentence() -> None:
    with pytest.raises(SailError, match=r"reach 1e\+05, more than float16 holds; store int8"):
        encode(torch.full((1, 1, 1), 1e5), "float16")
    for broken in (np.nan, np.inf):
        with pytest.raises(SailError, match="not finite; compute them with dtype: float32"):
            encode(torch.full((1, 1, 1), broken), "int8")
