"""The index on disk: built once, mapped, whole or absent."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data import plain_pickle, records
from sail_lightning.data.records import RecordIndex, image_hash, image_name
from sail_lightning.data.samplers import ExhaustiveSampler, RandomSampler, Sampler
from sail_lightning.data.sources.indexed import IndexedSource, read_json, rows_of
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import PanopticSegments, Segmentation, decode
from sail_lightning.sample import Sample, Turn

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=8))
def test_rows_come_back_as_they_were(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    index = records.build(tmp_path_factory.mktemp("rows") / "index", rows, lambda row: None)
    assert [index[number] for number in range(len(index))] == rows
    copy = pickle.loads(pickle.dumps(index))
    assert [copy[number] for number in range(len(copy))] == rows
    assert not index.image_hashes.any()


class Lines(IndexedSource):
    """A record per line of a text file."""

    parsed = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        type(self).parsed += 1
        for line in self.files[0].read_text().splitlines():
            yield {"id": line, "image": f"{line}.jpg"}

    def sample(self, row: dict[str, Any], sampler: Sampler) -> Sample:
        return Sample(row["image"], (Turn("?", row["answer"] if row["id"] == "bad" else "!"),), id=row["id"])


def test_files_are_parsed_once_until_they_change(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("a\nb\n")
    Lines.parsed = 0
    assert Lines([file]).length == Lines([file]).length == 2 and Lines.parsed == 1
    file.write_text("a\nb\nc\n")
    assert Lines([file]).length == 3 and Lines.parsed == 2


def test_making_a_source_reads_nothing(tmp_path: Path) -> None:
    source = Lines([tmp_path / "absent.txt"])
    with pytest.raises(SailError, match=r"no annotation file .*absent.txt"):
        source.length  # noqa: B018


def test_a_fault_while_parsing_leaves_no_half_of_an_index(tmp_path: Path, index_cache: Path) -> None:
    class Fails(Lines):
        def rows(self) -> Iterator[dict[str, Any]]:
            yield {"id": "a"}
            raise KeyError("photos")

    file = tmp_path / "lines.txt"
    file.write_text("a")
    before = set((index_cache / "index").glob("*")) if (index_cache / "index").exists() else set()
    with pytest.raises(SailError, match=r"lines.txt is not laid out as Fails reads it: the key 'photos' is missing"):
        Fails([file]).length  # noqa: B018
    assert set((index_cache / "index").glob("*")) == before and not list((index_cache / "index").glob(".*"))


def test_a_broken_record_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("good\nbad")
    source = Lines([file])
    assert source[0].id == "good"
    with pytest.raises(SailError, match=r"lines.txt bad: the key 'answer' is missing; fix the record"):
        source[1]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "no", "/nowhere")

    file = tmp_path / "lines.txt"
    file.write_text("a")
    monkeypatch.setattr(records, "build", refuse)
    with pytest.raises(SailError, match=r"cannot be written to /nowhere \(no\); set SAIL_CACHE"):
        Lines([file]).length  # noqa: B018


def test_a_cache_under_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("a")
    monkeypatch.setenv("SAIL_CACHE", str(file / "cache"))
    with pytest.raises(SailError, match=r"the index cannot be written to .*lines.txt.* \(Not a directory\); set"):
        Lines([file]).length  # noqa: B018


def test_a_file_that_cannot_be_read_is_no_fault_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SailError, match=r"^.*folder is a folder; name a file in it$"):
        Lines([tmp_path / "folder"]).length  # noqa: B018

    class Lost(Lines):
        def rows(self) -> Iterator[dict[str, Any]]:
            yield {"id": "a"}
            raise OSError(5, "Input/output error")

    (tmp_path / "lines.txt").write_text("a")
    with pytest.raises(SailError, match=r"^.*lines.txt cannot be read \(Input/output error\)$"):
        Lost([tmp_path / "lines.txt"]).length  # noqa: B018


def test_halves_of_surrogate_pairs_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"id": "\ud83d", "text": "façade \ude00 \u2028", "image": "\udcff.jpg"}]
    index = records.build(tmp_path / "index", rows, lambda row: row["image"])
    assert index[0] == rows[0] and index.image_hashes[0] == image_hash("\udcff.jpg") != 0


@pytest.mark.parametrize("value", [b"bytes", datetime(2026, 1, 1), {1, 2}])
def test_a_row_that_json_cannot_hold_names_its_file(value: object, tmp_path: Path) -> None:
    class Odd(Lines):
        def rows(self) -> Iterator[dict[str, Any]]:
            yield from ({"id": "a"}, {"id": "b", "value": value})

    (tmp_path / "lines.txt").write_text("a")
    with pytest.raises(
        SailError, match=r"record 1 of .*lines.txt holds a value that JSON cannot hold \(.*\); use strings, numbers"
    ):
        Odd([tmp_path / "lines.txt"]).length  # noqa: B018


def test_e37_reading_records_does_not_grow_a_worker(tmp_path: Path) -> None:
    rows = ({"id": str(number), "image": f"{number}.jpg", "text": "x" * 300} for number in range(20_000))
    index = records.build(tmp_path / "index", rows, lambda row: row["image"])

    def private() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("this system does not tell a process's private memory")
    for number in range(100):
        index[number]
    before = private()
    for number in range(20_000):
        assert index[number]["id"] == str(number)
    assert private() - before < 4_000  # KiB, of 6 MB that were read


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/COCO_train2014_000000000123.jpg", "000000000123"),
        ("b/000000000123.png", "000000000123"),
        ("x/sa_223750.jpg", "sa_223750"),
        ("COCO_mine.jpg", "COCO_mine"),
        ("x/train/0001.png", "train/0001"),  # many folders hold such
    ],
)
def test_an_image_is_named_alike_wherever_it_lies(path: str, name: str) -> None:
    assert image_name(path) == name and 0 < image_hash(path) == image_hash(f"{name}.gif") < 2**64
    assert image_hash(None) == 0


def test_choices_are_drawn_without_replacement_or_all_taken() -> None:
    drawn = RandomSampler(np.random.default_rng(0))
    assert sorted(drawn.sample(range(9))) == list(range(9)) and len(set(drawn.sample(range(9), 4))) == 4
    assert {drawn.integer(1, 3) for _ in range(60)} == {1, 2, 3}
    assert {drawn.choice("ab") for _ in range(30)} == {"a", "b"}
    whole = ExhaustiveSampler()
    assert whole.sample(range(9), 4) == list(range(9)) and whole.choice("ab") == "a" and not whole.bernoulli(1.0)


def test_plain_pickles_of_either_python_are_read(tmp_path: Path) -> None:
    content = [{"sent": "façade", "ids": [1, (2, 3)], "x": 1.5, "no": None}]
    for protocol in range(5):
        (tmp_path / "p").write_bytes(pickle.dumps(content, protocol))
        assert plain_pickle.load(tmp_path / "p") == content
    (tmp_path / "p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'a red car'\np3\nsa.")  # as Python 2 wrote it
    assert plain_pickle.load(tmp_path / "p") == [{"sent": "a red car"}]
    (tmp_path / "p").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(SailError, match="is not a pickle of plain lists"):
        plain_pickle.load(tmp_path / "p")


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2")
    with pytest.raises(SailError, match=r"a.json is not valid JSON .*; copy it again"):
        read_json(tmp_path / "a.json")


SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]


def test_e3_masks_that_overlap_are_united() -> None:
    two = Segmentation(([SQUARE, [3.0, 1.0, 7.0, 1.0, 7.0, 7.0, 3.0, 7.0]],), (8, 8))()
    assert two.dtype == bool and two.sum() == 16 + 24 - 8
    assert Segmentation((), (8, 8))().sum() == 0 and Segmentation(([],), (8, 8))().sum() == 0


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ([[1, 1, 2, 2]], "a polygon needs three or more points"),
        ([[1, 1, 2, 2, float("nan"), 3]], "a polygon needs three or more points"),
        ({"size": [8, 9], "counts": "a"}, r"an RLE of size \[8, 9\], but the image has \[8, 8\]"),
        ({"size": [8, 8], "counts": [60]}, "with counts that add up to 60, not to 8 x 8 pixels"),
        ({"size": [8, 8], "counts": "?!"}, "are not a compressed RLE"),
        ({"size": [8, 8], "counts": "0"}, "with counts that add up to 0, not to 8 x 8 pixels"),  # cut off
        ({"size": [8, 8]}, "an RLE cannot be decoded"),
        ({"size": None, "counts": [64]}, "an RLE of size None, but the image has"),
        ([[1, 2, None, 3, 4, 5]], "a polygon needs three or more points"),
        ([[1, 2, "3", 3, 4, 5]], "a polygon needs three or more points"),
        ("none", "a mask must be polygons or an RLE"),
    ],
)
def test_a_mask_that_cannot_be_decoded_is_one_sentence(encoded: Any, message: str) -> None:
    with pytest.raises(SailError, match=message):
        decode(encoded, (8, 8))


@pytest.mark.parametrize("size", [(8,), ("8", 8), (8.0, 8), (-1, 8), (10**7, 100), None])
def test_a_size_that_is_none_is_one_sentence(size: Any) -> None:
    with pytest.raises(SailError, match="the image's size is"):
        Segmentation(([SQUARE],), size or ())()


def test_one_item_that_cannot_be_parsed_is_one_record_with_a_fault(tmp_path: Path) -> None:
    class Items(Lines):
        def rows(self) -> Iterator[dict[str, Any]]:
            for number, item in enumerate(json.loads(self.files[0].read_text())):
                yield from rows_of(f"item {number}", lambda item=item: [{"id": item["id"], "image": "x.jpg"}])

    file = tmp_path / "items.json"
    file.write_text(json.dumps([{"id": "a"}, None, {}, {"id": "b"}]))
    source = Items([file])
    assert source.length == 4 and source[0].id == "a" and source[3].id == "b"
    for number in (1, 2):
        with pytest.raises(SailError, match=rf"items.json item {number}: .*; fix the record"):
            source[number]


def test_panoptic_segments_are_read_by_their_colour(tmp_path: Path) -> None:
    from dataset_writers.scenes import rgb_of

    ids = np.array([[0, 255], [256, 65536 + 300]])
    rgb_of(ids).save(tmp_path / "p.png")
    assert PanopticSegments(str(tmp_path / "p.png"), (256, 65836))().tolist() == [[False, False], [True, True]]
    with pytest.raises(SailError, match="no panoptic file"):
        PanopticSegments(str(tmp_path / "q.png"), (1,))()


def test_an_index_holds_no_rows_in_memory() -> None:
    assert set(RecordIndex(Path("x")).__getstate__()) == {"folder"}
