"""`sail-lightning data convert`: any source as a JSONL file or as shards, whole or not at all."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from cli_harness import Command
from dataset_writers import reason_seg
from dataset_writers.scenes import dump, photo

from sail_lightning.data import jsonl_writer
from sail_lightning.data.sources import (
    CocoInstances,
    JsonlSource,
    LaboratorySource,
    ReasonSeg,
    ShardSource,
    Source,
)
from sail_lightning.encoding.transform import Encoder
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import Sample
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer(), patch_size=8)
LABORATORY = ("-c", "data/laboratory", "--split", "val", "--data.val.samples=6")


@pytest.fixture(autouse=True)
def index_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache."""
    monkeypatch.setenv("SAIL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own(workdir: Path) -> CocoInstances:
    """Three photos of three objects in folders `a` and `b`, two of the same name; and `own.yaml`, which reads them."""
    images, annotations = [], []
    for number, name in enumerate(("a/0.jpg", "b/0.jpg", "b/1.png")):
        one = photo(number)
        one.save(workdir / "photos" / name)
        images.append({"id": number, "file_name": name, "height": one.size[0], "width": one.size[1]})
        for thing in one.things:
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, "phrase": thing.colour})
            annotations[-1] |= {"segmentation": thing.polygons}
    dump(
        workdir / "coco.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]},
    )
    settings = {"annotations": "coco.json", "images": "photos", "phrase_key": "phrase"}
    dump(workdir / "own.yaml", {"data": {"train": {"class_path": "CocoInstances", "init_args": settings}}})
    return CocoInstances(**settings)


def is_same(one: Sample, other: Sample) -> bool:
    ours, theirs = ENCODER.encode(one), ENCODER.encode(other)
    return (
        ours.sequence.ids.tolist() == theirs.sequence.ids.tolist()
        and np.array_equal(ours.patches, theirs.patches)
        and len(ours.masks) == len(theirs.masks)
        and all(map(np.array_equal, ours.masks, theirs.masks))
        and [region.patch_rows.tolist() for region in ours.regions] == [r.patch_rows.tolist() for r in theirs.regions]
    )


def all_same(one: Source, other: Source) -> bool:
    assert one.length == other.length
    return all(is_same(one[index], other[index]) for index in range(one.length or 0))


def lines(path: str) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_file_names_the_images_where_they_lie(sail: Command, own: CocoInstances) -> None:
    result = sail("data", "convert", "-c", "own.yaml", "--out", "made/data.jsonl")
    assert result.code == 0 and result.out == "made/data.jsonl: 3 samples of data.train\n" and result.err == ""
    assert [line["image"] for line in lines("made/data.jsonl")] == [
        f"../photos/{n}" for n in ("a/0.jpg", "b/0.jpg", "b/1.png")
    ]
    assert all_same(JsonlSource("made/data.jsonl"), own)
    assert [path.name for path in Path("made").iterdir()] == ["data.jsonl"]


def test_images_are_copied_once_under_their_own_names(sail: Command, own: CocoInstances) -> None:
    Path("own").mkdir()
    result = sail(
        "data", "convert", "-c", "own.yaml", "--data.train.separate=true", "--out", "own/d.jsonl", "--copy-images"
    )
    assert result.code == 0
    Path("own").rename("moved")
    written = lines("moved/d.jsonl")
    assert len(written) == 9
    assert list(dict.fromkeys(line["image"] for line in written)) == [
        f"d_images/{n}" for n in ("a/0.jpg", "b/0.jpg", "b/1.png")
    ]
    assert len([path for path in Path("moved/d_images").rglob("*") if path.is_file()]) == 3
    assert (Path("moved/d_images/b/0.jpg")).read_bytes() == Path("photos/b/0.jpg").read_bytes()
    read, source = JsonlSource("moved/d.jsonl"), CocoInstances("coco.json", "photos", "phrase", separate=True)
    assert all_same(read, source)
    assert np.array_equal(read.image_keys(), source.image_keys())


def test_shards_hold_the_same_samples(sail: Command, own: CocoInstances) -> None:
    result = sail("data", "convert", "-c", "own.yaml", "--shards", "set", "--shard-size", "12KB")
    assert result.code == 0 and result.out == "set: 3 samples of data.train\n"
    assert all_same(ShardSource("set"), own)


def test_e16_regions_to_ignore_are_written_beside_their_masks(
    sail: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAIL_DATA", str(workdir))
    reason_seg.write(workdir)
    dump(workdir / "reason.yaml", {"data": {"train": {"class_path": "ReasonSeg"}}})
    assert sail("data", "convert", "-c", "reason.yaml", "--out", "r.jsonl").code == 0
    assert sail("data", "convert", "-c", "reason.yaml", "--shards", "r").code == 0
    source = ReasonSeg()
    ignored = [mask for index in range(source.length) for mask in source[index].meta["ignore"]]
    assert None in ignored and any(mask is not None for mask in ignored)
    for made in (JsonlSource("r.jsonl"), ShardSource("r")):
        assert all_same(made, source)
        found = [mask for index in range(source.length) for mask in made[index].meta["ignore"]]
        for ours, theirs in zip(found, ignored, strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or np.array_equal(load_mask(ours), load_mask(theirs))


def test_images_are_named_with_forward_slashes_on_every_system(
    own: CocoInstances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl_writer, "PurePath", PureWindowsPath)
    monkeypatch.setattr(jsonl_writer.os.path, "relpath", lambda *_: "..\\photos\\a\\0.jpg")
    with jsonl_writer.JsonlWriter("d.jsonl") as writer:
        writer.add(own[0])
    assert [line["image"] for line in lines("d.jsonl")] == ["../photos/a/0.jpg"]


def test_the_laboratory_can_be_written(sail: Command) -> None:
    assert sail("data", "convert", *LABORATORY, "--out", "lab.jsonl", "--copy-images").code == 0
    assert sail("data", "convert", *LABORATORY, "--shards", "lab").code == 0
    source = LaboratorySource("val", samples=6, max_objects=4)
    assert all_same(JsonlSource("lab.jsonl"), source) and all_same(ShardSource("lab"), source)


def test_several_passes_are_drawn_anew_after_the_first(sail: Command, own: CocoInstances) -> None:
    assert sail("data", "convert", "-c", "own.yaml", "--out", "data.jsonl", "--passes", "3").code == 0
    written = lines("data.jsonl")
    assert [line["id"] for line in written] == ["0", "1", "2"] * 3
    turns = [json.dumps(line["turns"]) for line in written]
    assert len(set(turns)) == 9
    assert is_same(JsonlSource("data.jsonl")[2], own[2])
    assert sail("data", "convert", "-c", "own.yaml", "--out", "again.jsonl", "--passes", "3").code == 0
    assert Path("again.jsonl").read_bytes() == Path("data.jsonl").read_bytes()


def test_a_source_without_end_needs_a_count(sail: Command) -> None:
    command = ("data", "convert", "-c", "data/laboratory", "--shards", "lab")
    assert sail(*command).is_one_sentence(2, "LaboratorySource has no end; set the number of records with --count")
    assert not Path("lab").exists()
    assert sail(*command, "--count", "2").out == "lab: 2 samples of data.train\n"


def test_a_broken_record_is_named_and_nothing_is_left(sail: Command, own: CocoInstances) -> None:
    Path("photos/b/0.jpg").unlink()
    for target in (("--out", "out/data.jsonl", "--copy-images"), ("--shards", "out/set")):
        result = sail("data", "convert", "-c", "own.yaml", *target)
        assert result.is_one_sentence(1, "coco.json 1: no image photos/b/0.jpg; --skip-broken leaves such records out")
        assert list(Path("out").iterdir()) == []


def test_broken_records_can_be_left_out_each_by_name(sail: Command, own: CocoInstances) -> None:
    content = json.loads(Path("coco.json").read_text())
    del content["images"][2]["height"]
    dump(Path("coco.json"), content)
    Path("photos/b/0.jpg").unlink()
    result = sail("data", "convert", "-c", "own.yaml", "--out", "data.jsonl", "--skip-broken")
    assert result.code == 0 and result.out == "data.jsonl: 1 samples of data.train, 2 with a fault left out\n"
    assert result.err.splitlines() == [
        "left out: coco.json 1: no image photos/b/0.jpg",
        "left out: coco.json 2: the key 'height' is missing; fix the record",
    ]
    assert [line["id"] for line in lines("data.jsonl")] == ["0"]
    Path("photos/a/0.jpg").unlink()
    result = sail("data", "convert", "-c", "own.yaml", "--out", "none.jsonl", "--skip-broken")
    assert result.code == 1 and "data.train has no usable record to write" in result.err
    assert not Path("none.jsonl").exists()


def test_a_record_that_is_left_out_leaves_no_image(sail: Command, own: CocoInstances) -> None:
    content = json.loads(Path("coco.json").read_text())
    content["annotations"][0]["segmentation"] = [[1, 2]]
    dump(Path("coco.json"), content)
    result = sail("data", "convert", "-c", "own.yaml", "--out", "d.jsonl", "--copy-images", "--skip-broken")
    assert result.code == 0 and "left out: coco.json 0: a polygon needs three or more points" in result.err
    assert sorted(path.name for path in Path("d_images").rglob("*.*")) == ["0.jpg", "1.png"]


MISUSES = {
    "no target": ([], "data convert writes --out FILE or --shards FOLDER; give one of them"),
    "two targets": (["--out", "a.jsonl", "--shards", "b"], "give one of them"),
    "copies of shards": (["--shards", "b", "--copy-images"], "--copy-images belongs to --out"),
    "size of a file": (["--out", "a.jsonl", "--shard-size", "1GB"], "--shard-size belongs to --shards"),
    "size": (["--shards", "b", "--shard-size", "big"], "a size is written such as 512MB or 2GB, not big"),
    "passes": (["--out", "a.jsonl", "--passes", "0"], "--passes must be 1 or more, not 0"),
    "count": (["--out", "a.jsonl", "--count", "-1"], "--count must be 1 or more, not -1"),
    "no file": (["--out", "a.jsonl"], "the image of val-0-0 is not a file; add --copy-images to write one"),
    "there": (["--out", "there.jsonl"], "there.jsonl exists already; name another file or remove it"),
    "pictures there": (
        ["--out", "x.jsonl", "--copy-images"],
        "x_images exists already; name another file or remove it",
    ),
    "argument": (["--out", "a.jsonl", "--data.val.sample=3"], "no argument 'sample'"),
    "below a file": (["--out", "there.jsonl/a.jsonl"], "there.jsonl is a file; give --out a folder"),
    "shards below a file": (["--shards", "there.jsonl/a"], "there.jsonl is a file; give --shards a folder"),
    "foreign": (["--out", "a.jsonl", "--model.x=3"], "data convert takes --data.val.ARGUMENT=VALUE"),
}


@pytest.mark.parametrize(("options", "sentence"), MISUSES.values(), ids=MISUSES)
def test_a_wrong_command_is_one_sentence_and_writes_nothing(options: list[str], sentence: str, sail: Command) -> None:
    Path("there.jsonl").write_text("kept")
    Path("x_images").mkdir()
    assert sail("data", "convert", *LABORATORY, *options).is_one_sentence(2, sentence)
    assert sorted(path.name for path in Path().iterdir()) == ["there.jsonl", "x_images"]
    assert Path("there.jsonl").read_text() == "kept"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(sail: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BufferedWriter):
        """Holds lines back, and has no room for them when it is closed."""

        def close(self) -> None:
            if not self.closed:
                super().close()
                raise OSError(errno.ENOSPC, "No space left on device")

    real = jsonl_writer.JsonlWriter.__init__

    def made(self: Any, *args: Any) -> None:
        real(self, *args)
        self._file.close()
        self._file = Full(io.FileIO(self._draft / "lines", "wb"))

    monkeypatch.setattr(jsonl_writer.JsonlWriter, "__init__", made)
    result = sail("data", "convert", *LABORATORY, "--out", "a.jsonl", "--copy-images")
    assert result.is_one_sentence(1, "a.jsonl cannot be written (No space left on device); no incomplete file is left")
    assert not list(Path().iterdir())


def test_help_fits_a_screen(sail: Command) -> None:
    result = sail("data", "convert", "--help")
    assert result.code == 0 and len(result.out.splitlines()) <= 40
    assert max(map(len, result.out.splitlines())) <= 120
