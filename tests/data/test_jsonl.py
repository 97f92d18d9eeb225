"""Our own format: what a line of a JSONL file, or a row of a Parquet file, becomes, and what is said of a wrong one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers.scenes import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sail_lightning.data.jsonl import as_line, from_json, task_of, to_json
from sail_lightning.data.records import image_hash
from sail_lightning.data.sources import JsonlSource, ParquetSource
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import Box, Mask, Point, Sample, Scribble, Turn

ONE = photo(0)
THING = ONE.things[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image, and the first of its masks as PNGs: on is 255, or 3 in a palette image that also has a 1."""
    ONE.save(tmp_path / "photos/0.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(THING.mask.astype(np.uint8) * 255).save(tmp_path / "masks/0.png")
    values = np.where(THING.mask, 3, ONE.things[1].mask).astype(np.uint8)
    indexed = Image.fromarray(values, "P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.save(tmp_path / "masks/palette.png")
    Image.fromarray(np.zeros((*ONE.size, 3), np.uint8)).save(tmp_path / "masks/coloured.png")
    return tmp_path


def record(**changes: Any) -> dict[str, Any]:
    """A line about the image with one mask; a change of `...` takes a key away."""
    line = {
        "id": "a",
        "image": "photos/0.png",
        "turns": [{"question": "Please segment the thing.", "answer": "It is [SEG]."}],
        "masks": [THING.rle()],
    } | changes
    return {key: value for key, value in line.items() if value is not ...}


def turn(**changes: Any) -> dict[str, Any]:
    return {"question": "Where is it?", "answer": "Here: [SEG]."} | changes


def written(folder: Path, *lines: Any) -> JsonlSource:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path = folder / "data.jsonl"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return JsonlSource(str(path))


# -- what lines become ------------------------------------------------------------------------------------------------


def test_a_line_is_a_sample_whose_files_lie_relative_to_the_file(folder: Path) -> None:
    source = written(folder, record(meta={"kind": "façade"}), "", record(id=7))
    assert source.length == 2  # empty lines are passed over
    sample = source[0]
    assert sample.image == str(folder / "photos/0.png")
    assert sample.turns == (Turn("Please segment the thing.", "It is [SEG].", "refer", (0,)),)
    assert (sample.source, sample.id, sample.meta) == (str(folder / "data.jsonl"), "a", {"kind": "façade"})
    assert source[1].id == "7"
    assert source.image_keys().tolist() == [source.image_keys()[0]] * 2 != [0, 0]


def test_an_image_is_named_with_its_folder_also_where_the_line_leaves_that_out(folder: Path) -> None:
    hashes = []
    for name in ("train", "val"):
        (folder / name).mkdir()
        source = written(folder / name, record(image="0001.png"))
        hashes += [source.image_keys()[0], image_hash(folder / name / "0001.png")]
    assert hashes[0] == hashes[1] and hashes[2] == hashes[3] and hashes[0] != hashes[2]
    other = JsonlSource(str(folder / "train/data.jsonl"), images=str(folder / "val"))
    assert other.image_keys()[0] == hashes[3], "not that of the index that was made before"


def test_images_and_masks_may_lie_in_another_folder(folder: Path) -> None:
    path = folder / "elsewhere" / "data.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(record(masks=["masks/0.png"])))
    sample = JsonlSource(str(path), images=str(folder))[0]
    assert sample.image == str(folder / "photos/0.png")
    assert np.array_equal(load_mask(sample.masks[0]), THING.mask)


@pytest.mark.parametrize(
    "mask",
    [
        THING.rle(),
        THING.uncompressed(),
        {"polygons": THING.polygons},
        "masks/0.png",
        {"png": "masks/0.png"},
        {"png": "masks/0.png", "value": 255},
        {"png": "masks/palette.png", "value": 3},
    ],
    ids=["compressed", "uncompressed", "polygons", "path", "png", "value", "index"],
)
def test_a_mask_in_any_encoding_is_the_same(mask: Any, folder: Path) -> None:
    for size in (..., list(ONE.size)):
        sample = written(folder, record(masks=[mask], size=size))[0]
        assert np.array_equal(load_mask(sample.masks[0]), THING.mask)


def test_prompts_are_masks_boxes_points_and_scribbles(folder: Path) -> None:
    prompts = [
        {"mask": THING.rle(), "id": 2},
        {"box": [1, 2, 30.5, 40]},
        {"point": [3, 4], "id": 0},
        {"scribble": [[1, 2], [3, 4], [5, 6]]},
    ]
    mask, *others = written(folder, record(prompts=prompts))[0].prompts
    assert others == [Box(1, 2, 30.5, 40), Point(3, 4, 0), Scribble(((1, 2), (3, 4), (5, 6)))]
    assert isinstance(mask, Mask) and mask.id == 2
    assert np.array_equal(load_mask(mask.mask), THING.mask)


def test_masks_are_dealt_to_segs_in_order_or_as_turns_name_them(folder: Path) -> None:
    masks = [thing.rle() for thing in ONE.things]
    answers = ["[SEG] and [SEG].", "No masks.", "[SEG]."]
    dealt = written(folder, record(masks=masks, turns=[turn(answer=answer) for answer in answers]))[0]
    assert [one.targets for one in dealt.turns] == [(0, 1), (), (2,)]

    named = [turn(answer=answers[0], masks=[2, 0]), turn(answer=answers[1]), turn(answer=answers[2], masks=[1])]
    sample = written(folder, record(masks=masks, turns=named))[0]
    assert [one.targets for one in sample.turns] == [(0, 1), (), (2,)]  # masks follow the [SEG]s, as they are trained
    for mask, place in zip(sample.masks, (2, 0, 1), strict=True):
        assert np.array_equal(load_mask(mask), ONE.things[place].mask)

    twice = written(folder, record(turns=[turn(masks=[0]), turn(masks=[0])]))[0]
    assert len(twice.masks) == 2 and [one.targets for one in twice.turns] == [(0,), (1,)]


def test_what_a_turn_asks_follows_from_its_words_unless_it_says_so(folder: Path) -> None:
    assert task_of("Where is the cat?", "[SEG].") == "refer"
    assert task_of("Segment what <Prompt0> holds.", "[SEG].") == "vres"
    assert task_of("Describe the picture.", "<p> a cat </p> [SEG].") == "caption"
    assert task_of("What is <Prompt0>?", "B", ["a cat", "a dog"]) == "choice"
    assert task_of("What is <Prompt0>?", "A cat.") == "describe"
    assert task_of("Hello?", "Yes.") == "chat"
    choice = turn(answer="A", choices=["a cat", "a dog"], task="chat")
    read = written(folder, record(turns=[choice], masks=...))[0].turns[0]
    assert (read.task, read.choices) == ("chat", ("a cat", "a dog"))


def test_a_line_may_have_no_image_or_several(folder: Path) -> None:
    said = [turn(answer="Yes.")]
    words = written(folder, record(image=None, turns=said, masks=...))
    assert words[0].image is None and words.image_keys().tolist() == [0]
    several = written(folder, record(image=["photos/0.png", "photos/1.png"]))[0]
    assert several.image == (str(folder / "photos/0.png"), str(folder / "photos/1.png"))


def test_what_is_to_be_ignored_beside_a_mask_follows_its_mask(folder: Path) -> None:
    masks = [thing.rle() for thing in ONE.things[:2]]
    named = [turn(answer="[SEG].", masks=[1]), turn(answer="[SEG].", masks=[0])]
    ignored = [None, ONE.things[2].rle()]
    sample = written(folder, record(masks=masks, turns=named, meta={"ignore": ignored, "a": 1}))[0]
    first, second = sample.meta["ignore"]
    assert np.array_equal(load_mask(first), ONE.things[2].mask) and second is None and sample.meta["a"] == 1
    assert written(folder, record(meta={"ignore": True}))[0].meta == {"ignore": True}


def test_half_a_surrogate_pair_in_a_text_is_no_fault_of_the_file(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_text(json.dumps(record(image="photos/\ud83d.png", turns=[turn(question="\ud83d?")])))
    assert JsonlSource(str(path))[0].turns[0].question == "\ud83d?"


# -- what is said of wrong lines --------------------------------------------------------------------------------------

WRONG = {
    "broken": ('{"id": ', "not valid JSON"),
    "list": ([1], "the record must be an object, not [1]"),
    "missing": (record(image=...), "the record has no key image"),
    "unknown": (record(promts=[]), "the record has an unknown key promts; did you mean prompts?"),
    "id": (record(id=None), "id must be a text, not null"),
    "image": (record(image=3), "image must be a text, not 3"),
    "size": (record(size=[48]), "size must be [height, width] in pixels, not [48]"),
    "meta": (record(meta=[]), "meta must be an object, not []"),
    "ignored": (record(meta={"ignore": [3]}), "meta.ignore[0] must be an RLE, polygons or a PNG file, not 3"),
    "ignored masks": (record(meta={"ignore": []}), "meta.ignore has 0, but there are 1 masks; give a mask or null"),
    "turns": (record(turns={}), "turns must be a list, not {}"),
    "no turn": (record(turns=[], masks=...), "turns is empty; give at least one question"),
    "answer": (record(turns=[{"question": "?"}]), "turns[0] has no key answer"),
    "text": (record(turns=[turn(question=1)]), "turns[0].question must be a text, not 1"),
    "task": (record(turns=[turn(task="guess")]), "turns[0].task must be one of refer, describe, choice, caption"),
    "choices": (record(turns=[turn(choices="ab")]), 'turns[0].choices must be a list, not "ab"'),
    "fewer masks": (record(masks=[]), "masks has 0, but the answers have 1 [SEG]; give one mask per [SEG]"),
    "more masks": (record(masks=[THING.rle()] * 2), "masks has 2, but the answers have 1 [SEG]"),
    "named": (record(turns=[turn(masks=[0, 0])]), "turns[0].masks names 2 masks, but its answer has 1 [SEG]"),
    "no such mask": (record(turns=[turn(masks=[1])]), "a turn names mask 1, but masks has 1, counted from 0"),
    "unnamed": (
        record(turns=[turn(masks=[1])], masks=[THING.rle()] * 2),
        "masks[0] is named by no turn; name or remove it",
    ),
    "some named": (
        record(turns=[turn(masks=[0]), turn()], masks=[THING.rle()] * 2),
        "turns[1] has no masks, but other turns do; give them to all turns with [SEG] or none",
    ),
    "mask": (record(masks=[3]), "masks[0] must be an RLE, polygons or a PNG file, not 3"),
    "mask keys": (record(masks=[{"size": [1, 2]}]), "masks[0] has none of the keys counts, polygons and png"),
    "mask size": (record(masks=[{"counts": "ab"}]), "masks[0] has no key size"),
    "counts": (
        record(masks=[{"size": [48, 64], "counts": [1.5]}]),
        "masks[0].counts[0] must be a whole number",
    ),
    "polygon": (
        record(masks=[{"polygons": [[1, 2, 3, 4]]}]),
        "masks[0].polygons[0] has 4 numbers; a polygon",
    ),
    "corner": (record(masks=[{"polygons": [["a"] * 6]}]), 'masks[0].polygons[0][0] must be a number, not "a"'),
    "value": (record(masks=[{"png": "a.png", "value": "x"}]), 'masks[0].value must be a whole number, not "x"'),
    "region": (record(prompts=[{"id": 1}]), "prompts[0] has no region; give it one of mask, box, point, scribble"),
    "regions": (record(prompts=[{"box": [], "point": []}]), "prompts[0] has box and point; give it one of"),
    "prompt": (record(prompts=["box"]), 'prompts[0] must be an object, not "box"'),
    "box": (
        record(prompts=[{"box": [5, 1, 2, 3]}]),
        "prompts[0].box is [5.0, 1.0, 2.0, 3.0]; a box is",
    ),
    "corners": (record(prompts=[{"box": [5, 1]}]), "prompts[0].box has 2 numbers instead of 4"),
    "point": (record(prompts=[{"point": [True, 1]}]), "prompts[0].point[0] must be a number, not true"),
    "scribble": (
        record(prompts=[{"scribble": [[1, 2]]}]),
        "prompts[0].scribble has 1 points; a line needs two",
    ),
    "prompt id": (record(prompts=[{"point": [1, 1], "id": "0"}]), 'prompts[0].id must be a whole number, not "0"'),
}


@pytest.mark.parametrize(("line", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_one_sentence_with_its_number_and_key(line: Any, sentence: str, folder: Path) -> None:
    source = written(folder, record(), "", line)
    assert source.length == 2 and source[0].id == "a"  # the others are read
    with pytest.raises(SailError) as fault:
        source[1]
    assert str(fault.value).startswith(f"{folder / 'data.jsonl'} line 3: {sentence}")
    assert "\n" not in str(fault.value)


def test_a_png_with_colours_has_no_values(folder: Path) -> None:
    sample = written(folder, record(masks=[{"png": "masks/coloured.png", "value": 1}]))[0]
    with pytest.raises(SailError, match=r"coloured.png has colours, not values; save it as a grey or palette PNG"):
        load_mask(sample.masks[0])


def test_a_mask_file_that_is_missing_is_named(folder: Path) -> None:
    for mask in ("masks/gone.png", {"png": "masks/gone.png", "value": 1}):
        with pytest.raises(SailError, match=r"no mask file .*masks/gone.png"):
            load_mask(written(folder, record(masks=[mask]))[0].masks[0])


# -- there and back ---------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=20).map(lambda text: text.replace("[SEG]", ""))
NUMBERS = st.floats(0, 40, width=32)
IDS = st.none() | st.integers(0, 14)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """A random block, empty or full too, at the size of the image."""
    mask = np.zeros(ONE.size, bool)
    top, left = draw(st.integers(0, 47)), draw(st.integers(0, 63))
    mask[top : top + draw(st.integers(0, 48)), left : left + draw(st.integers(0, 64))] = True
    return mask ^ draw(st.booleans())


@st.composite
def prompts(draw: st.DrawFn) -> Any:
    id, kind = draw(IDS), draw(st.integers(0, 3))
    x, y = draw(NUMBERS), draw(NUMBERS)
    if kind == 0:
        return Box(x, y, x + draw(st.floats(1, 9)), y + draw(st.floats(1, 9)), id)
    if kind == 1:
        return Point(x, y, id)
    if kind == 2:
        return Scribble(tuple(draw(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=4))), id)
    return Mask(draw(masks()), id)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    turns: list[Turn] = []
    count = 0
    for _ in range(draw(st.integers(1, 3))):
        segs = draw(st.integers(0, 2))
        answer = "[SEG]".join(draw(st.lists(TEXTS, min_size=segs + 1, max_size=segs + 1)))
        segs = answer.count("[SEG]")
        task = draw(st.sampled_from(["refer", "describe", "choice", "caption", "vres", "chat"]))
        choices = tuple(draw(st.lists(TEXTS, max_size=3)))
        turns.append(Turn(draw(TEXTS), answer, task, tuple(range(count, count + segs)), choices))  # type: ignore[arg-type]
        count += segs
    return Sample(
        image=np.zeros((*ONE.size, 3), np.uint8),
        turns=tuple(turns),
        masks=tuple(draw(masks()) for _ in range(count)),
        prompts=tuple(draw(st.lists(prompts(), max_size=3))),
        id=draw(TEXTS),
        meta=draw(st.dictionaries(TEXTS, PLAIN, max_size=3)),
    )


@given(sample=samples())
def test_a_sample_survives_being_written_and_read(sample: Sample) -> None:
    line = as_line(to_json(sample, ["picture.png"]))
    assert line.count(b"\n") == 1
    read = from_json(json.loads(line), Path("somewhere"))
    assert read.image == str(Path("somewhere/picture.png"))
    assert (read.turns, read.id, read.meta) == (sample.turns, sample.id, sample.meta)
    for ours, theirs in zip(read.masks, sample.masks, strict=True):
        assert np.array_equal(load_mask(ours), load_mask(theirs))
    for ours, theirs in zip(read.prompts, sample.prompts, strict=True):
        if isinstance(theirs, Mask):
            assert isinstance(ours, Mask) and ours.id == theirs.id
            assert np.array_equal(load_mask(ours.mask), load_mask(theirs.mask))
        else:
            assert ours == theirs
    assert as_line(to_json(replace(read, image=sample.image), ["picture.png"])) == line


SAMPLE = Sample(np.zeros((*ONE.size, 3), np.uint8), (Turn("?", "[SEG].", "refer", (0,)),), (THING.mask,), id="a")
UNWRITABLE = {
    "targets": (replace(SAMPLE, turns=(Turn("?", "[SEG]."),)), "mask 0 belongs to no [SEG]"),
    "segs": (replace(SAMPLE, turns=(Turn("?", ".", "refer", (0,)),)), "turn 0 has 0 [SEG] in its answer but 1 targets"),
    "range": (
        replace(SAMPLE, turns=(Turn("?", "[SEG].", "refer", (1,)),)),
        "turn 0 has target 1, but there are",
    ),
    "size": (
        replace(SAMPLE, masks=(THING.mask[1:],)),
        "mask 0 has (47, 64) pixels (height, width), but",
    ),
    "picture": (replace(SAMPLE, image="gone.png"), "no image gone.png"),
    "prompt": (replace(SAMPLE, prompts=(Mask(THING.mask[1:]),)), "the mask of prompt 0 has (47, 64) pixels"),
    "meta": (replace(SAMPLE, meta={"a": object()}), "it cannot be written as JSON (object is not plain)"),
    "nan": (replace(SAMPLE, meta={"a": float("nan")}), "it cannot be written as JSON"),
}


@pytest.mark.parametrize(("sample", "sentence"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_would_not_be_read_is_not_written(sample: Sample, sentence: str) -> None:
    with pytest.raises(SailError) as fault:
        as_line(to_json(sample, ["a.png"]))
    assert str(fault.value).startswith(sentence)


def test_masks_in_meta_are_written_in_the_order_of_the_masks() -> None:
    turns = (Turn("?", "[SEG].", "refer", (1,)), Turn("?", "[SEG].", "refer", (0,)))
    two = replace(SAMPLE, turns=turns, masks=(THING.mask, ~THING.mask), meta={"ignore": [None, lambda: THING.mask]})
    read = from_json(json.loads(as_line(to_json(two, ["a.png"]))), Path())
    assert np.array_equal(load_mask(read.masks[0]), ~THING.mask)
    first, second = read.meta["ignore"]
    assert np.array_equal(load_mask(first), THING.mask) and second is None


def test_numbers_of_numpy_in_meta_are_numbers() -> None:
    line = as_line(to_json(replace(SAMPLE, meta={"a": np.float32(0.5), "b": np.arange(3)}), ["a.png"]))
    assert json.loads(line)["meta"] == {"a": 0.5, "b": [0, 1, 2]}


# -- Parquet ----------------------------------------------------------------------------------------------------------


def parquet(folder: Path, columns: dict[str, Any]) -> ParquetSource:
    arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    path = folder / "data.parquet"
    parquet.write_table(arrow.table(columns), path)
    return ParquetSource(str(path))


MIXED = [THING.rle(), {"polygons": ONE.things[1].polygons}, {"png": "masks/0.png", "value": 255}]
THREE = [turn(), turn(answer="[1, 2] [SEG] [SEG]", task="refer"), turn(answer="none", choices=["a", "b"])]


@pytest.mark.parametrize("form", ["nested", "texts in lists", "text"])
def test_parquet_holds_nested_values_or_their_json_text(form: str, folder: Path) -> None:
    rows = [record(turns=THREE, masks=MIXED, prompts=[{"point": [3.0, 4.0]}], meta={"a": 1}), record(prompts=[])]
    expected = written(folder, *rows)
    columns: dict[str, Any] = {"id": ["a", "a"], "image": ["photos/0.png"] * 2, "foreign": [1, 2]}
    for key in ("turns", "masks", "prompts", "meta"):
        values = [row.get(key) for row in rows]
        if form == "text":
            values = [None if value is None else json.dumps(value) for value in values]
        elif form == "texts in lists" and key != "meta":
            values = [[json.dumps(item) for item in value] for value in values]
        columns[key] = values
    source = parquet(folder, columns)
    assert source.length == 2
    for index in range(2):
        ours, theirs = source[index], expected[index]
        assert (ours.image, ours.turns, ours.prompts, ours.id) == (
            theirs.image,
            theirs.turns,
            theirs.prompts,
            theirs.id,
        )
        assert ours.meta == theirs.meta
        for one, other in zip(ours.masks, theirs.masks, strict=True):
            assert np.array_equal(load_mask(one), load_mask(other))
    assert np.array_equal(source.image_keys(), expected.image_keys())


def test_a_wrong_row_of_parquet_is_named(folder: Path) -> None:
    source = parquet(folder, {"id": ["a", "b"], "image": ["photos/0.png"] * 2, "turns": ["[]", '[{"question": "?"}]']})
    for index, sentence in enumerate(("turns is empty", r"turns\[0\] has no key answer")):
        with pytest.raises(SailError, match=rf"data.parquet row {index + 1}: {sentence}"):
            source[index]


def test_a_column_that_json_cannot_hold_is_one_sentence(folder: Path) -> None:
    columns = {"id": ["a"], "image": ["photos/0.png"], "turns": ["[]"], "meta": [b"bytes"]}
    with pytest.raises(
        SailError, match=r"record 0 of .*data.parquet holds a value that JSON cannot hold \(.*bytes.*\); use strings"
    ):
        parquet(folder, columns).length  # noqa: B018


def test_a_folder_in_place_of_a_file_is_one_sentence(folder: Path) -> None:
    with pytest.raises(SailError, match=r"^.*photos is a folder; name a file in it$"):
        JsonlSource(str(folder / "photos")).length  # noqa: B018


def test_a_file_that_is_no_parquet_is_named(folder: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    (folder / "data.parquet").write_text("no")
    with pytest.raises(SailError, match=r"data.parquet is not a readable Parquet file .*; write it again"):
        ParquetSource(str(folder / "data.parquet")).length  # noqa: B018


def test_without_pyarrow_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (folder / "data.parquet").write_text("no")
    with pytest.raises(SailError, match=r"needs pyarrow: pip install 'sail-lightning\[parquet\]'"):
        ParquetSource(str(folder / "data.parquet")).length  # noqa: B018
