"""COCO panoptic, Pix2Cap, MUSE, ReasonSeg and RefCOCO-M: what becomes of their records."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import muse, panoptic, pix2cap, reason_seg, refcoco_m
from dataset_writers.scenes import dump, photo, rgb_of
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data.records import image_name
from sail_lightning.data.sources import CocoPanoptic, Muse, Pix2CapSegmentation, ReasonSeg, RefCOCOM
from sail_lightning.data.sources.coco_names import CATEGORIES, everyday_name
from sail_lightning.data.sources.muse import joined
from sail_lightning.data.sources.reason_seg import DrawnRegions, Outline
from sail_lightning.encoding import prompt_templates
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import Sample
from sail_lightning.sequence.tokenizer import SailTokenizer

NAMES = {1: "person", 18: "dog", 149: "road", 155: "sea", 187: "sky", 193: "grass"}
ENCODER = Encoder(SailTokenizer("laboratory"), patch_size=8, max_side=64)
ALL = [CocoPanoptic, Pix2CapSegmentation, Muse, ReasonSeg, RefCOCOM]


def masks_of(sample: Sample) -> list[np.ndarray]:
    return [load_mask(mask) for mask in sample.masks]


def wordings(answer: str) -> bool:
    return answer in prompt_templates.SEGMENT_ANSWERS


def asked(question: str, end: str) -> str:
    """The phrase in one of the questions that end so."""
    for pattern in sorted(prompt_templates.SEGMENT, key=len, reverse=True):
        before, after = pattern.split("{}")
        if question.startswith(before) and question.endswith(after + end):
            return question.removeprefix(before).removesuffix(after + end)
    raise AssertionError(question)


# -- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_every_seg_of_every_record_has_its_mask_at_the_size_of_the_photo(kind: Any, data_root: Path) -> None:
    source = kind()
    assert source.length > 1
    for index in range(source.length):
        for sample in (source[index], source.full_record(index)):
            targets = [target for turn in sample.turns for target in turn.targets]
            assert targets == list(range(len(sample.masks)))
            assert [turn.answer.count("[SEG]") for turn in sample.turns] == [len(turn.targets) for turn in sample.turns]
            assert {turn.task for turn in sample.turns} == {"refer"}
            number = int(image_name(str(sample.image)).rpartition("/")[2].split("_")[0])
            assert {mask.shape for mask in masks_of(sample)} <= {photo(number).size}
            assert len(ENCODER.encode(sample).masks) == len(sample.masks)


@pytest.mark.parametrize("kind", ALL)
def test_e36_every_record_up_to_the_last_can_be_read_and_none_after_it(kind: Any, data_root: Path) -> None:
    source = kind()
    assert source[source.length - 1].turns
    with pytest.raises(IndexError):
        source.index[source.length]


@pytest.mark.parametrize("kind", ALL)
def test_e37_reading_records_leaves_the_source_as_it_was(kind: Any, data_root: Path) -> None:
    source = kind()
    first = source[0]
    before = pickle.dumps(source)
    rows = [source.index[number] for number in range(source.length)]
    for index in range(source.length):
        masks_of(source.full_record(index))
    assert pickle.dumps(source) == before
    assert [source.index[number] for number in range(source.length)] == rows and source[0] == first


@pytest.mark.parametrize("kind", ALL)
def test_e39_each_reading_draws_anew_and_no_mask_twice_but_for_one_asked_in_several_ways(
    kind: Any, data_root: Path
) -> None:
    source = kind()
    read = [source.sample_record(0, np.random.default_rng(seed)) for seed in range(20)]
    assert len({sample.turns for sample in read}) > 5
    assert all(len({turn.question for turn in sample.turns}) == len(sample.turns) for sample in read)


# -- COCO panoptic -----------------------------------------------------------------------------------------------------


def test_the_class_table_is_that_of_coco_panoptic_with_names_that_people_say() -> None:
    assert len(CATEGORIES) == 133 and sum(one.thing for one in CATEGORIES.values()) == 80
    assert min(CATEGORIES) == 1 and max(CATEGORIES) == 200
    names = [one.name for one in CATEGORIES.values()]
    assert len(set(names)) == 133 and not [name for name in names if re.search("[^a-z ]", name)]
    assert (
        everyday_name("wall-brick") == "brick wall"
        and everyday_name("floor-other-merged") == "floor"
        and everyday_name("t-shirt") == "t-shirt"
    )


def test_instances_are_counted_from_left_to_right_and_stuff_is_one_mask(data_root: Path) -> None:
    source = CocoPanoptic()
    assert source.length == len(panoptic.NUMBERS)
    boxed = set()
    for index in range(source.length):
        sample = source.full_record(index)
        found = panoptic.segments(panoptic.scene(int(sample.id)))
        masks = masks_of(sample)
        for turn in sample.turns:
            name = turn.answer.split(" [SEG]")[0].removesuffix("-1")
            truth = [one.mask for one in found if NAMES[one.category_id] == name and not one.crowd]
            truth.sort(key=lambda mask: int(mask.any(axis=0).argmax()))
            answers = [masks[target] for target in turn.targets]
            assert all(np.array_equal(*pair) for pair in zip(answers, truth, strict=True))
            if name in ("person", "dog"):
                counted = " ".join(f"{name}-{number} [SEG]" for number in range(1, len(truth) + 1))
                assert turn.answer == f"{counted}." and asked(turn.question, prompt_templates.INSTANCE_MODE) == name
                boxed.add((int(sample.id) % 2 == 0, len(truth)))
            else:
                assert turn.answer == f"{name} [SEG]." and asked(turn.question, prompt_templates.SEMANTIC_MODE) == name
    assert {(True, 2), (False, 2)} <= boxed  # sorted by the boxes of the file, and by the pixels where it has none


def test_semantic_mode_unites_all_of_a_class_things_too(data_root: Path) -> None:
    source = CocoPanoptic("semantic")
    for index in range(source.length):
        sample = source[index]
        found = panoptic.segments(panoptic.scene(int(sample.id)))
        for turn, mask in zip(sample.turns, masks_of(sample), strict=True):
            phrase = asked(turn.question, prompt_templates.SEMANTIC_MODE)
            name = phrase.removeprefix("all the ")
            assert phrase == f"all the {name}"
            truth = [one.mask for one in found if NAMES[one.category_id] == name and not one.crowd]
            assert np.array_equal(mask, np.logical_or.reduce(truth)) and turn.answer in prompt_templates.SEGMENT_ANSWERS


def test_a_conversation_has_at_most_so_many_classes_each_once(data_root: Path) -> None:
    source = CocoPanoptic("semantic", objects=2)
    drawn = Counter()
    for seed in range(40):
        names = [turn.question for turn in source.sample_record(0, np.random.default_rng(seed)).turns]
        assert len(names) == 2
        drawn.update(asked(name, prompt_templates.SEMANTIC_MODE) for name in names)
    assert len(drawn) == 6 and len(source.full_record(0).turns) == 6
    assert len(CocoPanoptic("semantic")[0].turns) == 5


def test_crowds_are_never_asked_for(data_root: Path) -> None:
    for mode in ("instance", "semantic"):
        source = CocoPanoptic(mode)  # type: ignore[arg-type]
        for index in range(source.length):
            sample = source.full_record(index)
            crowds = [one.mask for one in panoptic.segments(panoptic.scene(int(sample.id))) if one.crowd]
            assert crowds
            assert not any((crowd & mask).any() for crowd in crowds for mask in masks_of(sample))


def test_e48_a_record_opens_no_png_until_a_mask_is_called_for(data_root: Path, tmp_path: Path) -> None:
    source = CocoPanoptic(pngs=str(tmp_path / "nowhere"))
    samples = [source[index] for index in range(source.length)]
    assert all(sample.turns for sample in samples)
    with pytest.raises(SailError, match="no panoptic file .*nowhere"):
        load_mask(samples[0].masks[0])


def one_photo(folder: Path, segments: list[dict[str, Any]], ids: np.ndarray, **more: Any) -> CocoPanoptic:
    (folder / "pngs").mkdir()
    rgb_of(ids).save(folder / "pngs/7.png")
    annotations = [{"image_id": 7, "file_name": "7.png", "segments_info": segments}]
    file = dump(folder / "panoptic.json", {"annotations": annotations, **more})
    return CocoPanoptic(annotations=str(file), pngs=str(folder / "pngs"), images=str(folder))


def test_segment_ids_beyond_65536_are_told_apart(tmp_path: Path) -> None:
    ids = np.array([[5, 5 + 256, 5 + 65536]])
    segments = [{"id": int(id), "category_id": 1} for id in ids[0]]
    masks = masks_of(one_photo(tmp_path, segments, ids).full_record(0))
    assert [mask.tolist() for mask in masks] == [[[i == place for i in range(3)]] for place in range(3)]


@pytest.mark.parametrize("boxed", [True, False])
def test_instances_in_another_order_than_the_file_has_are_sorted(boxed: bool, tmp_path: Path) -> None:
    ids = np.array([[9, 9, 4, 0, 7]])
    segments: list[dict[str, Any]] = [
        {"id": id, "category_id": 1} | ({"bbox": [left, 0, 1, 1]} if boxed else {})
        for id, left in ((7, 4), (4, 2), (9, 0))
    ]
    masks = masks_of(one_photo(tmp_path, segments, ids).full_record(0))
    assert [int(ids[mask][0]) for mask in masks] == [9, 4, 7]


def test_an_instance_that_the_png_lacks_comes_last_and_is_empty(tmp_path: Path) -> None:
    segments = [{"id": id, "category_id": 1} for id in (3, 4)]
    masks = masks_of(one_photo(tmp_path, segments, np.array([[0, 4]])).full_record(0))
    assert [int(mask.sum()) for mask in masks] == [1, 0]


def test_categories_of_the_file_win_over_coco(tmp_path: Path) -> None:
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 500}, {"id": 3, "category_id": 3}]
    listed = [{"id": 1, "name": "cloud", "isthing": 0}, {"id": 500, "name": "wall-brick", "isthing": 0}]
    source = one_photo(tmp_path, segments[:2], np.array([[1, 2, 3]]), categories=listed)
    assert [turn.answer for turn in source.full_record(0).turns] == ["cloud [SEG].", "brick wall [SEG]."]
    (tmp_path / "again").mkdir()
    source = one_photo(tmp_path / "again", segments, np.array([[1, 2, 3]]), categories=listed)
    with pytest.raises(SailError, match=r"json 7: segment 3 is of category 3, which `categories` does not list"):
        source.full_record(0)


def test_a_record_without_its_segments_does_not_hide_the_others(tmp_path: Path) -> None:
    source = one_photo(tmp_path, [{"id": 1, "category_id": 18}], np.array([[1, 2]]))
    content = json.loads(source.files[0].read_text())
    content["annotations"] += [{"image_id": 8, "file_name": "8.png"}, {"image_id": 9, "segments_info": ["x"]}]
    dump(source.files[0], content)
    source = CocoPanoptic(annotations=str(source.files[0]), pngs=str(tmp_path / "pngs"), images=str(tmp_path))
    assert [turn.answer for turn in source[0].turns] == ["dog-1 [SEG]."]
    with pytest.raises(SailError, match="panoptic.json 8: the key 'segments_info' is missing; fix the record"):
        source[1]
    with pytest.raises(SailError, match="panoptic.json 9: .*fix the record"):
        source[2]


# -- Pix2Cap -----------------------------------------------------------------------------------------------------------


def test_objects_are_asked_for_by_their_descriptions_and_short_ones_are_not(data_root: Path) -> None:
    source = Pix2CapSegmentation()
    ids = []
    for index in range(source.length):
        sample = source.full_record(index)
        ids.append(int(sample.id))
        things = [one for one in panoptic.segments(panoptic.scene(ids[-1])) if one.colour]
        assert len(sample.turns) == len(things)
        for thing, turn, mask in zip(things, sample.turns, masks_of(sample), strict=True):
            description = f"The {thing.colour} thing, a naïve shape on a grey ground."
            assert turn.question == prompt_templates.BY_DESCRIPTION[0].format(description)
            assert wordings(turn.answer) and np.array_equal(mask, thing.mask)
    assert ids == [number for number in panoptic.NUMBERS if number != pix2cap.UNDESCRIBED]
    assert len(Pix2CapSegmentation(objects=2)[0].turns) == 2


# -- MUSE --------------------------------------------------------------------------------------------------------------


def test_photos_come_from_three_folders_and_items_without_questions_or_objects_are_left_out(data_root: Path) -> None:
    source = Muse()
    images = [str(source[index].image) for index in range(source.length)]
    assert images == [
        str(data_root / "coco/train2014" / f"COCO_train2014_{muse.OWN:012d}.jpg"),
        str(data_root / "coco/train2017" / f"{muse.MADE_UP:012d}.jpg"),
        str(data_root / "coco/val2017" / f"{muse.EMPTY:012d}.jpg"),
    ]
    assert all(Path(image).exists() for image in images)


def test_an_answer_of_the_file_has_a_mask_for_each_slot_in_order(data_root: Path) -> None:
    sample = Muse().full_record(0)
    a, b, c = photo(muse.OWN).things
    first, second = sample.turns
    assert first.question == "Which two things would a bull see first? Please respond with segmentation mask."
    assert first.answer == f"Perhaps the {a.colour} one [SEG], then the {b.colour} one [SEG]."
    assert second.question == "And what is the third? Please respond with segmentation mask."
    assert (first.targets, second.targets) == ((0, 1), (2,))
    assert all(np.array_equal(mask, thing.mask) for mask, thing in zip(masks_of(sample), (a, b, c), strict=True))


def test_an_answer_that_needs_no_mask_has_none(data_root: Path) -> None:
    turn = Muse().full_record(2).turns[0]
    assert (turn.answer, turn.targets) == ("No, nobody is.", ())


def test_made_up_answers_name_objects_one_by_one_or_together(data_root: Path) -> None:
    source = Muse()
    colours = [thing.colour for thing in photo(muse.MADE_UP).things]
    answers = Counter()
    for seed in range(300):
        sample = source.sample_record(1, np.random.default_rng(seed))
        (turn,) = (turn for turn in sample.turns if "What do you see" in turn.question)
        places = [turn.answer.lower().index(colour) for colour in colours]
        assert places == sorted(places) and turn.answer.count("[SEG]") == 3 and turn.answer.endswith(".")
        together = "[SEG], [SEG] and [SEG]" in turn.answer
        answers["together" if together else "one by one"] += 1
        answers["rephrased"] += turn.answer.lower().count("façade")
        assert not together or ("Façade" not in turn.answer and "Thing" not in turn.answer)  # names in lower case
    assert 110 < answers["together"] < 190
    rephrased = 300 * sum(colour != "red" for colour in colours)  # as many could be
    assert 0.85 < answers["rephrased"] / rephrased < 0.95


def test_e34_the_number_of_questions_is_a_setting_that_has_an_effect(data_root: Path) -> None:
    assert len(Muse()[0].turns) == 2
    assert len(Muse(questions=1)[0].turns) == 1


def test_e3_polygons_that_overlap_are_united(data_root: Path) -> None:
    a, b, _ = photo(muse.MADE_UP).things
    mask = masks_of(Muse().full_record(1))[-1]
    assert mask.dtype == bool and np.array_equal(mask, a.mask | b.mask)


def test_e41_a_list_of_run_lengths_is_one_mask(data_root: Path) -> None:
    a, b, _ = photo(muse.EMPTY).things
    assert np.array_equal(masks_of(Muse().full_record(2))[-1], a.mask | b.mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_answers": ["{seg}", None]}, r"item 0: the answer '\{seg\}' has 1 \{seg\}, but its objects are 2"),
        ({"answers": [[], []]}, "item 0: the answer .* has 2 .*, but its objects are 0"),
        ({"answers": [[], []], "text_answers": None}, "item 0: a question has neither a text answer nor objects"),
        ({"answers": [[]]}, "item 0: 2 questions but 1 answers and 2 text answers"),
        ({"file_name": None}, "item 0: it names no image; give it `file_name` or `coco_url`"),
    ],
)
def test_an_item_that_does_not_fit_together_is_named(
    change: dict[str, Any], message: str, data_root: Path, tmp_path: Path
) -> None:
    items = json.loads((data_root / "muse/MUSE_train.json").read_text())
    file = dump(tmp_path / "muse.json", [items[0] | change, items[1]])
    source = Muse(str(file))
    with pytest.raises(SailError, match=message):
        source.full_record(0)
    assert source.full_record(1).turns


@given(st.lists(st.text("abc", min_size=1), min_size=1, max_size=5))
def test_words_are_listed_as_in_a_sentence(words: list[str]) -> None:
    assert re.split(", | and ", joined(words)) == words
    assert joined(words).count(" and ") == (len(words) > 1)


# -- ReasonSeg ---------------------------------------------------------------------------------------------------------


def test_sentences_are_asked_about_one_mask_and_short_ones_as_a_phrase(data_root: Path) -> None:
    source = ReasonSeg()
    assert source.length == len(reason_seg.SPLITS["train"])
    for index in range(source.length):
        sample = source[index]
        number = int(sample.id.split("_")[0])
        written = reason_seg.item(photo(number))
        assert len(sample.turns) == min(len(written["text"]), 3) == len(sample.masks)
        assert {turn.answer for turn in sample.turns} == {"It is [SEG]."}
        pattern = "{} Please output" if written["is_sentence"] else "What is {} in this image? Please output"
        possible = {pattern.format(text.strip()) + " segmentation mask." for text in written["text"]}
        assert {turn.question for turn in sample.turns} <= possible
        assert len({load_mask(mask).tobytes() for mask in sample.masks}) == 1


def test_separate_asks_only_the_first_sentence_of_each_photo(data_root: Path) -> None:
    for split in ("val", "test"):
        source = ReasonSeg(split, separate=True)  # type: ignore[arg-type]
        assert source.length == 2
        for index in range(source.length):
            for sample in (source.sample_record(index, np.random.default_rng(3)), source.full_record(index)):
                assert [turn.question.count("What a café needs for an œuf") for turn in sample.turns] == [1]


def test_e16_ignored_regions_are_kept_apart_and_are_no_target(data_root: Path) -> None:
    source = ReasonSeg()
    kinds = set()
    for index in range(source.length):
        sample = source[index]
        one = photo(int(sample.id.split("_")[0]))
        target = load_mask(sample.masks[0])
        assert len(sample.meta["ignore"]) == len(sample.masks)
        outline = np.array(reason_seg.corners(one, 0), int).T
        inside = target[np.clip(outline[1], 0, one.size[0] - 1), np.clip(outline[0], 0, one.size[1] - 1)]
        ignore = sample.meta["ignore"][0]
        kinds.add(ignore is None)
        if ignore is None:
            assert inside.all()  # the line of an outline belongs to it
            continue
        ignored = load_mask(ignore)
        assert ignored.any() and not (ignored & target).any()
        first, second = (one.things[place].mask for place in (0, 1))
        assert ((target | ignored) >= (first | second)).all()
        assert (target | ignored).sum() < 1.5 * (first | second).sum()  # outlines labelled `flag` are not drawn
    assert kinds == {True, False}


def regions(folder: Path, size: tuple[int, int], *outlines: Outline) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    Image.new("RGB", size[::-1]).save(folder / "a.png")
    image = str(folder / "a.png")
    return DrawnRegions(outlines, image)(), DrawnRegions(outlines, image, ignored=True)()


def square(low: int, high: int, ignored: bool) -> Outline:
    return Outline(((low, low), (high, low), (high, high), (low, high)), ignored)


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_of_two_outlines_wins_whatever_their_order(order: int, tmp_path: Path) -> None:
    target, ignore = regions(tmp_path, (20, 30), *[square(2, 12, False), square(4, 6, True)][::order])
    assert (target.sum(), ignore.sum()) == (11 * 11 - 9, 9)
    target, ignore = regions(tmp_path, (20, 30), *[square(2, 12, True), square(4, 6, False)][::order])
    assert (target.sum(), ignore.sum()) == (9, 11 * 11 - 9)


def test_outlines_of_one_or_two_points_are_a_dot_and_a_line(tmp_path: Path) -> None:
    target, _ = regions(tmp_path, (9, 9), Outline(((3, 2),), False), Outline(((5, 1), (5, 4)), False))
    assert sorted(map(tuple, np.argwhere(target).tolist())) == [(1, 5), (2, 3), (2, 5), (3, 5), (4, 5)]


def test_outlines_are_drawn_as_the_official_code_draws_them(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii = rng.uniform(10, 30, 9)
        points = np.stack([40 + radii * np.cos(angles), 32 + radii * np.sin(angles)], axis=1).astype(np.int32)
        official = np.zeros((64, 80), np.uint8)
        cv2.polylines(official, [points], True, 1, 1)
        cv2.fillPoly(official, [points], 1)
        ours, _ = regions(tmp_path, (64, 80), Outline(tuple(map(tuple, points.tolist())), False))
        assert (ours & (official > 0)).sum() / (ours | (official > 0)).sum() > 0.97


def test_files_in_windows_1252_are_read_like_those_in_utf_8(data_root: Path) -> None:
    split = ReasonSeg(separate=True)
    questions = [split[index].turns[0].question for index in range(split.length)]
    assert all("café needs for an œuf" in question for question in questions)
    assert b"caf\xe9 needs for an \x9cuf" in (data_root / "reason_seg/train/801_train.json").read_bytes()


def test_a_faulty_file_is_named_and_the_others_are_read(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "val"
    folder.mkdir()
    for path in (data_root / "reason_seg/val").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "a.json").write_text("{")
    (folder / "b.json").write_text('{"text": [], "is_sentence": true, "shapes": []}')
    (folder / "c.jpg").write_bytes(b"")
    source = ReasonSeg("val", folder=str(tmp_path))
    assert source[0].id.startswith("810") and source[1].turns
    for index, message in enumerate(
        ("a: a.json is not valid JSON", "b: the list `text` needs", "c: no file c.json"), 2
    ):
        with pytest.raises(SailError, match=message):
            source[index]


# -- RefCOCO-M ---------------------------------------------------------------------------------------------------------


def test_refcoco_m_asks_about_a_photo_or_every_phrase_once(data_root: Path) -> None:
    whole, separate = RefCOCOM(), RefCOCOM(separate=True)
    assert (whole.length, separate.length) == (len(refcoco_m.NUMBERS), len(refcoco_m.NUMBERS) * 4)
    a, b, _ = photo(500).things
    assert all(np.array_equal(mask, one.mask) for mask, one in zip(masks_of(whole.full_record(0)), (a, b), strict=True))
    samples = [separate[index] for index in range(4)]
    phrases = [f"{a.colour} thing", f"the {a.colour} señal", f"{b.colour} thing", f"the {b.colour} señal"]
    assert [sample.turns[0].question for sample in samples] == [f"Please segment {p} in this image." for p in phrases]
    assert len({sample.id for sample in samples}) == 4
    assert all(np.array_equal(masks_of(s)[0], one.mask) for s, one in zip(samples, (a, a, b, b), strict=True))
    assert samples[0].image == str(data_root / "coco/train2014" / refcoco_m.file_name(photo(500)))


def test_reasonseg_is_found_from_another_folder_too(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_root)
    monkeypatch.delenv("SAIL_DATA")
    here = ReasonSeg()[0]
    monkeypatch.chdir(data_root.parent)
    monkeypatch.setenv("SAIL_DATA", str(data_root))
    there = ReasonSeg()[0]  # its index was made of relative names
    assert there.turns == here.turns and there.image == str(data_root / str(here.image))


def test_refcoco_m_below_a_relative_root(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_root.parent)
    monkeypatch.setenv("SAIL_DATA", data_root.name)
    assert RefCOCOM().length == len(refcoco_m.NUMBERS)


def test_refcoco_m_reads_its_rows_from_parquet_and_json_lines_too(data_root: Path, tmp_path: Path) -> None:
    as_json = RefCOCOM()
    pytest.importorskip("pyarrow")
    refcoco_m.write_parquet(tmp_path / "parquet/data")
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in refcoco_m.rows()), encoding="utf-8")
    for source in (RefCOCOM(str(tmp_path / "parquet")), RefCOCOM(str(lines))):
        assert source.length == as_json.length
        for index in range(source.length):
            assert source[index].turns == as_json[index].turns
            assert all(map(np.array_equal, masks_of(source[index]), masks_of(as_json[index])))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "{}\n{", "rows.jsonl is not valid JSON lines .*copy it again"),
        ("rows.parquet", "PAR2", "rows.parquet is not a readable Parquet file .*copy it again"),
        ("other.txt", "", r"no annotation file .*validation-00000-of-00002.parquet; see docs/data.md"),
    ],
)
def test_rows_of_refcoco_m_that_cannot_be_read_are_told(name: str, content: str, message: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(SailError, match=message):
        RefCOCOM(str(tmp_path)).length  # noqa: B018
