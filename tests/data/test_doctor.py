"""The doctor of data sets: every planted fault is named with its file and its record, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import glamm, panoptic, referring
from dataset_writers.scenes import dump, photo
from PIL import Image

from sail_lightning.data import sources
from sail_lightning.data.doctor import KINDS, Report, check, flatten_sources
from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import GRefCOCO, IndexedSource, LaboratorySource, Mixture, RefCOCO, Source
from sail_lightning.data.webdataset.writer import ShardWriter
from sail_lightning.encoding.transform import Encoder
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.sample import Box, Mask, Sample, Turn
from sail_lightning.sequence.tokenizer import SailTokenizer

RECORDS = 24
COUNTS = {"records": RECORDS, "images": RECORDS, "turns": 2 * RECORDS, "masks": RECORDS, "prompts": RECORDS}
ENCODER = Encoder(SailTokenizer("laboratory", num_prompts=4), patch_size=8, num_prompts=4, max_side=64, max_tokens=400)


class Lines(IndexedSource):
    """One JSON object a line: image, size, turns, masks, boxes; `spans` may not overlap."""

    def __init__(self, file: str = "lines/lines.jsonl") -> None:
        super().__init__([file])

    def rows(self) -> Iterator[Row]:
        for line in self.files[0].read_text().splitlines():
            row = json.loads(line)
            yield row | ({"image": str(self.files[0].parent / row["image"])} if "image" in row else {})

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        size = (row["height"], row["width"])
        masks = tuple(Segmentation((one,), size) for one in row["masks"])
        prompts = tuple(Box(*box["box"], box["id"]) for box in row["boxes"])
        turns = tuple(Turn(*turn) for turn in sampler.sample(row["turns"]))
        return Sample(row["image"], turns, masks, prompts, str(self.files[0]), row["id"])

    def faults(self, index: int) -> list[str]:
        spans = sorted(self.index[index].get("spans", []))
        return [f"span {b} overlaps {a}; give it words of its own" for a, b in pairwise(spans) if b[0] < a[1]]

    def __getitem__(self, index: int) -> Sample:
        return self.full_record(index)


def record(number: int) -> Row:
    """A record without a fault: one mask, one box."""
    one = photo(number)
    thing = one.things[0]
    left, top, width, height = thing.box
    return {
        "id": f"record-{number}",
        "image": f"{number}.jpg",
        "height": one.size[0],
        "width": one.size[1],
        "turns": [
            [f"Please segment the {thing.colour} thing.", "It is [SEG]."],
            ["Describe <Prompt0>.", f"A {thing.colour} thing."],
        ],
        "masks": [thing.rle() if number % 2 else thing.uncompressed()],
        "boxes": [{"box": [left, top, left + width, top + height], "id": 0}],
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$SAIL_DATA` with the referring sets and `lines/`, for one test."""
    monkeypatch.setenv("SAIL_DATA", str(tmp_path / "data"))
    referring.write(tmp_path / "data")
    write_lines(tmp_path / "data", [record(number) for number in range(500, 500 + RECORDS)])
    return tmp_path / "data"


def write_lines(root: Path, rows: list[Row], folder: str = "lines") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for row in rows:
        if row.get("image", "").split(".")[0].isdigit() and not (root / folder / row["image"]).exists():
            photo(int(row["image"].split(".")[0])).save(root / folder / row["image"])
    (root / folder / "lines.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def splits() -> dict[str, Source]:
    train = Mixture({"lines": Lines(), "refcoco": RefCOCO("refcoco"), "grefcoco": GRefCOCO()})
    return {"train": train, "val": RefCOCO("refcoco", split="val", separate=True)}


def named(report: Report) -> set[tuple[str, str, str, str, str]]:
    """Each fault: split, source, kind, file, record."""
    found = [
        (leaf.split, leaf.name, fault.kind, fault.file, fault.record) for leaf in report.leaves for fault in leaf.faults
    ]
    assert len(set(found)) == len(found), "a fault is told twice"
    return set(found)


def messages(report: Report) -> list[str]:
    return [fault.message for leaf in report.leaves for fault in leaf.faults]


# -- what is found ----------------------------------------------------------------------------------------------------


def test_clean_sets_have_no_fault_and_are_counted(root: Path, tmp_path: Path) -> None:
    report = check(splits(), tmp_path / "out", ENCODER)
    assert messages(report) == []
    by_name = {(leaf.split, leaf.name): leaf.counts for leaf in report.leaves}
    assert by_name["train", "lines"] == COUNTS
    assert by_name["train", "refcoco"] == {"records": 3, "images": 3, "turns": 6, "masks": 6, "prompts": 0}
    assert by_name["train", "grefcoco"] == {"records": 3, "images": 3, "turns": 12, "masks": 12, "prompts": 0}
    assert by_name["val", "RefCOCO"] == {"records": 18, "images": 3, "turns": 18, "masks": 18, "prompts": 0}


def turned(path: Path) -> None:
    """Says that an image is to be turned by a quarter, as phones do."""
    picture = Image.open(path)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif, quality=95)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F").astype(int)
    edges = (np.flatnonzero(np.diff(flat)) + 1).tolist()
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def empty(row: Row) -> dict[str, Any]:
    return rle_of(np.zeros((row["height"], row["width"]), bool))


IN_RECORD: dict[str, Callable[[Row], Any]] = {
    "broken_record": lambda row: row.pop("turns"),
    "empty_record": lambda row: row.update(turns=[], masks=[], boxes=[]),
    "mask_size": lambda row: row["masks"].append(row["masks"].pop() | {"size": [row["height"] - 1, row["width"]]}),
    "undecodable_mask": lambda row: row.update(masks=[{**empty(row), "counts": [7, 7]}]),
    "empty_mask": lambda row: row.update(masks=[empty(row)]),
    "seg_count": lambda row: row["turns"][0].__setitem__(1, "It is [SEG] and [SEG]."),
    "absent_prompt": lambda row: row["turns"][1].__setitem__(0, "Describe <Prompt3>."),
    "prompt_id_range": lambda row: (row["boxes"][0].update(id=4), row["turns"].pop()),
    "prompt_id_twice": lambda row: row["boxes"].append({"box": [1, 1, 9, 9], "id": 0}),
    "empty_prompt": lambda row: row["boxes"][0].update(box=[500, 500, 510, 510]),
    "source_fault": lambda row: row.update(spans=[[0, 9], [5, 12]]),
    "reserved_token": lambda row: row["turns"][1].__setitem__(0, "Describe <vpatch> <Prompt0>."),
    "too_long": lambda row: row["turns"][1].__setitem__(1, "a red thing " * 200),
}
"""Faults that are planted in a record of `lines.jsonl`, in this order."""
IN_PICTURE: dict[str, Callable[[Path], Any]] = {
    "missing_image": lambda path: path.unlink(),
    "corrupt_image": cut_short,
    "turned_image": turned,
    "image_size": lambda path: Image.new("RGB", (70, 70)).save(path),
}


def damage(root: Path) -> set[tuple[str, str, str, str, str]]:
    """Plants one fault of each kind; what a check should name."""
    rows = [record(number) for number in range(500, 500 + RECORDS)]
    file, expected = str(root / "lines/lines.jsonl"), set()

    def expect(kind: str, file: str, record: str, leaf: str = "lines") -> None:
        expected.add(("train", leaf, kind, file, record))

    for place, (kind, plant) in enumerate(IN_RECORD.items()):
        plant(rows[place])
        expect(kind, file, rows[place]["id"])
    for place, kind in enumerate(IN_PICTURE, len(IN_RECORD)):
        expect(kind, str(root / "lines" / rows[place]["image"]), rows[place]["id"])
    rows.append({**rows[-1], "id": "copy"})
    expect("duplicate_record", file, "copy")
    leaked = referring.file_name(photo(100))
    rows.append({**record(100), "image": leaked})
    expect("leaked_image", str(root / "lines" / leaked), "record-100")
    write_lines(root, rows)
    shutil.copyfile(root / "coco/train2014" / leaked, root / "lines" / leaked)
    for place, plant_in in enumerate(IN_PICTURE.values(), len(IN_RECORD)):
        plant_in(root / "lines" / rows[place]["image"])
    cut_short(root / "ref_seg/grefcoco/grefs(unc).json")
    expect("unreadable_source", str(root / "ref_seg/grefcoco/grefs(unc).json"), "", "grefcoco")
    return expected


def test_one_planted_fault_of_every_kind_is_named_and_nothing_else(root: Path, tmp_path: Path) -> None:
    expected = damage(root)
    assert {kind for _, _, kind, _, _ in expected} == set(KINDS)
    report = check(splits(), tmp_path / "out", ENCODER)
    assert named(report) == expected, messages(report)


@pytest.mark.parametrize("kind", [*IN_RECORD, *IN_PICTURE])
def test_a_fault_alone_is_one_fault(kind: str, root: Path, tmp_path: Path) -> None:
    rows = [record(number) for number in range(500, 503)]
    if kind in IN_RECORD:
        IN_RECORD[kind](rows[1])
    write_lines(root, rows)
    if kind in IN_PICTURE:
        IN_PICTURE[kind](root / "lines/501.jpg")
    report = check({"train": Lines()}, tmp_path / "out", ENCODER)
    assert [(leaf.name, fault.kind, fault.record, fault.index) for leaf in report.leaves for fault in leaf.faults] == [
        ("Lines", kind, "record-501", 1)
    ]


@pytest.mark.parametrize("kind", [kind for kind in IN_RECORD if kind not in ("too_long", "reserved_token")])
def test_without_a_model_all_but_lengths_is_checked(kind: str, root: Path, tmp_path: Path) -> None:
    row = record(500)
    IN_RECORD[kind](row)
    if kind == "prompt_id_range":
        row["boxes"][0]["id"] = 15
    write_lines(root, [row])
    report = check({"train": Lines()}, tmp_path / "out")
    assert [fault.kind for fault in report.leaves[0].faults] == [kind]
    assert "Lengths were not checked" in report.to_text()


def test_the_faults_of_the_published_files_are_named_too(root: Path, tmp_path: Path) -> None:
    path = root / "ref_seg/refcoco/instances.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] == 1 and annotation["id"] % 10 == 0:
            annotation["segmentation"] = {"size": [5, 5], "counts": [25]}
        if annotation["image_id"] == 2 and annotation["id"] % 10 == 1:
            annotation["segmentation"] = [[1.0, 2.0, 3.0]]
    content["annotations"] = [one for one in content["annotations"] if one["id"] != 0]
    dump(path, content)
    report = check({"train": RefCOCO("refcoco")}, tmp_path / "out")
    file = str(root / "ref_seg/refcoco/refs(unc).p")
    assert named(report) == {
        ("train", "RefCOCO", "broken_record", file, "0"),
        ("train", "RefCOCO", "mask_size", file, "1"),
        ("train", "RefCOCO", "undecodable_mask", file, "2"),
    }
    assert "instances.json lacks" in messages(report)[0]


def test_overlapping_spans_of_grounded_captions_are_named(root: Path, tmp_path: Path) -> None:
    glamm.write(root)
    file = root / "glamm/annotations/GranDf_HA_GCG_train.json"
    assert check({"train": sources.GranDf()}, tmp_path / "out", ENCODER).faults == 0
    entries = json.loads(file.read_text())
    groundings = entries[1]["groundings"]
    first, second = [phrase for phrase, grounding in groundings.items() if grounding is not None]
    groundings[first]["token_positives"] = groundings[second]["token_positives"]
    dump(file, entries)
    report = check({"train": sources.GranDf()}, tmp_path / "out", ENCODER)
    assert named(report) == {("train", "GranDf", "source_fault", str(file), entries[1]["image_id"])}
    assert "overlaps" in messages(report)[0]


PUBLISHED = [
    "CocoPanoptic",
    "CocoPrompts",
    "FlickrGCG",
    "GRefCOCO",
    "GranDf",
    "GranDfBenchmark",
    "Llava",
    "Muse",
    "OpenPsgGCG",
    "Osprey",
    "PerBench",
    "Pix2CapPrompts",
    "Pix2CapSegmentation",
    "ReasonSeg",
    "RefCOCO",
    "RefCOCOM",
    "RefCOCOgGCG",
    "RegionCaptionBenchmark",
    "RegionCaptions",
    "SamPrompts",
]


def test_lost_images_of_all_published_sets_are_named_and_nothing_else(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAIL_DATA", str(shutil.copytree(sets, tmp_path / "data")))
    train = Mixture({name: getattr(sources, name)() for name in PUBLISHED})
    clean = check({"train": train}, tmp_path / "out", replace(ENCODER, num_prompts=15))
    assert messages(clean) == [] and all(leaf.counts["records"] > 0 for leaf in clean.leaves)
    samples = {
        name: [source.full_record(index) for index in range(source.length or 0)]
        for name, source in train.children.items()
    }
    lost: dict[str, str] = {}
    for some in samples.values():
        first, second, *_ = dict.fromkeys(str(sample.image) for sample in some if sample.image)
        lost |= {first: "missing_image"} | ({} if second in lost else {second: "corrupt_image"})
    for path, kind in lost.items():
        IN_PICTURE[kind](Path(path))
    report = check({"train": train}, tmp_path / "out", replace(ENCODER, num_prompts=15))
    assert named(report) == {
        ("train", name, lost[str(sample.image)], str(sample.image), sample.id)
        for name, some in samples.items()
        for sample in some
        if str(sample.image) in lost
    }


def test_an_rle_of_another_size_is_told_where_the_file_gives_no_size(root: Path, tmp_path: Path) -> None:
    glamm.write(root)
    file = root / "glamm/annotations/RefCOCOg_GCG_train.json"
    entries = json.loads(file.read_text())
    (id, entry), *_ = entries[1].items()
    entry["refs"][0]["segmentation"] = {"size": [5, 5], "counts": [25]}
    dump(file, entries)
    report = check({"train": sources.RefCOCOgGCG()}, tmp_path / "out", ENCODER)
    assert named(report) == {("train", "RefCOCOgGCG", "mask_size", str(file), id)}


def test_a_lost_panoptic_file_is_a_mask_that_cannot_be_decoded(root: Path, tmp_path: Path) -> None:
    panoptic.write(root)
    source = sources.CocoPanoptic()
    row = source.index[0]
    Path(row["png"]).unlink()
    report = check({"train": source}, tmp_path / "out", ENCODER)
    assert {(fault.kind, fault.record) for fault in report.leaves[0].faults} == {("undecodable_mask", row["id"])}
    assert len(messages(report)) == len(source.full_record(0).masks)


def test_images_in_shards_are_leaked_by_the_name_that_they_had(root: Path, tmp_path: Path) -> None:
    refcoco = RefCOCO("refcoco")
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for index in range(refcoco.length):
            writer.add(refcoco[index])
    train = sources.ShardSource(str(tmp_path / "shards"))
    assert check({"train": train}, tmp_path / "out").faults == 0
    report = check({"train": train, "val": RefCOCO("refcoco", split="train")}, tmp_path / "out")
    assert [fault.kind for fault in report.leaves[0].faults] == ["leaked_image"] * 3


def test_all_objects_are_looked_at_though_a_reading_takes_one(root: Path, tmp_path: Path) -> None:
    path = root / "ref_seg/refcoco/instances.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1.0, 2.0, 3.0]]
    dump(path, content)
    report = check({"train": RefCOCO("refcoco", objects=1)}, tmp_path / "out")
    assert len(messages(report)) == 6 and all("a polygon needs three" in message for message in messages(report))


def test_an_empty_mask_is_right_where_nothing_is_meant(root: Path, tmp_path: Path) -> None:
    row = record(500)
    row["turns"][0][1] = "No target [SEG]."
    row["masks"] = [empty(row)]
    write_lines(root, [row])
    assert check({"train": Lines()}, tmp_path / "out", ENCODER).faults == 0


def test_a_prompt_that_is_denied_need_not_be_there(root: Path, tmp_path: Path) -> None:
    row = record(500)
    row["turns"].append(["Describe <Prompt2>.", "<Prompt2> is not in the image."])
    write_lines(root, [row])
    assert check({"train": Lines()}, tmp_path / "out").faults == 0


def test_faults_of_a_corrupt_image_hide_no_fault_of_its_masks(root: Path, tmp_path: Path) -> None:
    row = record(500)
    IN_RECORD["empty_mask"](row)
    write_lines(root, [row])
    cut_short(root / "lines/500.jpg")
    report = check({"train": Lines()}, tmp_path / "out", ENCODER)
    assert [fault.kind for fault in report.leaves[0].faults] == ["corrupt_image", "empty_mask"]


class Strange(Source):
    """Raises what nobody expects."""

    def __getitem__(self, index: int) -> Sample:
        if index == 1:
            raise ZeroDivisionError("no length")
        return Sample(None, (Turn("Hello?", "Hello."),), source="strange.txt", id=str(index))

    @property
    def length(self) -> int:
        return 2


def test_a_source_that_raises_anything_is_a_broken_record(tmp_path: Path) -> None:
    report = check({"train": Strange()}, tmp_path / "out")
    assert named(report) == {("train", "Strange", "broken_record", "Strange", "record 1")}
    assert messages(report) == ["ZeroDivisionError: no length"]


class Region(Source):
    """A mask as a prompt, of another size than the image."""

    length = 1

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask

    def __getitem__(self, index: int) -> Sample:
        picture = np.zeros((8, 9, 3), np.uint8)
        return Sample(picture, (Turn("Describe <Prompt0>.", "A."),), prompts=(Mask(self.mask),), id="region")


@pytest.mark.parametrize(
    ("mask", "kinds"),
    [
        (np.ones((8, 9), bool), []),
        (np.ones((9, 8), bool), ["mask_size"]),
        (np.zeros((8, 9), bool), ["empty_prompt"]),
    ],
)
def test_masks_of_prompts_are_looked_at(mask: np.ndarray, kinds: list[str], tmp_path: Path) -> None:
    report = check({"train": Region(mask)}, tmp_path / "out")
    assert [fault.kind for fault in report.leaves[0].faults] == kinds


# -- across records ---------------------------------------------------------------------------------------------------


def test_the_same_question_about_another_object_is_no_duplicate(root: Path, tmp_path: Path) -> None:
    first, second = record(500), {**record(500), "id": "other", "masks": [photo(500).things[1].rle()]}
    write_lines(root, [first, second])
    assert check({"train": Lines()}, tmp_path / "out").faults == 0


def test_benchmarks_may_ask_twice(root: Path, tmp_path: Path) -> None:
    write_lines(root, [record(500), {**record(500), "id": "copy"}])
    assert check({"val": Lines()}, tmp_path / "out").faults == 0
    assert named(check({"train": Lines()}, tmp_path / "out")) == {
        ("train", "Lines", "duplicate_record", str(root / "lines/lines.jsonl"), "copy")
    }


def test_an_image_of_the_same_name_is_leaked_only_if_it_is_the_same(root: Path, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        write_lines(root, [record(500), record(501)], folder)
    photo(502).save(root / "val/501.jpg")
    both: dict[str, Source] = {"train": Lines("train/lines.jsonl"), "val": Lines("val/lines.jsonl")}
    assert {fault for fault in named(check(both, tmp_path / "out")) if fault[0] == "train"} == {
        ("train", "Lines", "leaked_image", str(root / "train/500.jpg"), "record-500")
    }


@pytest.mark.parametrize(
    ("train", "val", "leaked"),
    [
        ("mine/000000000001.jpg", "other/000000000001.jpg", False),
        ("mine/000000000001.jpg", "val2017/000000000001.jpg", False),
        ("train2017/000000000001.jpg", "val2017/000000000001.jpg", True),
        ("mine/COCO_train2014_000000000001.jpg", "val2017/000000000001.jpg", True),
    ],
)
def test_a_number_alone_is_no_name_of_coco(train: str, val: str, leaked: bool, root: Path, tmp_path: Path) -> None:
    for folder, name, number in (("train", train, 500), ("val", val, 501)):
        (root / folder / name).parent.mkdir(parents=True)
        photo(number).save(root / folder / name)
        write_lines(root, [{**record(number), "image": name}], folder)
    both: dict[str, Source] = {"train": Lines("train/lines.jsonl"), "val": Lines("val/lines.jsonl")}
    found = [kind for split, _, kind, _, _ in named(check(both, tmp_path / "out")) if split == "train"]
    assert found == ["leaked_image"] * leaked


def test_a_held_out_image_under_another_name_is_found_by_its_bytes(root: Path, tmp_path: Path) -> None:
    write_lines(root, [record(500), record(501)], "val")
    (root / "train").mkdir()
    shutil.copyfile(root / "val/501.jpg", root / "train/mine.jpg")
    write_lines(root, [record(502), {**record(501), "image": "mine.jpg"}], "train")
    both: dict[str, Source] = {"train": Lines("train/lines.jsonl"), "val": Lines("val/lines.jsonl")}
    report = check(both, tmp_path / "out", chunk=1)
    assert named(report) == {("train", "Lines", "leaked_image", str(root / "train/mine.jpg"), "record-501")}
    assert messages(report) == [
        f"its image is, byte by byte, also in val: record record-501 of {root / 'val/lines.jsonl'}"
    ]


def test_held_out_splits_count_though_they_are_not_read(root: Path, tmp_path: Path) -> None:
    both: dict[str, Source] = {"train": RefCOCO("refcoco"), "test": RefCOCO("refcoco", split="train", separate=True)}
    report = check(both, tmp_path / "out", only=["train"])
    assert [leaf.split for leaf in report.leaves] == ["train"]
    assert [fault.kind for fault in report.leaves[0].faults] == ["leaked_image"] * 3
    assert "is also in test: record 0/" in messages(report)[0]


def test_what_one_mixture_excludes_is_leaked_by_its_neighbour(root: Path, tmp_path: Path) -> None:
    inner = Mixture({"a": RefCOCO("refcoco+")}, exclude={"held": RefCOCO(split="val")})
    train = Mixture({"inner": inner, "outer": RefCOCO("refcoco+", split="val")})
    report = check({"train": train}, tmp_path / "out")
    assert [(leaf.name, len(leaf.faults)) for leaf in report.leaves] == [("inner/a", 0), ("outer", 3)]
    assert "is also in the excluded held" in messages(report)[0]


def test_a_mixture_that_leaves_no_record_is_told(root: Path, tmp_path: Path) -> None:
    train = Mixture({"a": RefCOCO(split="val")}, exclude={"val": RefCOCO(split="val")})
    report = check({"train": train}, tmp_path / "out")
    assert [fault.kind for fault in report.leaves[-1].faults] == ["unreadable_source"]
    assert any("has no records that exclude leaves" in message for message in messages(report))


def test_only_the_records_that_a_mixture_uses_are_read(root: Path, tmp_path: Path) -> None:
    train = Mixture({"lines": Lines()}, limits={"lines": 5})
    assert check({"train": train}, tmp_path / "out").leaves[0].counts["records"] == 5


# -- running ----------------------------------------------------------------------------------------------------------


def test_a_source_without_an_end_is_read_up_to_a_limit(tmp_path: Path) -> None:
    train: dict[str, Source] = {"train": LaboratorySource(size=32)}
    report = check(train, tmp_path / "out", ENCODER, limit=7)
    assert report.leaves[0].counts["records"] == 7 and messages(report) == []
    assert len(flatten_sources("train", train["train"])[0]) == 1000


class Killed(BaseException):
    pass


def killed_after(records: int) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if done >= records:
            raise Killed

    return tell


def test_a_check_that_was_killed_goes_on_and_ends_with_the_same_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(root)
    whole = check(splits(), tmp_path / "full_record", ENCODER, chunk=4)
    with pytest.raises(Killed):
        check(splits(), tmp_path / "out", ENCODER, chunk=4, tell=killed_after(16))
    with (tmp_path / "out/state.jsonl").open("a") as file:
        file.write('{"chunk": 4, "counts": [4, 8')  # the line that was being written
    read: list[int] = []
    once = Lines.full_record
    monkeypatch.setattr(Lines, "full_record", lambda self, index: read.append(index) or once(self, index))
    again = check(splits(), tmp_path / "out", ENCODER, chunk=4)
    assert again.to_dict() == whole.to_dict()
    assert min(read) == 16  # nothing that was done is looked at again


@pytest.mark.parametrize("sign", ["\u2028", "\ud83d"], ids=["line separator", "half a surrogate pair"])
def test_a_message_with_any_sign_is_kept_and_written(sign: str, root: Path, tmp_path: Path) -> None:
    rows = [record(number) for number in (500, 501)]
    rows[0]["masks"], rows[0]["turns"][0][1] = [empty(rows[0])], f"It {sign} is [SEG]."
    rows[0]["id"] = f"first{sign}"
    write_lines(root, rows)
    with pytest.raises(Killed):
        check({"train": Lines()}, tmp_path, chunk=1, tell=killed_after(1))
    begun: list[int] = []
    report = check({"train": Lines()}, tmp_path, chunk=1, tell=lambda done, total: begun.append(done))
    assert begun[0] == 1 and [fault.kind for fault in report.leaves[0].faults] == ["empty_mask"]
    assert all(path.read_text(encoding="utf-8") for path in report.write(tmp_path, "check"))
    assert report.to_text().encode()


def test_restart_forgets_what_was_done(root: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        check(splits(), tmp_path, ENCODER, chunk=4, tell=killed_after(8))
    begun: list[int] = []
    check(splits(), tmp_path, ENCODER, chunk=4, restart=True, tell=lambda done, total: begun.append(done))
    assert begun[0] == 0


def test_files_or_settings_that_changed_begin_anew(root: Path, tmp_path: Path) -> None:
    def begins_at(settings: str = "") -> int:
        begun: list[int] = []

        def tell(done: int, total: int) -> None:
            begun.append(done)
            if len(begun) == 3:
                raise Killed

        with pytest.raises(Killed):
            check(splits(), tmp_path, chunk=4, settings=settings, tell=tell)
        return begun[0]

    assert begins_at() == 0
    assert begins_at() == 8
    assert begins_at(settings="another config") == 0
    write_lines(root, [record(number) for number in range(500, 520)])
    assert begins_at(settings="another config") == 0


def test_a_finished_check_is_begun_anew_so_what_was_mended_is_seen(root: Path, tmp_path: Path) -> None:
    path = root / "lines/500.jpg"
    kept = path.read_bytes()
    path.unlink()
    assert check(splits(), tmp_path, ENCODER).faults == 1
    path.write_bytes(kept)
    assert check(splits(), tmp_path, ENCODER).faults == 0


def test_two_workers_report_what_none_does(root: Path, tmp_path: Path) -> None:
    damage(root)
    alone = check(splits(), tmp_path / "alone", ENCODER, chunk=4)
    together = check(splits(), tmp_path / "together", ENCODER, chunk=4, workers=2)
    assert together.to_dict() == alone.to_dict() and alone.faults == len(KINDS)


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_names_file_record_and_mend_in_both_forms(root: Path, tmp_path: Path) -> None:
    expected = damage(root)
    report = check(splits(), tmp_path / "out", ENCODER)
    markdown, machine = report.write(tmp_path / "out", "sail-lightning data check -c mine.yaml")
    text, content = markdown.read_text(), json.loads(machine.read_text())
    for _, leaf, kind, file, name in expected:
        section = text.partition(f"## train, {leaf}: {kind} (1)\n")[2].partition("##")[0]
        assert f"Fix: {KINDS[kind]}." in section and f"| {file} | {name} |" in section
    assert content["faults"] == len(expected) and content["max_tokens"] == 400
    lines = next(source for source in content["sources"] if source["name"] == "lines")
    assert (lines["split"], lines["class"], lines["counts"]["records"]) == ("train", "Lines", RECORDS + 2)
    found = lines["faults"]["missing_image"]
    assert found["count"] == 1 and found["fix"] == KINDS["missing_image"]
    assert set(found["records"][0]) == {"file", "record", "index", "message"}
    path = root / "lines/513.jpg"
    assert found["examples"] == [f"{path} record-513: no image {path}"]


def test_many_faults_of_a_kind_are_few_lines_and_all_in_the_json(root: Path, tmp_path: Path) -> None:
    for path in (root / "lines").glob("*.jpg"):
        path.unlink()
    report = check({"train": Lines()}, tmp_path)
    assert "and 21 more" in report.to_text() and "4 more are in report.json." in report.to_markdown("")
    assert len(report.to_dict()["sources"][0]["faults"]["missing_image"]["records"]) == RECORDS
