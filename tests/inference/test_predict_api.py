"""`PixelSAIL.predict` and `predict_batch`: what goes in, what comes out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from inference_harness import chatter, exact_model, ids_of, picture, script
from PIL import Image

from sail_lightning import Box, Mask, PixelSAIL, Point, Sample, Scribble, Turn
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.encoding.collate import pack
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.generation.answering import as_sample
from sail_lightning.image.preprocessing import ExifImage, load_image, orientation

TEXT = "please segment the red circle."


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(picture(0, 30, 44)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_an_answer_holds_text_masks_and_what_was_asked(tiny: PixelSAIL, photo: Path) -> None:
    prompts = (Box(1, 2, 20, 20),)
    with script(tiny, *ids_of(tiny, "red"), tiny.tokens.seg):
        answer = tiny.predict(photo, "segment <Prompt0> .", prompts)
    assert answer.text.split() == ["red", "[SEG]"]
    assert answer.masks.shape == (1, 30, 44) and answer.masks.dtype == bool
    assert answer.image is not None and np.array_equal(answer.image, picture(0, 30, 44))
    assert (answer.question, answer.prompts, answer.source) == ("segment <Prompt0> .", prompts, str(photo))
    assert answer.finish == "end" and answer.seconds > 0


def test_a_file_and_its_pixels_are_answered_alike(photo: Path) -> None:
    model = exact_model()
    with chatter(model):
        answers = [model.predict(image, TEXT) for image in (photo, str(photo), picture(0, 30, 44))]
    assert len({answer.text for answer in answers}) == 1
    assert all(np.array_equal(answer.masks, answers[0].masks) for answer in answers)
    assert [answer.source for answer in answers] == [str(photo), str(photo), ""]


def test_grey_and_transparent_images_are_answered(tiny: PixelSAIL, tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "1"):
        Image.fromarray(picture(0)).convert(mode).save(tmp_path / f"{mode}.png")
        assert tiny.predict(tmp_path / f"{mode}.png", TEXT, max_new_tokens=1).image is not None


def test_text_alone_is_answered(tiny: PixelSAIL) -> None:
    with script(tiny, *ids_of(tiny, "red"), tiny.tokens.seg):
        answer = tiny.predict(None, TEXT)
    assert answer.text.split() == ["red", "[SEG]"] and answer.image is None and len(answer.masks) == 0
    assert answer.to_coco() == [] and answer.overlay().width > 0


def test_prompts_of_every_kind_change_what_is_read() -> None:
    model = exact_model()
    encode, embed = model.encoder.encode, model.model.embed
    kinds = [Box(0, 0, 9, 9), Point(20, 20), Scribble(((0, 23), (31, 23))), Mask(np.eye(24, 32, dtype=bool))]
    samples = [as_sample((picture(0), "segment <Prompt0> .", [kind])) for kind in kinds]
    found = [embed(pack([encode(sample, answers=False)])) for sample in samples]
    assert all((left != right).any() for place, left in enumerate(found) for right in found[:place])
    with script(model, model.tokens.seg):
        assert len(model.predict_batch(samples)) == 4


def test_an_id_and_a_place_in_the_list_name_the_same_prompt() -> None:
    model = exact_model()
    box, point = Box(0, 0, 9, 9), Point(20, 20)
    text = "segment <Prompt1> ."
    with script(model, model.tokens.seg):
        by_place = model.predict(picture(0), text, [box, point])
    with script(model, model.tokens.seg):
        by_id = model.predict(picture(0), text, [Point(20, 20, id=1), Box(0, 0, 9, 9, id=0)])
    assert np.array_equal(by_place.masks, by_id.masks)


def test_a_batch_equals_one_at_a_time(photo: Path) -> None:
    model = exact_model()
    history = (Turn("what is it ?", "a circle."), Turn(TEXT))
    questions: list[Any] = [
        (photo, TEXT),
        (photo, "describe <Prompt0> .", [Box(0, 0, 9, 9)]),
        (picture(1, 17, 40), TEXT),
        (None, TEXT),
        Sample(photo, history, id="record"),
    ]
    with chatter(model):
        together = model.predict_batch(iter(questions))
        alone = [model.predict_batch([question])[0] for question in questions]
    assert [item.text for item in together] == [item.text for item in alone]
    assert all(np.array_equal(left.masks, right.masks) for left, right in zip(together, alone, strict=True))
    assert len({item.text for item in together}) > 2
    assert [item.question for item in together] == [TEXT, "describe <Prompt0> .", TEXT, TEXT, TEXT]


def test_no_question_no_answer(tiny: PixelSAIL) -> None:
    assert tiny.predict_batch([]) == []


@pytest.mark.parametrize("limit", [1, 3])
def test_an_answer_is_no_longer_than_asked(tiny: PixelSAIL, limit: int) -> None:
    with script(tiny, *ids_of(tiny, "red", "circle", "red", "circle", "a")):
        answer = tiny.predict(picture(0), TEXT, max_new_tokens=limit)
    assert len(answer.text.split()) == limit and answer.finish == "length"


def test_the_models_own_limit_is_the_default(tiny: PixelSAIL) -> None:
    with script(tiny, *ids_of(tiny, *["red", "circle", "a"] * 3)):
        assert len(tiny.predict(picture(0), TEXT).text.split()) == tiny.max_new_tokens == 8


def test_training_goes_on_after_a_prediction() -> None:
    model = exact_model().train()
    model.predict(picture(0), TEXT, max_new_tokens=1)
    assert model.training and model.model.training


def test_a_model_is_built_by_its_first_prediction() -> None:
    from sail_lightning.plugins.backbones import SailQwen
    from sail_lightning.plugins.prompt_encoders import NoPrompts
    from sail_lightning.plugins.upsamplers import IdentityUpsampler

    backbone = SailQwen(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, num_key_value_heads=2)
    model = PixelSAIL(backbone, IdentityUpsampler(), NoPrompts(), mask_channels=8)
    assert model.predict(picture(0), TEXT, max_new_tokens=1).masks.shape[1:] == (24, 32)


# -- refused ----------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def half(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Image.fromarray(picture(0, 200, 200)).save(folder / f"whole{suffix}")
        content = (folder / f"whole{suffix}").read_bytes()
        return write(folder / f"half{suffix}", content[: len(content) // 2])

    return make


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda folder: folder / "gone.png", "no image {path}"),
    "text named jpg": (lambda folder: write(folder / "text.jpg", b"no picture"), "{path} is not a readable image"),
    "empty file": (lambda folder: write(folder / "empty.png", b""), "{path} is not a readable image"),
    "half a jpeg": (half(".jpg"), "{path} is not a readable image"),
    "half a png": (half(".png"), "{path} is not a readable image"),
    "folder": (lambda folder: folder, "{path} is not a readable image"),
    "grey array": (lambda folder: np.zeros((8, 8), np.uint8), "must be (H, W, 3) uint8, not (8, 8) uint8"),
    "channel first": (lambda folder: np.zeros((3, 8, 8), np.uint8), "must be (H, W, 3) uint8"),
    "float array": (lambda folder: np.zeros((8, 8, 3)), "not (8, 8, 3) float64"),
    "empty array": (lambda folder: np.zeros((0, 8, 3), np.uint8), "not (0, 8, 3)"),
}


def is_one_sentence(error: SailError, *words: str) -> bool:
    message = str(error)
    assert all(word in message for word in words), message
    return "\n" not in message and len(message) < 400 and "Error" not in message


@pytest.mark.parametrize("fault", FAULTS)
def test_an_image_that_cannot_be_read_is_a_fault_that_names_it_once(
    fault: str, tiny: PixelSAIL, tmp_path: Path
) -> None:
    make, words = FAULTS[fault]
    image = make(tmp_path)
    for form in (image, f"{tmp_path}/./{image.name}") if isinstance(image, Path) and fault != "folder" else (image,):
        with pytest.raises(SailError) as caught:
            tiny.predict(form, TEXT)
        assert type(caught.value) is SailError
        assert is_one_sentence(caught.value, words.format(path=image))
        assert isinstance(image, np.ndarray) or str(caught.value).count(image.name) == 1


USAGE: dict[str, tuple[str, list[Any], list[str]]] = {
    "id out of range": ("describe it.", [Point(1, 1, id=4)], ["prompt id 4 is out of range", "0 to 3"]),
    "negative id": ("describe it.", [Point(1, 1, id=-1)], ["prompt id -1 is out of range"]),
    "more prompts than ids": ("describe it.", [Point(1, 1)] * 5, ["prompt id 4 is out of range"]),
    "id twice": ("describe it.", [Point(1, 1, id=2), Box(1, 1, 9, 9, id=2)], ["two prompts have the id 2"]),
    "id and place collide": ("describe it.", [Point(1, 1), Box(1, 1, 9, 9, id=0)], ["two prompts have the id 0"]),
    "named, none given": ("describe <Prompt3> .", [], ["<Prompt3>", "the prompts are none"]),
    "named, another given": ("describe <Prompt3> .", [Point(1, 1)], ["<Prompt3>", "the prompts are <Prompt0>"]),
    "empty": ("", [], ["the question is empty"]),
    "blank": (" \n", [], ["the question is empty"]),
    "too long": ("red " * 8200, [], ["tokens are over the limit of 8192", "shorten the text"]),
    "layout token": ("what is <vpatch> ?", [], ["may not contain <vpatch>"]),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_question_is_a_fault_of_usage(case: str, tiny: PixelSAIL, photo: Path) -> None:
    text, prompts, words = USAGE[case]
    with pytest.raises(SailUsageError) as caught:
        tiny.predict(photo, text, prompts)
    assert is_one_sentence(caught.value, *words, f"{photo}: ")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Box(100, 100, 120, 120), "covers nothing of the image (44 x 30 pixels)"),
        (Box(9, 9, 2, 2), "covers nothing"),
        (Point(-1, 5), "covers nothing"),
        (Point(float("nan"), 5), "covers nothing"),
        (Scribble(((-9.0, -9.0), (-5.0, -5.0))), "covers nothing"),
        (Mask(np.zeros((30, 44), bool)), "the prompt Mask covers nothing"),
        (Mask(np.ones((44, 30), bool)), "the prompt mask is 30 x 44 pixels, the image 44 x 30"),
        (Mask("gone.png"), "no mask file gone.png"),
    ],
    ids=str,
)
def test_a_prompt_that_does_not_fit_its_image_names_both(prompt: Any, words: str, tiny: PixelSAIL, photo: Path) -> None:
    with pytest.raises(SailError) as caught:
        tiny.predict(photo, "describe <Prompt0> .", [prompt])
    assert is_one_sentence(caught.value, words, f"{photo}: ")


def test_a_mask_file_that_is_no_image_is_named(tiny: PixelSAIL, photo: Path, tmp_path: Path) -> None:
    broken = write(tmp_path / "mask.png", b"no mask")
    with pytest.raises(SailError) as caught:
        tiny.predict(photo, "describe <Prompt0> .", [Mask(broken)])
    assert is_one_sentence(caught.value, f"{broken} is not a readable mask (of no known format)")
    assert str(caught.value).count("mask.png") == 1


def test_prompts_without_an_image_are_refused(tiny: PixelSAIL) -> None:
    with pytest.raises(SailUsageError, match="visual prompts need an image"):
        tiny.predict(None, "describe <Prompt0> .", [Point(1, 1)])


def test_a_sample_without_a_turn_is_refused(tiny: PixelSAIL) -> None:
    with pytest.raises(SailUsageError, match="set 7: the question is empty"):
        tiny.predict_batch([Sample(picture(0), (), source="set", id="7")])


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tiny: PixelSAIL, limit: int) -> None:
    with pytest.raises(SailUsageError, match="max_new_tokens must be at least 1"):
        tiny.predict(picture(0), TEXT, max_new_tokens=limit)


def test_a_photo_of_a_phone_is_answered_upright(tmp_path: Path) -> None:
    upright = picture(0, 30, 44)
    lying = Image.fromarray(np.rot90(upright))  # as the sensor was held
    exif = lying.getexif()
    exif[0x0112] = 6  # turn it a quarter clockwise
    lying.save(tmp_path / "phone.png", exif=exif)
    model = exact_model()
    wanted = model.predict(upright, "segment the circle.")
    found = model.predict(tmp_path / "phone.png", "segment the circle.")
    assert found.image is not None and np.array_equal(found.image, upright)
    assert found.text == wanted.text and np.array_equal(found.masks, wanted.masks)
    assert found.source == str(tmp_path / "phone.png")
    data = SailDataModule(images=str(tmp_path), text="segment the circle.")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (answered,) = trainer.predict(model, datamodule=data)  # type: ignore[misc]
    assert np.array_equal(answered[0].image, upright) and answered[0].source == found.source
    assert np.array_equal(load_image(tmp_path / "phone.png"), np.rot90(upright)), "data sets count stored pixels"


def test_a_photo_asked_about_both_ways_is_shown_both_ways(tmp_path: Path) -> None:
    lying = Image.fromarray(picture(0, 30, 44))
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(tmp_path / "phone.png", exif=exif)
    stored = Sample(str(tmp_path / "phone.png"), (Turn(TEXT),))
    shown = exact_model().predict_batch([stored, (tmp_path / "phone.png", TEXT)])
    assert [one.image.shape[:2] for one in shown if one.image is not None] == [(30, 44), (44, 30)]
    assert [one.masks.shape[1:] for one in shown] == [(30, 44), (44, 30)]


@pytest.mark.parametrize(("turn", "wanted"), [(0, 1), (1, 1), (6, 6), (9, 1)])
def test_only_orientations_that_turn_are_told(turn: int, wanted: int, tmp_path: Path) -> None:
    image = Image.fromarray(picture(0, 30, 44))
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert orientation(tmp_path / "a.jpg") == wanted
    image.save(tmp_path / "a.tif", exif=exif)
    assert orientation(tmp_path / "a.tif") == 1, "PIL turns it"


def test_a_damaged_orientation_leaves_an_image_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(picture(0, 30, 44)).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage", quality=100)
    assert np.array_equal(ExifImage(tmp_path / "a.jpg")(), load_image(tmp_path / "a.jpg"))
