"""A `Prediction` as text, phrases, COCO records and an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_harness import picture
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from sail_lightning import Box, Mask, Point, Prediction, Scribble
from sail_lightning.generation.prediction import encode_rle
from sail_lightning.image.drawing import captioned, grid, tint, wrap
from sail_lightning.sequence.chat_template import phrases_of


def masks(count: int, height: int = 20, width: int = 30) -> NDArray[np.bool_]:
    return np.random.default_rng(count).random((count, height, width)) < 0.3


# -- phrases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("", ()),
        ("no mask at all", ()),
        ("it is [SEG].", ("",)),
        ("[SEG], [SEG] and [SEG]", ("", "", "")),
        ("<p> a red circle </p> [SEG] left of <p>a\nsquare</p>[SEG].", ("a red circle", "a square")),
        ("<p> a circle </p> without a mask, and [SEG]", ("",)),
        ("<p> one </p> <p> two </p> [SEG]", ("two",)),
        ("<p> two circles </p> [SEG] [SEG]", ("two circles", "")),
        ("<p> never closed [SEG] <p> closed </p> [SEG]", ("", "closed")),
        ("closed only </p> [SEG]", ("",)),
        ("<p></p> [SEG]", ("",)),
    ],
)
def test_a_phrase_belongs_to_the_mask_behind_it(text: str, phrases: tuple[str, ...]) -> None:
    assert phrases_of(text) == phrases
    assert Prediction(text, masks(len(phrases))).phrases == list(phrases)


@given(st.lists(st.sampled_from(["<p>", "</p>", "[SEG]", "red", " ", "\n", "<p", "[SEG"])).map("".join))
def test_there_is_one_phrase_for_each_seg(text: str) -> None:
    found = phrases_of(text)
    assert len(found) == text.count("[SEG]")
    assert not any(tag in phrase for phrase in found for tag in ("<p>", "</p>", "[SEG]"))


# -- COCO -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=60)
def test_coco_records_decode_to_the_masks(height: int, width: int, seed: int, share: float) -> None:
    drawn = np.random.default_rng(seed).random((2, height, width)) < share
    records = Prediction("<p> a </p> [SEG] [SEG]", drawn).to_coco()
    assert [record["phrase"] for record in records] == ["a", ""]
    for mask, record in zip(drawn, records, strict=True):
        assert np.array_equal(coco.decode(record["segmentation"]).astype(bool), mask)
        assert record["area"] == int(coco.area(record["segmentation"])) == mask.sum()
        assert record["bbox"] == coco.toBbox(record["segmentation"]).tolist()


def test_coco_records_are_plain_json() -> None:
    import json

    (record,) = Prediction("[SEG]", masks(1)).to_coco()
    assert json.loads(json.dumps(record)) == record


def test_without_an_image_there_are_phrases_but_no_records() -> None:
    text_only = Prediction("<p> a circle </p> [SEG]", np.zeros((0, 0, 0), bool))
    assert text_only.phrases == ["a circle"] and text_only.to_coco() == []


# -- overlay ----------------------------------------------------------------------------------------------------------

PROMPTS = (
    Box(2, 3, 12, 18),
    Point(29, 0, id=3),
    Scribble(((1.0, 1.0), (20.0, 10.0), (5.0, 19.0))),
    Mask(masks(1)[0], id=1),
    Box(-5, -5, 500, 500),
)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("size", [(1, 1), (20, 30), (300, 9), (700, 600)])
def test_overlays_of_any_number_of_masks_and_any_size(count: int, size: tuple[int, int]) -> None:
    image = picture(0, *size)
    before = image.copy()
    drawn = Prediction("[SEG]" * count, np.ones((count, *size), bool), image, "what is it ?").overlay()
    assert drawn.mode == "RGB" and drawn.width >= size[1] and drawn.height > size[0]
    assert np.array_equal(image, before), "the picture itself is left alone"


def test_a_mask_tints_its_pixels_and_no_other() -> None:
    image = np.full((128, 128, 3), 100, np.uint8)
    mask = np.zeros((1, 128, 128), bool)
    mask[0, 20:60, 30:90] = True
    pixels = np.asarray(Prediction("[SEG]", mask, image).overlay())[:256, :256]
    changed = (pixels != 100).any(-1)
    assert np.array_equal(changed, mask[0].repeat(2, 0).repeat(2, 1))


def test_contours_are_drawn_at_the_edge_of_the_image() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    tint(pixels, np.ones((8, 8), bool), (200, 100, 50), 0.5)
    assert (pixels[0] == (200, 100, 50)).all() and (pixels[4, 4] == (100, 50, 25)).all()


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: type(prompt).__name__)
def test_prompts_of_every_kind_are_outlined(prompt: Box) -> None:
    image = picture(0, 20, 30)
    plain, marked = (np.asarray(Prediction("", masks(0), image, prompts=p).overlay()) for p in ((), (prompt,)))
    assert plain.shape == marked.shape and (plain != marked).any(-1).sum() > 20


def test_a_prompt_from_a_file_is_outlined(tmp_path: Path) -> None:
    Image.fromarray(masks(1)[0].astype(np.uint8) * 255).save(tmp_path / "m.png")
    image, array = picture(0, 20, 30), Mask(masks(1)[0])
    drawn = [Prediction("", masks(0), image, prompts=(p,)).overlay() for p in (array, Mask(tmp_path / "m.png"))]
    assert np.array_equal(*map(np.asarray, drawn))


def test_an_answer_without_an_image_is_a_card_of_text() -> None:
    card = np.asarray(Prediction("a red circle.", masks(0)[:, :0, :0], question="what ?").overlay())
    assert card.shape[1] >= 240 and (card < 128).all(-1).any()


# -- drawing ----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab \n\u00e9\u4e2d", max_size=80), st.integers(30, 120))
@settings(max_examples=50)
def test_wrapped_text_keeps_every_letter_within_its_width(text: str, width: int) -> None:
    from sail_lightning.image.drawing import FONT

    lines = wrap(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(FONT.getlength(line) <= width for line in lines)


def test_a_caption_makes_room_below_the_image() -> None:
    one = Image.new("RGB", (50, 40), "red")
    assert captioned(one, []).size == one.size
    sheet = captioned(one, ["many words that do not fit into one line"], 100)
    assert sheet.width == 100 and sheet.height > 40 + 13
    assert (np.asarray(sheet)[:40, 25:75] == (255, 0, 0)).all()


def test_images_stand_in_rows_without_overlap() -> None:
    sheet = np.asarray(grid([Image.new("RGB", (10 + n, 5), (n, 0, 0)) for n in range(5)], columns=2, margin=3))
    assert [int((sheet == (n, 0, 0)).all(-1).sum()) for n in range(5)] == [5 * (10 + n) for n in range(5)]


def test_run_lengths_are_text() -> None:
    assert isinstance(encode_rle(masks(1)[0])["counts"], str) and encode_rle(masks(1)[0])["size"] == [20, 30]
