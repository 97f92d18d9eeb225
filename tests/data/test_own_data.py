"""Your own masks: a folder of PNGs with phrases, and COCO's instance format."""

from __future__ import annotations

import csv
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dataset_writers.scenes import dump, photo
from PIL import Image
from test_readme import blocks, commands

from sail_lightning.cli import main
from sail_lightning.cli.commands import lightning_verbs
from sail_lightning.data import sources
from sail_lightning.data.jsonl import from_json
from sail_lightning.data.sources import CocoInstances, FolderSource, JsonlSource, ShardSource
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import load_image, load_mask
from sail_lightning.image.segmentations import decode
from sail_lightning.sample import Sample, Turn

PICTURES = {"0.jpg": 0, "1.png": 1, "1_a.png": 2, "deep/er/2.png": 3}
"""Names of images, and the photos they show."""


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Masks in all three places, phrases of most of them."""
    for name, number in PICTURES.items():
        photo(number).save(tmp_path / "images" / name)
    for name, number, thing in (
        ("0", 0, 0),
        ("1_left", 1, 0),
        ("1_right", 1, 1),
        ("1_a", 2, 0),
        ("1_a_b", 2, 1),
        ("deep/er/2/first", 3, 0),
        ("deep/er/2/second", 3, 1),
        ("deep/er/2/third", 3, 2),
    ):
        save_mask(tmp_path / f"masks/{name}.png", photo(number).things[thing].mask)
    lines = ["0\tThe thing.", "0\ta  façade", "", "1_left\tleft", "1_right.png\tright", "1_a\tit", "1_a_b\tthat"]
    lines += ["deep/er/2/first\tthings", "deep/er/2/second\tthings", "deep/er/2/second\tthe second"]
    (tmp_path / "phrases.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def source(folder: Path, phrases: str = "phrases.txt", **settings: Any) -> FolderSource:
    return FolderSource(str(folder / "images"), str(folder / "masks"), str(folder / phrases), **settings)


def by_phrase(sample: Sample) -> dict[str, np.ndarray]:
    """The mask of each turn, by its question."""
    return {turn.question: load_mask(sample.masks[turn.targets[0]]) for turn in sample.turns}


PLAIN = {"questions": ["{}?"], "answers": ["[SEG]."]}


def test_a_mask_belongs_to_the_image_whose_name_its_own_begins_with(folder: Path) -> None:
    read = source(folder, **PLAIN)
    found = {sample.id: sample for sample in map(read.full_record, range(read.length))}
    assert list(found) == ["0", "1", "1_a", "deep/er/2"]
    assert found["deep/er/2"].image == str(folder / "images/deep/er/2.png")
    masks = {f"{name} {question}": mask for name in found for question, mask in by_phrase(found[name]).items()}
    first, second, _ = (thing.mask for thing in photo(3).things)
    expected = {
        "0 The thing?": photo(0).things[0].mask,
        "1 left?": photo(1).things[0].mask,
        "1 right?": photo(1).things[1].mask,
        "1_a it?": photo(2).things[0].mask,  # not of the image 1
        "1_a that?": photo(2).things[1].mask,
        "deep/er/2 things?": first | second,  # one phrase of two masks
        "deep/er/2 the second?": second,
    }
    assert masks.keys() == expected.keys()
    assert all(np.array_equal(masks[name], expected[name]) for name in masks)


def test_training_asks_about_several_masks_in_the_words_of_the_recipe(folder: Path) -> None:
    read = source(folder)
    drawn = [read.sample_record(0, np.random.default_rng(seed)) for seed in range(40)]
    turns = [turn for sample in drawn for turn in sample.turns]
    asked = {text.format(phrase) for text in prompt_templates.SEGMENT for phrase in ("The thing", "a façade")}
    assert {turn.question for turn in turns} <= asked
    assert {turn.answer for turn in turns} == set(prompt_templates.SEGMENT_ANSWERS)
    assert {"façade" in turn.question for turn in turns} == {True, False}  # alternatives of one mask
    assert [len(read[index].turns) for index in range(read.length)] == [1, 2, 2, 2]
    assert len(source(folder, objects=1)[1].turns) == 1
    assert read[1] == read[1]


def test_separate_questions_are_every_phrase_once(folder: Path) -> None:
    read = source(folder, separate=True)
    samples = [read[index] for index in range(read.length)]
    assert [sample.id for sample in samples] == [f"{id}/{n}" for id in ("0", "1", "1_a", "deep/er/2") for n in (0, 1)]
    assert all(len(sample.turns) == len(sample.masks) == 1 for sample in samples)
    assert samples[1].turns[0].question == "Please segment a façade in this image."


def test_phrases_may_be_json(folder: Path) -> None:
    dump(folder / "phrases.json", {"0": "the thing", "1_left": ["left", "the left one"]})
    read = source(folder, "phrases.json", separate=True, **PLAIN)
    assert [read[index].turns[0].question for index in range(read.length)] == ["the thing?", "left?", "the left one?"]


def test_a_share_is_held_out_by_the_names_of_images(tmp_path: Path) -> None:
    for number in range(20):
        photo(number).save(tmp_path / f"images/{number}.png")
        save_mask(tmp_path / f"masks/{number}.png", photo(number).things[0].mask)
    (tmp_path / "phrases.txt").write_text("\n".join(f"{number}\tit" for number in range(20)))

    def names(part: str, **settings: Any) -> list[str]:
        read = source(tmp_path, part=part, **settings)
        return [read[index].id for index in range(read.length)]

    train, val = names("train"), names("val")
    assert len(val) == 2 and sorted(train + val) == sorted(names("all"))
    assert names("val", separate=True) == [f"{name}/0" for name in val]
    assert set(val) <= set(names("val", val_share=0.5)) and len(names("val", val_share=0.5)) == 10
    assert len(names("val", val_share=0.01)) == 1 and len(names("train", val_share=0.99)) == 1
    assert names("val", val_share=0.0) == [] and names("train", val_share=1.0) == []
    with pytest.raises(SailUsageError, match="val_share must be from 0 to 1, not 1.5"):
        source(tmp_path, val_share=1.5)


def test_a_file_that_is_added_is_found(folder: Path) -> None:
    before = source(folder).length
    photo(9).save(folder / "images/9.png")
    save_mask(folder / "masks/9.png", photo(9).things[0].mask)
    with (folder / "phrases.txt").open("a") as file:
        file.write("\n9\tnew")
    assert source(folder).length == before + 1


FAULTS = {
    "no tab": ("0 the thing", r"line 1 of phrases.txt has no phrase; write a mask's name, a tab and a phrase"),
    "no phrase": ("0\t.", "line 1 of phrases.txt has no phrase"),
    "no mask": ("9\tit", r"line 1 of phrases.txt names a mask that is absent, .*masks/9.png"),
    "no picture": ("alone\tit", r"the mask .*masks/alone.png belongs to no image of .*; name it after its image"),
}


@pytest.mark.parametrize(("line", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_line_without_a_mask_is_one_sentence_and_the_others_are_read(line: str, sentence: str, folder: Path) -> None:
    save_mask(folder / "masks/alone.png", photo(0).things[0].mask)
    (folder / "phrases.txt").write_text(f"{line}\n1_left\tleft", encoding="utf-8")
    read = source(folder)
    assert read.length == 2 and read[1].id == "1"
    with pytest.raises(SailError, match=sentence):
        read[0]


def test_a_mask_of_which_nothing_is_said_is_told_to_a_check(folder: Path) -> None:
    read = source(folder)
    assert [read.faults(index) for index in range(3)] == [[], [], []]
    (fault,) = read.faults(3)
    assert fault.startswith("the mask ") and "deep/er/2/third.png has no phrase; add one to" in fault
    apart = source(folder, separate=True)
    assert [len(apart.faults(index)) for index in range(8)] == [0, 0, 0, 0, 0, 0, 1, 0]  # once, not for each phrase


def test_faults_of_the_whole_folder_are_one_sentence(folder: Path) -> None:
    with pytest.raises(SailError, match=r"no folder .*gone"):
        FolderSource(str(folder / "gone"), str(folder / "masks"), str(folder / "phrases.txt")).length  # noqa: B018
    with pytest.raises(SailError, match=r"no annotation file .*gone.txt"):
        source(folder, "gone.txt").length  # noqa: B018
    dump(folder / "list.json", ["0"])
    with pytest.raises(SailError, match=r"list.json must be an object such as"):
        source(folder, "list.json").length  # noqa: B018
    (folder / "latin.txt").write_bytes("0\tfaçade".encode("latin-1"))
    with pytest.raises(SailError, match=r"latin.txt is not UTF-8 text .*; save it as UTF-8"):
        source(folder, "latin.txt").length  # noqa: B018
    save_mask(folder / "masks/deep/er/2/second.png", np.ones((3, 3), bool))
    with pytest.raises(SailError, match=r"second.png has \(3, 3\) pixels \(height, width\), .*first.png has"):
        by_phrase(source(folder)[3])


def test_a_mask_that_may_be_of_two_images_is_told_and_the_others_are_read(folder: Path) -> None:
    before = source(folder)
    photo(1).save(folder / "images/0.png")
    read = source(folder)
    assert read.length > before.length - 1
    with pytest.raises(SailError, match=r"the mask .*0\.png may belong to .*0\.jpg or .*0\.png; rename one"):
        read[0]
    assert (
        by_phrase(read.full_record(read.length - 1)).keys() == by_phrase(before.full_record(before.length - 1)).keys()
    )


def test_masks_in_the_folder_of_the_images_are_no_images(tmp_path: Path) -> None:
    photo(0).save(tmp_path / "images/01.png")
    things = photo(0).things
    for name, thing in (("01_cup", 0), ("01_cup_2", 1)):
        save_mask(tmp_path / f"images/masks/{name}.png", things[thing].mask)
    (tmp_path / "phrases.txt").write_text("01_cup\tthe cup\n01_cup_2\tthe other")
    read = FolderSource(*(str(tmp_path / name) for name in ("images", "images/masks", "phrases.txt")), **PLAIN)
    assert [read[index].image for index in range(read.length)] == [str(tmp_path / "images/01.png")]
    assert by_phrase(read.full_record(0)).keys() == {"the cup?", "the other?"}


def test_one_folder_for_images_and_masks_is_refused(folder: Path) -> None:
    with pytest.raises(SailUsageError, match=r"images and masks are one folder, .*; move the masks into a folder of"):
        FolderSource(str(folder / "images"), str(folder / "masks/../images"), str(folder / "phrases.txt"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_of_a_mask_with_transparency_only_what_is_seen_is_on(mode: str, folder: Path) -> None:
    mask = photo(0).things[0].mask
    pixels = np.full((*mask.shape, 4), (255, 255, 255, 0), np.uint8)  # transparent white
    pixels[mask] = (255, 0, 0, 255)
    pixels[0, 0] = (0, 0, 0, 255)  # black is off, though it is seen
    Image.fromarray(pixels).convert(mode).save(folder / "masks/0.png")
    mask = mask.copy()
    mask[0, 0] = False
    assert all(np.array_equal(found, mask) for found in by_phrase(source(folder).full_record(0)).values())
    line = {
        "id": "a",
        "image": "images/0.jpg",
        "turns": [{"question": "?", "answer": "[SEG]"}],
        "masks": ["masks/0.png"],
    }
    dump(folder / "data.jsonl", line)
    assert np.array_equal(load_mask(JsonlSource(str(folder / "data.jsonl"))[0].masks[0]), mask)


def test_a_phrase_may_hold_any_sign_but_a_line_end(folder: Path) -> None:
    (folder / "phrases.txt").write_text("1_left\tleft\u2028side\n1_right\tright", encoding="utf-8")
    assert set(by_phrase(source(folder, **PLAIN).full_record(0))) == {"left side?", "right?"}


def test_wordings_of_your_own_are_checked(folder: Path) -> None:
    with pytest.raises(SailUsageError, match=r"a question needs one {} where the phrase goes, which 'where\?' lacks"):
        source(folder, questions=["where?"])
    with pytest.raises(SailUsageError, match=r"an answer needs one \[SEG\] where the mask goes, which 'Here.' lacks"):
        source(folder, answers=["Here."])
    with pytest.raises(SailUsageError, match="objects must be 1 or more, not 0"):
        source(folder, objects=0)


# -- COCO -------------------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "person"}]


def coco(folder: Path, annotations: list[dict[str, Any]], photos: int = 1, **settings: Any) -> CocoInstances:
    """A file about photos with three things each; an annotation is of thing number `thing` of photo `image_id`."""
    images, made = [], []
    for number in range(photos):
        one = photo(number)
        one.save(folder / f"images/{number}.png")
        height, width = one.size
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    for id, annotation in enumerate(annotations):
        own = {"id": id, "image_id": 0, "iscrowd": 0} | annotation
        thing = photo(own["image_id"]).things[own.pop("thing", 0)]
        made.append({"segmentation": thing.polygons} | own)
    dump(folder / "coco.json", {"images": images, "annotations": made, "categories": CATEGORIES})
    return CocoInstances(str(folder / "coco.json"), str(folder / "images"), **(PLAIN | settings))


def test_categories_speak_for_the_only_one_or_for_every_one(tmp_path: Path) -> None:
    things = [{"category_id": 1, "thing": 0}, {"category_id": 1, "thing": 1}, {"category_id": 2, "thing": 2}]
    a, b, c = (thing.mask for thing in photo(0).things)
    masks = by_phrase(coco(tmp_path, things).full_record(0))
    assert masks.keys() == {"every dog?", "the cat?"}
    assert np.array_equal(masks["every dog?"], a | b) and np.array_equal(masks["the cat?"], c)
    crowd = {"category_id": 3, "iscrowd": 1, "segmentation": photo(0).things[0].uncompressed()}
    masks = by_phrase(coco(tmp_path, [crowd])[0])
    assert list(masks) == ["every person?"] and np.array_equal(masks["every person?"], a)


def test_phrases_of_annotations_come_before_categories(tmp_path: Path) -> None:
    things = [
        {"category_id": 1, "thing": 0, "caption": "the left dog."},
        {"category_id": 1, "thing": 1},
        {"category_id": 2, "thing": 2, "caption": ["the cat on the mat", "the pets"]},
        {"category_id": 3, "thing": 0, "caption": "the pets"},
        {"category_id": 3, "thing": 1, "caption": ""},
    ]
    a, _, c = (thing.mask for thing in photo(0).things)
    read = coco(tmp_path, things, phrase_key="caption", separate=True)
    masks = {question: mask for index in range(read.length) for question, mask in by_phrase(read[index]).items()}
    expected = {"the left dog?": a, "the cat on the mat?": c, "the pets?": a | c}
    assert masks.keys() == expected.keys()  # no dog is "the dog", no one is "every dog"
    assert all(np.array_equal(masks[name], expected[name]) for name in masks)
    assert by_phrase(coco(tmp_path, [things[1], things[3]], phrase_key="caption").full_record(0)).keys() == {
        "the dog?",
        "the pets?",
    }


def test_photos_without_annotations_are_no_records_and_a_share_is_held_out(tmp_path: Path) -> None:
    things = [{"category_id": 1, "image_id": number} for number in (0, 2, 3)]
    ids = {part: [] for part in ("all", "train", "val")}
    for part, found in ids.items():
        read = coco(tmp_path, things, photos=4, part=part)
        found += [read[index].id for index in range(read.length)]
    assert ids["all"] == ["0", "2", "3"] == sorted(ids["train"] + ids["val"]) and len(ids["val"]) == 1


def test_a_file_of_phrases_needs_no_categories(tmp_path: Path) -> None:
    coco(tmp_path, [{"caption": "the left dog"}, {"caption": "a cat", "thing": 1}, {"image_id": 1}], photos=2)
    content = json.loads((tmp_path / "coco.json").read_text())
    del content["categories"]
    dump(tmp_path / "coco.json", content)
    paths = (str(tmp_path / "coco.json"), str(tmp_path / "images"))
    read = CocoInstances(*paths, phrase_key="caption", **PLAIN)
    assert by_phrase(read.full_record(0)).keys() == {"the left dog?", "a cat?"}
    with pytest.raises(SailError, match="1: annotation 2 has neither a phrase nor a category_id; give it one of them"):
        read[1]
    with pytest.raises(SailError, match="coco.json is not laid out as .* the key 'categories' is missing"):
        CocoInstances(*paths).length  # noqa: B018


def test_turns_are_referring_ones_with_their_targets(tmp_path: Path) -> None:
    (turn,) = coco(tmp_path, [{"category_id": 2}])[0].turns
    assert turn == Turn("the cat?", "[SEG].", "refer", (0,))


BROKEN = {
    "photo": ({"image_id": 0, "id": 5}, {"image_id": 9}, "annotation 5: image_id 9 belongs to no image; fix"),
    "category": ({"category_id": 8}, {}, "0: category_id 8 of annotation 0 is not among the categories"),
    "segmentation": ({"category_id": 1}, {"segmentation": None}, "0: an annotation of 'the dog' has no segmentation"),
    "caption": (
        {"category_id": 1, "caption": 3},
        {},
        "0: caption of annotation 0 is neither a text nor a list of texts",
    ),
}


@pytest.mark.parametrize(("annotation", "change", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_annotation_is_one_sentence(
    annotation: dict[str, Any], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    coco(tmp_path, [annotation])
    content = json.loads((tmp_path / "coco.json").read_text())
    content["annotations"][0] |= change
    dump(tmp_path / "coco.json", content)
    read = CocoInstances(str(tmp_path / "coco.json"), str(tmp_path / "images"), phrase_key="caption")
    with pytest.raises(SailError) as fault:
        read[0]
    assert str(fault.value).startswith(f"{tmp_path / 'coco.json'} {sentence}")


def test_a_photo_without_a_file_or_a_size_is_named(tmp_path: Path) -> None:
    coco(tmp_path, [{"category_id": 1}])
    content = json.loads((tmp_path / "coco.json").read_text())
    for key, sentence in (("height", "0: the key 'height' is missing"), ("file_name", "0: its entry in images has no")):
        del content["images"][0][key]
        dump(tmp_path / "coco.json", content)
        with pytest.raises(SailError, match=sentence):
            CocoInstances(str(tmp_path / "coco.json"), str(tmp_path / "images"))[0]


# -- docs/own_data.md -------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")


def draw_pictures(folder: Path) -> None:
    """20 images as the page wants them: the first mask of each is called as the image, one lies in a folder."""
    lines = []
    for number in range(20):
        one = photo(number)
        one.save(folder / f"photos/{number:02d}.png")
        for thing, form in zip(one.things, ("{}", "{}_{}", "{}/{}"), strict=True):
            name = form.format(f"{number:02d}", thing.colour)
            save_mask(folder / f"masks/{name}.png", thing.mask)
            lines.append(f"{name}\tthe {thing.colour} thing")
    (folder / "phrases.txt").write_text("\n".join(lines), encoding="utf-8")


def fenced(kind: str) -> list[str]:
    return [block.text for block in blocks(PAGE) if block.kind == kind]


def ciou(run: str) -> float:
    """The last one that a run has logged."""
    with Path("runs", run, "version_0", "metrics.csv").open() as file:
        return [float(row["val/ciou"]) for row in csv.DictReader(file) if row.get("val/ciou")][-1]


def red_ious(answers: list[dict[str, Any]]) -> list[float]:
    """How well the first mask of each answer is the red thing, of those images that have one."""
    found = []
    for answer in answers:
        for thing in photo(int(Path(answer["source"]).stem)).things:
            if thing.colour == "red":
                masks = [decode(mask["segmentation"], thing.mask.shape) for mask in answer["masks"]]
                found.append(float((masks[0] & thing.mask).sum() / (masks[0] | thing.mask).sum()) if masks else 0.0)
    return found


def test_the_page_leads_from_20_images_to_a_model_that_finds_more(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_pictures(workdir)
    name, config = fenced("yaml")[0].split("\n", 1)
    assert name == "# my_data.yaml" and len(config.splitlines()) <= 15
    Path("my_data.yaml").write_text(config)
    for block in (block for block in blocks(PAGE) if block.kind == "sh"):
        for _, verb, *rest in commands(block):
            assert main([verb, *(QUIET if hasattr(lightning_verbs, verb) else ()), *rest]) == 0, capsys.readouterr().err

    assert ciou("tuned") > ciou("before")
    answers = [json.loads(line) for line in Path("runs/predict/version_0/predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 20 and np.mean(red_ious(answers)) > 0.6
    assert Path("my_model/model.safetensors").exists() and Path("sheet.png").exists()
    Path("photos").rename("moved")
    assert JsonlSource("my_data/train.jsonl").length == 18 and ShardSource("my_shards").length == 4 * 18
    assert load_image(JsonlSource("my_data/train.jsonl")[17].image) is not None  # type: ignore[arg-type]


def test_lines_of_the_page_are_samples() -> None:
    lines = [json.loads(line) for line in fenced("json")[0].splitlines()]
    samples = [from_json(line, Path("here")) for line in lines]
    assert [[turn.task for turn in sample.turns] for sample in samples] == [
        ["refer"],
        ["caption"],
        ["describe", "vres"],
        ["choice"],
    ]
    assert {key for line in lines for key in line} == set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))


def test_sources_of_the_page_exist_with_their_arguments() -> None:
    for text in fenced("yaml"):
        for node in yaml.safe_load(text)["data"].values():
            inspect.signature(getattr(sources, node["class_path"])).bind(**node["init_args"])
