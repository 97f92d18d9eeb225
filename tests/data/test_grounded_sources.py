"""GLaMM's grounded captions: which phrases are marked, and which masks they get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import glamm
from dataset_writers.scenes import Photo, Thing, dump, photo
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data.sources import FlickrGCG, GranDf, GranDfBenchmark, OpenPsgGCG, RefCOCOgGCG
from sail_lightning.data.sources.spans import Grounding, found, grounded, occurrences
from sail_lightning.encoding import prompt_templates
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import Sample
from sail_lightning.sequence.chat_template import phrases_of
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory"), patch_size=8, max_side=64)
ALL = [GranDf, OpenPsgGCG, RefCOCOgGCG, FlickrGCG, GranDfBenchmark]
ONE = photo(900)
A, B, C = ONE.things


def masks_are(sample: Sample, *things: Thing) -> bool:
    masks = [load_mask(mask) for mask in sample.masks]
    return all(np.array_equal(mask, thing.mask) for mask, thing in zip(masks, things, strict=True))


def bare(answer: str) -> str:
    """An answer without its marks: the caption."""
    return answer.replace("<p> ", "").replace(" </p> [SEG]", "")


# -- the published forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_record_is_one_question_with_a_phrase_and_a_mask_for_each_seg(kind: Any, data_root: Path) -> None:
    source = kind()
    assert source.length == 2 + (kind is GranDf)
    for index in range(source.length):
        sample = source[index]
        (turn,) = sample.turns
        assert turn.task == "caption" and turn.question in prompt_templates.GROUNDED
        assert turn.answer.count("[SEG]") == len(sample.masks) == len(turn.targets)
        assert all(phrases_of(turn.answer)) and len(phrases_of(turn.answer)) == len(sample.masks)
        assert source.faults(index) == []
        assert len(ENCODER.encode(sample).masks) == len(sample.masks)


@pytest.mark.parametrize("kind", [GranDf, OpenPsgGCG, RefCOCOgGCG, FlickrGCG])
def test_the_question_is_drawn_and_the_answer_is_not(kind: Any, data_root: Path) -> None:
    read = [kind().sample_record(0, np.random.default_rng(seed)).turns[0] for seed in range(60)]
    assert {turn.question for turn in read} == set(prompt_templates.GROUNDED)
    assert len({turn.answer for turn in read}) == 1


@pytest.mark.parametrize("kind", [GranDf, OpenPsgGCG])
def test_phrases_are_marked_in_the_order_of_the_caption_and_null_groundings_are_not(kind: Any, data_root: Path) -> None:
    sample = kind()[0]
    one = photo(glamm.GRANDF[0] if kind is GranDf else glamm.OPENPSG[0])
    a, b, c = (thing.colour for thing in one.things)
    expected = f"<p> A {a} shape </p> [SEG] (très joli) beside <p> the {b} shape </p> [SEG], and a {c} shape."
    assert sample.turns[0].answer == expected
    assert masks_are(sample, *one.things[:2])  # E3: the second consists of two masks that overlap


def test_a_caption_without_groundings_is_plain_text(data_root: Path) -> None:
    sample = GranDf()[2]
    assert (sample.turns[0].answer, sample.masks) == (glamm.caption(photo(glamm.GRANDF[2])), ())


def test_openpsg_photos_are_looked_up_by_folder_and_name(data_root: Path) -> None:
    images = [str(OpenPsgGCG()[index].image) for index in range(2)]
    assert images == [
        str(data_root / "coco/train2017/000000000910.jpg"),
        str(data_root / "coco/val2017/000000000911.jpg"),
    ]


def test_refcocog_masks_are_as_large_as_the_photo_which_the_file_does_not_say(data_root: Path) -> None:
    sample = RefCOCOgGCG()[0]
    one = photo(glamm.REFCOCOG[0])
    assert sample.turns[0].answer.count("<p>") == 3 and bare(sample.turns[0].answer) == glamm.caption(one).lower()
    assert masks_are(sample, *one.things)


def test_flickr_leaves_out_short_captions_and_annotations_that_cover_nothing(data_root: Path) -> None:
    source = FlickrGCG()
    assert [source[index].id for index in range(source.length)] == ["930", "931"]
    for index, number in enumerate(glamm.FLICKR[:2]):
        assert masks_are(source[index], *photo(number).things)
        assert phrases_of(source[index].turns[0].answer) == tuple(f"{one.colour} shape" for one in photo(number).things)


@pytest.mark.parametrize(("caption", "side", "kept"), [("a b", 64, 0), ("a b c", 31, 0), ("a b c", 32, 1), ("", 64, 0)])
def test_flickr_wants_three_words_and_32_pixels(caption: str, side: int, kept: int, tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.jpg", "height": 99, "width": side, "caption": caption}
    file = dump(tmp_path / "flickr.json", {"images": [image], "annotations": []})
    assert FlickrGCG(str(file)).length == kept


# -- the benchmark -----------------------------------------------------------------------------------------------------


def test_the_benchmark_drops_no_phrase_and_keeps_the_bare_caption(data_root: Path) -> None:
    source = GranDfBenchmark("test")
    assert source.length == 2
    for index, number in enumerate(glamm.BENCHMARK["test"]):
        sample, one = source[index], photo(number)
        caption = glamm.caption(one)
        assert sample.meta == {"caption": caption}
        assert bare(sample.turns[0].answer) == f"{caption} the other one"
        assert phrases_of(sample.turns[0].answer) == (*(f"{t.colour} shape" for t in one.things[:2]), "the other one")
        assert masks_are(sample, *one.things)


def test_e20_the_benchmark_asks_in_the_words_of_training_always_the_same(data_root: Path) -> None:
    asked = {GranDfBenchmark().sample_record(0, np.random.default_rng(seed)).turns[0].question for seed in range(9)}
    assert asked == {prompt_templates.GROUNDED[0]} and "  " not in prompt_templates.GROUNDED[0]


def test_phrases_and_masks_of_the_benchmark_must_be_as_many(data_root: Path, tmp_path: Path) -> None:
    for file in GranDfBenchmark().files:
        content = json.loads(file.read_text())
        if "mask" in file.name:
            del content["annotations"][-1]
        dump(tmp_path / file.name, content)
    source = GranDfBenchmark(annotations=str(tmp_path))
    assert source[0].turns
    with pytest.raises(SailError, match="sa_941: 3 phrases in the caption file but 2 masks in the mask file"):
        source[1]


# -- spans -------------------------------------------------------------------------------------------------------------


def grandf(folder: Path, caption: str, *spans: tuple[str, int, int, Thing], one: Photo = ONE) -> GranDf:
    """A set of one record."""
    groundings = {
        phrase: {"token_positives": [first, last], "rle_masks": [thing.rle()]} for phrase, first, last, thing in spans
    }
    height, width = one.size
    entry = {"file_name": "a.jpg", "height": height, "width": width, "caption": caption, "groundings": groundings}
    return GranDf(str(dump(folder / "grandf.json", [entry])), str(folder))


def test_e11_of_nested_spans_the_outer_one_is_kept_and_the_other_goes_with_its_mask(tmp_path: Path) -> None:
    caption = "a dog with a red ball here"
    source = grandf(tmp_path, caption, ("a red ball", 11, 21, B), ("a dog with a red ball", 0, 21, A))
    assert source[0].turns[0].answer == "<p> a dog with a red ball </p> [SEG] here"
    assert masks_are(source[0], A)
    (fault,) = source.faults(0)
    assert fault.startswith("phrase 'a red ball' overlaps 'a dog with a red ball'")


def test_e11_spans_that_begin_alike_keep_the_longer_one(tmp_path: Path) -> None:
    source = grandf(tmp_path, "a red ball here", ("a red", 0, 5, B), ("a red ball", 0, 10, A))
    assert source[0].turns[0].answer == "<p> a red ball </p> [SEG] here" and masks_are(source[0], A)
    assert [fault.split(",")[0] for fault in source.faults(0)] == ["phrase 'a red' overlaps 'a red ball'"]


def test_e11_of_two_phrases_with_one_span_the_first_is_kept(tmp_path: Path) -> None:
    source = grandf(tmp_path, "a ball here", ("a ball", 0, 6, A), ("the ball", 0, 6, B))
    assert source[0].turns[0].answer == "<p> a ball </p> [SEG] here" and masks_are(source[0], A)
    assert [fault.split(",")[0] for fault in source.faults(0)] == ["phrase 'the ball' overlaps 'a ball'"]


def test_spans_that_overlap_in_part_keep_the_first(tmp_path: Path) -> None:
    source = grandf(tmp_path, "a red ball here", ("ball here", 6, 15, B), ("a red ball", 0, 10, A))
    assert source[0].turns[0].answer == "<p> a red ball </p> [SEG] here" and masks_are(source[0], A)


@pytest.mark.parametrize(("first", "last"), [(-1, 4), (3, 12), (5, 5), (6, 2), (40, 50)])
def test_a_span_outside_the_caption_goes_with_its_mask(first: int, last: int, tmp_path: Path) -> None:
    source = grandf(tmp_path, "a red ball.", ("out", first, last, B), ("red", 2, 5, A))
    assert source[0].turns[0].answer == "a <p> red </p> [SEG] ball." and masks_are(source[0], A)
    assert source.faults(0)[0].startswith(f"span [{first}, {last}) lies outside the caption")


def test_space_at_the_ends_of_a_span_stays_outside_its_marks(tmp_path: Path) -> None:
    source = grandf(tmp_path, "a red ball.", ("red", 1, 6, A))
    assert source[0].turns[0].answer == "a <p> red </p> [SEG] ball."


def test_spans_count_characters_of_any_script(tmp_path: Path) -> None:
    source = grandf(tmp_path, "Ein süßes 🐕 да", ("🐕", 10, 11, A), ("да", 12, 14, B))
    assert source[0].turns[0].answer == "Ein süßes <p> 🐕 </p> [SEG] <p> да </p> [SEG]"


def test_a_record_that_cannot_be_read_is_named_by_its_sample_and_not_by_faults(tmp_path: Path) -> None:
    content = [{"file_name": "a.jpg", "caption": "x", "groundings": {"x": {"token_positives": None}}}, {"caption": "y"}]
    source = GranDf(str(dump(tmp_path / "grandf.json", content)))
    for index, message in enumerate(("grandf.json a.jpg: .*fix the record", "'groundings' is missing")):
        assert source.faults(index) == []
        with pytest.raises(SailError, match=message):
            source[index]


def test_a_record_without_a_photo_is_named(tmp_path: Path) -> None:
    content = [{"image_id": "b", "caption": "y", "groundings": {}}]
    with pytest.raises(SailError, match="grandf.json b: it names no image; give it `file_name`"):
        GranDf(str(dump(tmp_path / "grandf.json", content)))[0]


# -- phrases that are looked up ----------------------------------------------------------------------------------------


def refcocog(folder: Path, caption: str, *sentences: str) -> RefCOCOgGCG:
    ONE.save(folder / "a.jpg")
    refs = [
        {"sentence": text, "segmentation": thing.polygons} for text, thing in zip(sentences, ONE.things, strict=False)
    ]
    entry = {"7": {"img_file_name": "a.jpg", "caption": caption, "refs": refs}}
    return RefCOCOgGCG(str(dump(folder / "refcocog.json", [entry])), str(folder))


def test_e10_phrases_are_found_whatever_their_case(tmp_path: Path) -> None:
    source = refcocog(tmp_path, "On the left A Man in red", "a man IN red.")
    assert source[0].turns[0].answer == "on the left <p> a man in red </p> [SEG]" and masks_are(source[0], A)


def test_e10_a_phrase_that_is_not_in_the_caption_goes_with_its_mask(tmp_path: Path) -> None:
    source = refcocog(tmp_path, "a man and a dog", "a woman", "a dog")
    assert source[0].turns[0].answer == "a man and <p> a dog </p> [SEG]" and masks_are(source[0], B)
    assert [fault.split(",")[0] for fault in source.faults(0)] == ["phrase 'a woman' is not in the caption"]


def test_e10_a_phrase_is_no_part_of_a_word(tmp_path: Path) -> None:
    source = refcocog(tmp_path, "a mango beside a man", "a man", "mang")
    assert source[0].turns[0].answer == "a mango beside <p> a man </p> [SEG]"
    assert len(source.faults(0)) == 1


def test_e10_unsorted_and_adjacent_phrases_lose_no_letter(tmp_path: Path) -> None:
    source = refcocog(tmp_path, "a dog a cat and a man", "a man", "a dog", "a cat")
    assert source[0].turns[0].answer == ("<p> a dog </p> [SEG] <p> a cat </p> [SEG] and <p> a man </p> [SEG]")
    assert masks_are(source[0], B, C, A) and source.faults(0) == []


def test_e10_a_phrase_takes_its_next_place_where_the_first_is_taken(tmp_path: Path) -> None:
    source = refcocog(tmp_path, "a man in red and a man", "a man", "a man in red")
    assert source[0].turns[0].answer == "<p> a man in red </p> [SEG] and <p> a man </p> [SEG]"
    assert masks_are(source[0], B, A)
    (tmp_path / "twice").mkdir()
    twice = refcocog(tmp_path / "twice", "a man, a man", "a man", "a man", "A man")
    assert twice[0].turns[0].answer == "<p> a man </p> [SEG], <p> a man </p> [SEG]" and masks_are(twice[0], A, B)
    assert [fault.split(",")[0] for fault in twice.faults(0)] == ["phrase 'a man' overlaps 'a man'"]


def test_places_are_found_in_captions_of_any_case_across_any_space() -> None:
    assert occurrences("A Red  Ball, a red\nball, a redball", "red ball") == [(2, 11), (15, 23)]
    assert found("Red ball", ["red BALL", " "]) == [(0, 8), None]


words = st.text("ab ", max_size=12)


@given(words, st.lists(st.tuples(st.integers(-2, 14), st.integers(-2, 14)), max_size=6))
def test_marks_never_change_the_caption_and_every_span_is_kept_or_told(
    caption: str, spans: list[tuple[int, int]]
) -> None:
    result = grounded(caption, [Grounding(str(place), span, ()) for place, span in enumerate(spans)])
    assert bare(result.answer) == caption
    assert len(result.groundings) == result.answer.count("[SEG]") == len(spans) - len(result.faults)
    assert phrases_of(result.answer) == tuple(" ".join(caption[first:last].split()) for first, last in result.spans)
    assert all(a[1] <= b[0] for a, b in zip(result.spans, result.spans[1:], strict=False))


@given(words, st.lists(words, max_size=5))
def test_found_places_are_of_the_phrase_and_an_unfound_one_is_nowhere(caption: str, phrases: list[str]) -> None:
    for phrase, span in zip(phrases, found(caption, phrases), strict=True):
        if span is None:
            assert f" {' '.join(phrase.split())} " not in f" {' '.join(caption.split())} " or not phrase.strip()
        else:
            assert caption[slice(*span)].split() == phrase.split() and span in occurrences(caption, phrase)
