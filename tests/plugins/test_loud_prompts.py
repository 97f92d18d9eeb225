"""`NormMatchedPrompts`: injection at the norm_scale of the patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sail_lightning.interfaces import Dims, Regions
from sail_lightning.plugins.prompt_encoders import NormMatchedPrompts

WIDTH = 6
PATCHES, OWNERS = [1, 2, 2, 5], [0, 0, 1, 1]


def regions() -> Regions:
    """Region 0 on rows 1 and 2, region 1 on rows 2 and 5; a third covers no patch."""
    rows = ([40, 41, 42], PATCHES, OWNERS, [7, 8, 9], [0, 1, 2])
    return Regions(*(torch.tensor(listed) for listed in rows), torch.zeros(3, 4))


def built(norm_scale: float) -> NormMatchedPrompts:
    torch.manual_seed(0)
    encoder = NormMatchedPrompts(norm_scale=norm_scale)
    encoder.build(Dims(hidden_size=WIDTH, patch_size=8))
    return encoder


def parts() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 30 * torch.randn(12, WIDTH), torch.randn(3, WIDTH)


@pytest.mark.parametrize("norm_scale", [0.5, 1.0])
def test_prompts_are_as_long_as_the_patches_of_their_region(norm_scale: float) -> None:
    encoder, (embeddings, tokens) = built(norm_scale), parts()
    expected = embeddings.double().clone()
    for region, rows in ((0, [1, 2]), (1, [2, 5])):
        prompt = encoder.proj.weight.double() @ tokens[region].double()
        length = embeddings[rows].double().norm(dim=1).mean()
        for row in rows:
            expected[row] += norm_scale * length * prompt / prompt.norm()
    torch.testing.assert_close(encoder(embeddings, regions(), tokens), expected.float())


def test_what_a_prompt_says_is_trained_and_patches_only_through_themselves() -> None:
    encoder, (embeddings, tokens) = built(1.0), parts()
    embeddings.requires_grad_()
    encoder(embeddings, regions(), tokens)[2, 0].backward()
    assert encoder.proj.weight.grad is not None and encoder.proj.weight.grad.abs().sum() > 0
    wanted = torch.zeros_like(embeddings)
    wanted[2, 0] = 1
    assert embeddings.grad is not None and torch.equal(embeddings.grad, wanted)


def test_a_prompt_of_zeros_and_half_precision_stay_finite() -> None:
    encoder, (embeddings, tokens) = built(1.0), parts()
    assert torch.isfinite(encoder(embeddings, regions(), torch.zeros_like(tokens))).all()
    half = encoder.bfloat16()(embeddings.bfloat16(), regions(), tokens.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), built(1.0)(embeddings, regions(), tokens), rtol=0.02, atol=0.5)
