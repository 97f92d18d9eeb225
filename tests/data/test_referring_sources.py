"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: what becomes of their records."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_writers import referring
from dataset_writers.scenes import photo

from sail_lightning.data.sources import GRefCOCO, RefCOCO
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import load_mask

SETS = ["refcoco", "refcoco+", "refcocog"]


@pytest.mark.parametrize("name", SETS)
def test_a_training_record_is_a_photo_and_asks_about_its_objects(name: str, data_root: Path) -> None:
    source = RefCOCO(name)  # type: ignore[arg-type]
    assert source.length == referring.PHOTOS
    for index in range(source.length):
        sample = source[index]
        one = photo(int(sample.id))
        assert sample.image == str(data_root / "coco/train2014" / referring.file_name(one))
        assert len(sample.turns) == len(sample.masks) == 2  # the objects that are referred to
        by_colour = {thing.colour: thing.mask for thing in one.things}
        for turn in sample.turns:
            (colour,) = [colour for colour in by_colour if colour in turn.question]
            assert turn.answer.count("[SEG]") == 1 and turn.task == "refer"
            assert np.array_equal(load_mask(sample.masks[turn.targets[0]]), by_colour[colour])


@pytest.mark.parametrize("name", SETS)
def test_separate_questions_are_every_phrase_once_photo_by_photo(name: str, data_root: Path) -> None:
    source = RefCOCO(name, split="val", separate=True)  # type: ignore[arg-type]
    samples = [source[index] for index in range(source.length)]
    assert len(samples) == referring.PHOTOS * 6  # three refs of two sentences
    assert len({sample.id for sample in samples}) == len(samples)
    photos = [sample.image for sample in samples]
    assert photos == sorted(photos, key=photos.index)
    assert all(len(sample.turns) == 1 for sample in samples)
    assert samples[0].turns[0].question == f"Please segment the {photo(100).things[0].colour} thing in this image."


def test_e39_wording_and_phrase_are_drawn_at_each_reading_and_no_object_twice(data_root: Path) -> None:
    source = RefCOCO("refcoco")
    read = [source.sample_record(0, np.random.default_rng(seed)) for seed in range(30)]
    assert len({sample.turns for sample in read}) > 10
    assert {turn.question.split()[-1] for sample in read for turn in sample.turns} >= {"image", "image."}
    assert all(len({load_mask(mask).tobytes() for mask in sample.masks}) == 2 for sample in read)
    assert source[0] == source[0]


def test_e38_a_set_that_is_listed_twice_has_one_index(data_root: Path) -> None:
    first, second = RefCOCO("refcoco"), RefCOCO("refcoco")
    assert first.index.folder == second.index.folder
    assert len(pickle.dumps(first)) < 1000


def test_e40_a_pickle_that_names_a_function_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "run",))  # type: ignore[return-value]

    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Trap()]))
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(SailError, match=r"refs\(unc\).p is not a pickle of plain lists .*Path.touch.*save it as JSON"):
        RefCOCO("refcoco", annotations=str(tmp_path)).length  # noqa: B018
    assert not (tmp_path / "run").exists()


def test_e41_masks_in_any_encoding_are_the_same(data_root: Path) -> None:
    source = RefCOCO("refcoco")
    for index in range(source.length):
        whole = source.full_record(index)
        one = photo(int(whole.id))
        assert [load_mask(mask).sum() for mask in whole.masks] == [thing.mask.sum() for thing in one.things[:2]]


def test_grefcoco_unites_targets_leaves_crowds_out_and_has_empty_ones(data_root: Path) -> None:
    source = GRefCOCO()
    for index in range(source.length):
        sample = source.full_record(index)
        a, b, _ = (thing.mask for thing in photo(int(sample.id)).things)
        truth = [a, a | b, np.zeros_like(a), a]
        for mask, expected in zip(sample.masks, truth, strict=True):
            assert np.array_equal(load_mask(mask), expected)  # E3: a union; E9: no crowd
        assert [turn.answer == "No target [SEG]." for turn in sample.turns] == [False, False, True, False]


def test_a_split_that_is_not_there_is_told_with_those_that_are(data_root: Path) -> None:
    with pytest.raises(SailError, match=r"has no split testC; it has testA, testB, train, val"):
        RefCOCO("refcoco", split="testC").length  # noqa: B018


def test_a_crowd_is_meant_where_a_phrase_means_nothing_else(data_root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data_root / "ref_seg/grefcoco", tmp_path / "grefcoco"))
    refs = json.loads((folder / "grefs(unc).json").read_text())
    refs[0]["ann_id"] = [2]  # the crowd of photo 0
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    whole = GRefCOCO(annotations=str(folder)).full_record(0)
    assert whole.turns[0].answer != "No target [SEG]."
    assert np.array_equal(load_mask(whole.masks[0]), photo(0).things[2].mask)


@pytest.mark.parametrize("name", ["refcoco", "grefcoco"])
def test_a_ref_or_a_photo_that_is_incomplete_is_one_broken_record(name: str, data_root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data_root / "ref_seg" / name, tmp_path / name))
    instances = json.loads((folder / "instances.json").read_text())
    instances["images"] = [one for one in instances["images"] if one["id"] != 1]
    next(one for one in instances["images"] if one["id"] == 2).pop("file_name")
    (folder / "instances.json").write_text(json.dumps(instances))
    if name == "refcoco":
        refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    else:
        refs = json.loads((folder / "grefs(unc).json").read_text())
    refs[0].pop("sentences")
    (folder / ("refs(unc).json" if name == "refcoco" else "grefs(unc).json")).write_text(json.dumps(refs))
    source = RefCOCO(annotations=str(folder)) if name == "refcoco" else GRefCOCO(annotations=str(folder))
    faults = []
    for index in range(source.length):
        try:
            source[index]
        except SailError as error:
            faults.append(str(error))
    assert len(faults) == 3 and source.length == 4
    assert "lacks 'sentences'" in faults[0]
    assert "image 1, which instances.json lacks" in faults[1]
    assert "image 2, which instances.json gives no file_name" in faults[2]
