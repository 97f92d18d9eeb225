"""The layout of images and words agrees with the official code, number for number (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from sail_lightning.image.preprocessing import IMAGE_MEAN, IMAGE_STD, patch_coverage, patchify, resized_size
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.sequence.layout import ImageLayout, SequenceBuilder, TokenSequence

GOLDEN = Path(__file__).parent.parent / "golden"
POSITIONS = load_file(GOLDEN / "positions_and_masks.safetensors")
PREPROCESSING = load_file(GOLDEN / "preprocessing.safetensors")
# Tokens before the patches (the last is <vision>), rows, columns, tokens after (the first is </vision>).
CASES = {"a": (1, 2, 3, 4), "b": (3, 4, 2, 2), "c": (1, 1, 5, 1)}


def laid_out(case: str) -> TokenSequence:
    before, rows, columns, after = CASES[case]
    ids = POSITIONS[f"pos.{case}.ids"].tolist()
    layout = ImageLayout((ids[before - 1],), ids[before], end=(ids[-after],))
    builder = SequenceBuilder(layout).text(ids[: before - 1]).image((rows, columns))
    return builder.text(ids[len(ids) - after + 1 :]).build()


@pytest.mark.parametrize("case", CASES)
def test_ids_are_the_official_ones(case: str) -> None:
    assert laid_out(case).ids.tolist() == POSITIONS[f"pos.{case}.ids"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_positions_are_the_official_ones(case: str) -> None:
    assert laid_out(case).positions.tolist() == POSITIONS[f"pos.{case}"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_attention_mask_is_the_official_one(case: str) -> None:
    plan = AttentionPlan.build([list(laid_out(case).spans)])
    assert plan.dense_mask().equal(POSITIONS[f"mask.{case}"])


@pytest.mark.parametrize(
    "row", json.loads((GOLDEN / "resize_table.json").read_text()), ids=lambda r: f"{r['w']}x{r['h']}"
)
@pytest.mark.parametrize("patch", [16, 32])
def test_images_are_resized_to_the_official_size(row: dict, patch: int) -> None:
    width, height = row[f"p{patch}"]
    if 0 in (width, height):  # the official rule gives an empty image for extreme shapes; ours keeps one patch
        assert min(resized_size((row["h"], row["w"]), patch)) == patch
    else:
        assert resized_size((row["h"], row["w"]), patch) == (height, width)


@pytest.mark.parametrize("patch", [16, 32])
def test_patches_are_the_official_ones(patch: int) -> None:
    expected = PREPROCESSING[f"image_patches_p{patch}"].numpy()
    image = np.asarray(Image.open(GOLDEN / "prep_image_70x45.png").convert("RGB"))
    patches, grid = patchify(image, patch)
    mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    ours = (patches.reshape(*grid, 3, patch, patch).astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(ours[: expected.shape[0]], expected, atol=1e-6)


@pytest.mark.parametrize("patch", [16, 32])
@pytest.mark.parametrize("name", ["mask_patches", "bigmask_patches"])
def test_prompt_masks_are_the_official_ones_by_the_official_rule(name: str, patch: int) -> None:
    expected = PREPROCESSING[f"{name}_p{patch}"].numpy()
    assert (patch_coverage(read_mask(name), expected.shape, patch, rule="nearest_pil") == expected).all()


@pytest.mark.parametrize("patch", [16, 32])
def test_prompt_masks_are_the_official_ones_where_nothing_shrinks(patch: int) -> None:
    expected = PREPROCESSING[f"mask_patches_p{patch}"].numpy()
    assert (patch_coverage(read_mask("mask_patches"), expected.shape, patch) == expected).all()


@pytest.mark.parametrize("patch", [16, 32])
def test_what_the_official_rule_keeps_of_a_shrunk_mask_is_kept(patch: int) -> None:
    official = PREPROCESSING[f"bigmask_patches_p{patch}"].numpy()
    ours = patch_coverage(read_mask("bigmask_patches"), official.shape, patch)
    assert (ours & official == official).all()


def test_points_that_the_official_rule_loses_are_kept() -> None:
    lost = 0
    for x in range(0, 2250, 7):  # an image of 2250 x 1500 pixels is shrunk to 1024 x 688
        mask = np.zeros((1500, 2250), bool)
        mask[700, x] = True
        lost += not patch_coverage(mask, (43, 64), 16, rule="nearest_pil").any()
        assert patch_coverage(mask, (43, 64), 16).sum() == 1
    assert lost > 100


def read_mask(name: str) -> np.ndarray:
    file = {"mask_patches": "prep_mask_70x45.png", "bigmask_patches": "prep_mask_1500x130.png"}[name]
    return np.asarray(Image.open(GOLDEN / file)) > 0
