"""`GuidedUpsampler`: tokens are spread over the pixels that look alike, in training and in answers alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_sail import packed, picture, records, tiny
from torch import Tensor, nn

from sail_lightning.encoding.collate import pack
from sail_lightning.errors import SailUsageError
from sail_lightning.image.preprocessing import patchify
from sail_lightning.interfaces import Dims
from sail_lightning.model.losses import resize
from sail_lightning.model.model import unpatchify
from sail_lightning.plugins.upsamplers import GuidedUpsampler
from sail_lightning.plugins.upsamplers.guided import TENT_FLOOR, tent
from sail_lightning.sample import Sample, Turn

PATCH = 8


def built(hidden: int = 6, **settings: int) -> GuidedUpsampler:
    torch.manual_seed(0)
    upsampler = GuidedUpsampler(**settings)
    upsampler.build(Dims(hidden_size=hidden, patch_size=PATCH))
    return upsampler


def shown(rows: int, columns: int, count: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, rows * PATCH, columns * PATCH), dtype=torch.uint8)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_the_tent_is_bilinear_interpolation(ratio: int) -> None:
    tokens = torch.randn(5, 5)
    wanted = F.interpolate(tokens[None, None], scale_factor=ratio, mode="bilinear", align_corners=False)[0, 0]
    around = tokens[1:4, 1:4].flatten()  # of the token in the middle
    found = (tent(ratio, 3) @ around).view(ratio, ratio)
    torch.testing.assert_close(found, wanted[2 * ratio : 3 * ratio, 2 * ratio : 3 * ratio])


def test_without_an_image_it_starts_about_as_bilinear_interpolation() -> None:
    upsampler = built(stride=4)
    features = upsampler._around(torch.randn(1, 4, 5, 6))
    weights = upsampler._weights(torch.zeros(1, 4, 5, 4, 32), torch.zeros(1, 4, 5, 32))
    wanted = tent(2, 3) + TENT_FLOOR
    inner = weights[0, 1:-1, 1:-1]
    torch.testing.assert_close(inner, (wanted / wanted.sum(1, keepdim=True)).expand_as(inner))
    assert features.shape == (1, 4, 5, 9, 6)


def test_weights_are_a_mean_over_tokens_within_the_image() -> None:
    upsampler = built(stride=2, window=5)
    weights = upsampler._weights(torch.randn(2, 3, 4, 16, 32), torch.randn(2, 3, 4, 32))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4, 16))
    corner = weights[:, 0, 0].view(2, 16, 5, 5)
    assert not corner[:, :, :2].any() and not corner[:, :, :, :2].any(), "above and left of the picture is nothing"
    assert (corner[:, :, 2:, 2:] > 0).flatten(2)[:, :, [0, 1, 3, 4]].all()


def test_features_follow_an_edge_that_lies_within_a_patch() -> None:
    upsampler = built(hidden=3, stride=2, channels=3, guide_channels=3)
    upsampler.look = nn.Sequential(nn.AvgPool2d(2))  # a place looks like its colour
    for layer, gain in (
        (upsampler.query, 40.0),
        (upsampler.key, 1.0),
        (upsampler.detail, 0.0),
        (upsampler.values, 1.0),
    ):
        layer.weight.data = gain * torch.eye(3)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    upsampler.norm = nn.Identity()  # type: ignore[assignment]
    nn.init.zeros_(upsampler.spatial)
    black_until = 3 * PATCH - 2  # two pixels, one feature, before the end of the third patch
    image = torch.zeros(1, 3, 3 * PATCH, 6 * PATCH, dtype=torch.uint8)
    image[..., black_until:] = 255
    features = torch.zeros(1, 3, 3, 6)
    features[:, 0, :, :3], features[:, 1, :, 3:] = 1.0, 1.0  # what tokens say: the first three are one thing
    with torch.no_grad():
        guided, blind = upsampler(features, image), upsampler(features)
    row = guided[0, :2, 5].argmax(0)
    assert row.tolist() == [0] * 11 + [1] * 13, "to the very pixel"
    assert blind[0, :2, 5].argmax(0).tolist() != row.tolist()


def test_another_image_gives_other_features_and_images_do_not_see_each_other() -> None:
    upsampler = built()
    features, images = torch.randn(2, 6, 3, 4), shown(3, 4, 2)
    both = upsampler(features, images)
    alone = torch.cat([upsampler(features[i : i + 1], images[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[:1], upsampler(features[:1], images[1:]), atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [({"window": 2}, "odd window"), ({"stride": 3}, "divides")])
def test_settings_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        built(**settings)


def test_patches_are_put_together_as_they_were_cut() -> None:
    image = picture(24, 40)
    cells, grid = patchify(image, PATCH)
    assert np.array_equal(unpatchify(torch.from_numpy(cells)[None], grid)[0].permute(1, 2, 0).numpy(), image)


def test_a_packed_batch_gives_each_image_the_masks_that_it_has_alone() -> None:
    model = tiny(upsampler=GuidedUpsampler())
    with torch.no_grad():
        together = model.model(packed(model, records())).mask_logits
        alone = [model.model(packed(model, [record])).mask_logits for record in records() if record.masks]
    assert len(together) == len(alone) == 2
    for one, (other,) in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_masks_of_answers_are_those_of_training() -> None:
    model = tiny(upsampler=GuidedUpsampler()).eval()
    questions = [Sample(picture(24, 40, seed), (Turn("find it."),)) for seed in (0, 1, 0)]
    found = [
        model.predict(sample.image, "find it.", max_new_tokens=1, answer_prefix="it is [SEG].") for sample in questions
    ]
    items = [model.encoder.encode(sample, answers=False, answer_prefix="it is [SEG].") for sample in questions]
    with torch.no_grad():
        wanted = model.model(pack(items)).mask_logits
    for prediction, logits in zip(found, wanted, strict=True):
        assert np.array_equal(prediction.masks[0], (resize(logits, (24, 40)) > 0)[0].numpy())
    batched = model.predict_batch([(s.image, "find it.") for s in questions], 1, "it is [SEG].")  # two share an image
    assert all(np.array_equal(one.masks[0], other.masks[0]) for one, other in zip(batched, found, strict=True))
    assert not np.array_equal(found[0].masks[0], found[1].masks[0])
