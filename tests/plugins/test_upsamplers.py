"""Upsamplers: from vision tokens (one per patch) to mask features (one per `stride` pixels)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.plugins.upsamplers import (
    BilinearUpsampler,
    DeconvUpsampler,
    IdentityUpsampler,
    PixelShuffleUpsampler,
    deconv,
)
from sail_lightning.plugins.upsamplers.deconv import UpsampleBlock, interleaved, pixels_2x2

GOLDEN = Path(__file__).parents[1] / "golden" / "upsampler.safetensors"
DIMS = Dims(hidden_size=24, patch_size=16)
ALL = [DeconvUpsampler, BilinearUpsampler, PixelShuffleUpsampler, IdentityUpsampler]


def built(upsampler: Upsampler, dims: Dims = DIMS) -> tuple[Upsampler, Dims]:
    return upsampler, upsampler.build(dims)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """Upsampling weights, input and output (first 8 channels) of the official code, patch 16, hidden size 64."""
    return load_file(GOLDEN)


def test_official_weights_load_by_renaming_and_give_the_official_features(golden: dict[str, Tensor]) -> None:
    upsampler, dims = built(DeconvUpsampler(stride=2), Dims(hidden_size=64, patch_size=16))
    assert isinstance(upsampler, DeconvUpsampler)
    names = upsampler.official_names()
    assert set(names.values()) == {key for key in golden if key.startswith("upsample_blocks.")}
    upsampler.load_state_dict({ours: golden[theirs] for ours, theirs in names.items()}, strict=True)
    features = upsampler(golden["in.features"])
    assert features.shape == (1, dims.feature_channels, 24, 24)
    torch.testing.assert_close(features[:, :8], golden["out.upsampled_first8ch"], atol=1e-4, rtol=1e-4)


def test_the_matrix_product_is_the_transposed_convolution_forward_and_backward() -> None:
    conv = nn.ConvTranspose2d(5, 7, kernel_size=2, stride=2).double()
    weights = dict(conv.named_parameters())
    ours = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    upstream = torch.randn(2, 7, 6, 8, dtype=torch.float64)
    expected = conv(theirs)
    wanted = torch.autograd.grad(expected, [theirs, *weights.values()], upstream)
    output = interleaved(pixels_2x2(ours.permute(0, 2, 3, 1), **weights)).permute(0, 3, 1, 2)
    got = torch.autograd.grad(output, [ours, *weights.values()], upstream)
    torch.testing.assert_close([output, *got], [expected, *wanted], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("patch", "stride", "blocks"), [(16, 4, 2), (16, 2, 3), (32, 2, 4), (32, 4, 3), (8, 8, 0)])
def test_deconv_has_as_many_blocks_as_lead_from_the_patch_size_to_the_stride(
    patch: int, stride: int, blocks: int
) -> None:
    upsampler, dims = built(DeconvUpsampler(stride=stride), Dims(hidden_size=8, patch_size=patch))
    assert isinstance(upsampler.blocks, nn.ModuleList)
    assert len(upsampler.blocks) == blocks
    assert dims.feature_stride == stride
    assert upsampler(torch.randn(1, 8, 2, 3)).shape[-2:] == (2 * patch // stride, 3 * patch // stride)


def test_deconv_narrows_a_hidden_size_over_1024_first_as_the_official_code_does() -> None:
    upsampler, dims = built(DeconvUpsampler(stride=16), Dims(hidden_size=1032, patch_size=16))
    assert dims.feature_channels == 1024
    assert {key: tuple(value.shape) for key, value in upsampler.state_dict().items()} == {
        "pre_projector.0.weight": (1032, 1032),
        "pre_projector.0.bias": (1032,),
        "pre_projector.2.weight": (1024, 1032),
        "pre_projector.2.bias": (1024,),
    }
    assert isinstance(upsampler, DeconvUpsampler)
    assert upsampler.official_names()["pre_projector.2.bias"] == "image_feature_pre_projector.2.bias"
    assert upsampler(torch.randn(1, 1032, 2, 3)).shape == (1, 1024, 2, 3)


@pytest.mark.parametrize("upsampler", [DeconvUpsampler(channels=12), PixelShuffleUpsampler(channels=12)])
def test_width_can_be_chosen(upsampler: Upsampler) -> None:
    _, dims = built(upsampler)
    assert dims.feature_channels == 12
    assert upsampler(torch.randn(1, 24, 2, 3)).shape == (1, 12, 8, 12)


@pytest.mark.parametrize("plugin", ALL)
def test_published_channels_and_stride_are_those_of_the_features(plugin: type[Upsampler]) -> None:
    upsampler, dims = built(plugin())
    scale = DIMS.patch_size // dims.feature_stride
    assert upsampler(torch.randn(2, 24, 3, 5)).shape == (2, dims.feature_channels, 3 * scale, 5 * scale)
    assert dims.feature_stride == (16 if plugin is IdentityUpsampler else 4)


@pytest.mark.parametrize("plugin", ALL)
def test_a_batch_without_images_gives_zero_gradients_not_missing_ones(plugin: type[Upsampler]) -> None:
    upsampler, dims = built(plugin())
    empty = torch.randn(0, 24, 3, 5, requires_grad=True)
    features = upsampler(empty)
    assert features.shape == (0, dims.feature_channels, 48 // dims.feature_stride, 80 // dims.feature_stride)
    features.sum().backward()
    for name, parameter in upsampler.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("plugin", ALL)
def test_images_of_a_batch_do_not_see_each_other(plugin: type[Upsampler]) -> None:
    upsampler, _ = built(plugin())
    features = torch.randn(3, 24, 3, 5)
    one_by_one = torch.cat([upsampler(image[None]) for image in features])
    torch.testing.assert_close(upsampler(features), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("plugin", ALL)
def test_autocast_trains_in_half_precision(plugin: type[Upsampler]) -> None:
    upsampler, _ = built(plugin())
    features = torch.randn(1, 24, 3, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = upsampler(features)
    half.float().square().sum().backward()
    torch.testing.assert_close(half.float(), upsampler(features), atol=0.1, rtol=0.1)
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(("patch", "stride"), [(14, 4), (24, 4), (16, 32)])
def test_deconv_names_sizes_that_doubling_cannot_reach(patch: int, stride: int) -> None:
    with pytest.raises(SailUsageError, match=f"power of two, not {patch} / {stride}"):
        DeconvUpsampler(stride=stride).build(Dims(hidden_size=8, patch_size=patch))


@pytest.mark.parametrize("plugin", [BilinearUpsampler, PixelShuffleUpsampler])
def test_a_stride_that_does_not_divide_the_patch_size_is_named(plugin: type[BilinearUpsampler]) -> None:
    with pytest.raises(SailUsageError, match=f"{plugin.__name__} needs a stride that divides the patch size 14, not 4"):
        plugin(stride=4).build(Dims(hidden_size=8, patch_size=14))


def test_bilinear_reproduces_a_ramp_at_pixel_centres() -> None:
    upsampler, _ = built(BilinearUpsampler(stride=4), Dims(hidden_size=1, patch_size=16))
    columns = torch.arange(5.0).expand(1, 1, 3, 5)
    fine = upsampler(columns)[0, 0, 0]
    centres = (torch.arange(20) + 0.5) / 4 - 0.5
    torch.testing.assert_close(fine, centres.clamp(0, 4))


def test_pixel_shuffle_unfolds_every_token_onto_its_own_pixels() -> None:
    upsampler, _ = built(PixelShuffleUpsampler())
    features = torch.randn(1, 24, 3, 5)
    changed = features.clone()
    changed[0, :, 1, 3] += 1
    touched = (upsampler(changed) != upsampler(features)).any(1)[0]
    expected = torch.zeros(12, 20, dtype=torch.bool)
    expected[4:8, 12:16] = True
    assert torch.equal(touched, expected)


def test_identity_changes_nothing_and_has_no_weights() -> None:
    upsampler, dims = built(IdentityUpsampler())
    features = torch.randn(1, 24, 3, 5)
    assert upsampler(features) is features
    assert not upsampler.state_dict()
    assert (dims.feature_channels, dims.feature_stride) == (24, 16)


@pytest.mark.parametrize("plugin", ALL)
@pytest.mark.parametrize("tile", [1, 60, 300, 10**9])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 7, 5), (2, 2, 3), (3, 1, 4), (0, 2, 2)])
def test_reading_in_strips_is_reading_the_whole(
    plugin: type[Upsampler], tile: int, batch: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deconv, "TILE_ELEMENTS", {False: tile})
    torch.manual_seed(0)
    upsampler, dims = built(plugin(), Dims(hidden_size=8, patch_size=16))
    upsampler.double()
    weight = torch.randn(3, dims.feature_channels, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(batch, 8, height, width, dtype=torch.float64, requires_grad=True)

    def head(features: Tensor) -> Tensor:
        return torch.einsum("nc,bchw->bnhw", weight, features.sin())

    inputs = [tokens, weight, *upsampler.parameters()]
    expected, found = head(upsampler(tokens)), upsampler.apply_head(tokens, head)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    got = torch.autograd.grad(found, inputs, upstream)
    torch.testing.assert_close([found, *got], [expected, *wanted], atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(upsampler.apply_head(tokens, head), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_a_strip_never_holds_the_whole_image(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deconv, "TILE_ELEMENTS", {False: 2 * 12 * 4 * 8})  # two rows of the last block's input
    upsampler, _ = built(DeconvUpsampler(), Dims(hidden_size=8, patch_size=16))
    heights: list[int] = []

    def head(features: Tensor) -> Tensor:
        heights.append(features.shape[2])
        return features[:, :1]

    with torch.set_grad_enabled(training):
        assert upsampler.apply_head(torch.randn(1, 8, 6, 6), head).shape == (1, 1, 24, 24)
    assert sum(heights) == 24
    assert max(heights) < 24


def test_without_gradients_no_map_of_the_last_block_is_whole_and_images_are_taken_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deconv, "TILE_ELEMENTS", {False: 4 * 2 * 12 * 4 * 8})  # eight rows of the last block's input
    upsampler, _ = built(DeconvUpsampler(), Dims(hidden_size=8, patch_size=16))
    expanded, refined = [], []
    expand, refine = UpsampleBlock.expand, UpsampleBlock.refine

    def watched_expand(self: UpsampleBlock, features: Tensor) -> Tensor:
        expanded.append(tuple(features.shape[:3]))
        return expand(self, features)

    def watched_refine(self: UpsampleBlock, pixels: Tensor, above: bool = False, below: bool = False) -> Tensor:
        refined.append(tuple(pixels.shape[:3]))
        return refine(self, pixels, above, below)

    monkeypatch.setattr(UpsampleBlock, "expand", watched_expand)
    monkeypatch.setattr(UpsampleBlock, "refine", watched_refine)
    with torch.no_grad():
        upsampler.apply_head(torch.randn(10, 8, 6, 6), lambda features: features[:, :1])
    # The block before: whole images, a few at a time. The last: two rows a tile, each row made once, and read with
    # the next row of each neighbour.
    assert [shape for shape in expanded if shape[2] == 6] == [(2, 6, 6)] * 5
    assert [rows for count, rows, width in expanded if (count, width) == (10, 12)] == [3, 2, 2, 2, 2, 1]
    assert {shape for shape in refined if shape[2] == 12} == {(2, 3, 12), (2, 4, 12)}
