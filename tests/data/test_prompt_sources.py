"""COCO, Pix2Cap, Osprey, SAM and region captions as visual prompts: what becomes of their records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import osprey, panoptic, pix2cap, referring, region_captions, sam_prompts
from dataset_writers.scenes import dump, photo
from PIL import Image

from sail_lightning.data.prompting import NEGATIVE, SimulatedPrompt
from sail_lightning.data.sources import (
    CocoPrompts,
    IndexedSource,
    Osprey,
    Pix2CapPrompts,
    RegionCaptionBenchmark,
    RegionCaptions,
    SamPrompts,
    layout,
)
from sail_lightning.encoding import prompt_templates
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import EvalRecord, MultipleChoiceAccuracy
from sail_lightning.image.preprocessing import load_mask, region_mask
from sail_lightning.image.segmentations import PanopticSegments, Segmentation
from sail_lightning.sample import Mask, Sample
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory", num_prompts=15), patch_size=16)
KINDS = ("conversation", "part_level", "positive_negative", "short_form", "detail_description")
ALIKE: list[tuple[type[IndexedSource], dict[str, Any]]] = [
    (CocoPrompts, {}),
    (Pix2CapPrompts, {}),
    *((Osprey, {"kind": kind}) for kind in KINDS),
    (SamPrompts, {}),
    (RegionCaptions, {}),
]
"""The sources of visual prompts, which take the same arguments."""
each_source = pytest.mark.parametrize(("kind", "arguments"), ALIKE, ids=lambda value: getattr(value, "__name__", None))


def samples(source: IndexedSource) -> list[Sample]:
    return [source[index] for index in range(source.length)]


def mask_of(prompt: Any) -> np.ndarray:
    assert isinstance(prompt, Mask)
    return load_mask(prompt.mask)


def by_name(sample: Sample) -> dict[str, np.ndarray]:
    return {f"<Prompt{prompt.id}>": mask_of(prompt) for prompt in sample.prompts}


def described(sample: Sample) -> Iterator[tuple[str, str]]:
    """Names and texts of the answers `<PromptK>: text`."""
    for turn in sample.turns:
        name, text = re.fullmatch(r"(<Prompt\d+>): (.*)", turn.answer, re.DOTALL).groups()  # type: ignore[union-attr]
        assert name in turn.question
        yield name, text


# -- what all have in common ------------------------------------------------------------------------------------------


@each_source
def test_each_source_makes_samples_that_a_model_can_read(
    kind: type[IndexedSource], arguments: dict[str, Any], data_root: Path
) -> None:
    source = kind(absent=0.0, shapes={"mask": 1, "box": 1, "point": 1, "scribble": 1}, **arguments)
    assert source.length > 0
    for index in range(source.length):
        encoded = ENCODER.encode(source[index])
        assert encoded.masks == () and len(encoded.regions) == len(source[index].prompts)
        assert all(len(region.patch_rows) for region in encoded.regions)


@each_source
def test_each_source_reads_alike_by_number_and_anew_by_chance(
    kind: type[IndexedSource], arguments: dict[str, Any], data_root: Path
) -> None:
    source = kind(**arguments)
    assert source[0] == source[0]
    read = [source.sample_record(0, np.random.default_rng(seed)) for seed in range(20)]
    assert len({tuple(prompt.id for prompt in sample.prompts) for sample in read}) > 10


@each_source
def test_each_source_takes_the_same_settings(
    kind: type[IndexedSource], arguments: dict[str, Any], data_root: Path
) -> None:
    source = kind(objects=2, num_prompts=15, shapes={"box": 1.0}, absent=1.0, **arguments)
    sample = source[0]
    assert all(isinstance(prompt, Mask) and isinstance(prompt.mask, SimulatedPrompt) for prompt in sample.prompts)
    (absent,) = sample.meta[NEGATIVE]
    denied = [turn for turn in sample.turns if turn.answer == f"<Prompt{absent}> is not in the image."]
    assert len(denied) == 1 and f"<Prompt{absent}>" in denied[0].question
    with pytest.raises(SailUsageError, match="objects must be at most num_prompts"):
        kind(objects=20, **arguments)


@each_source
def test_e37_e48_a_record_is_read_without_decoding_and_leaves_the_index_as_it_was(
    kind: type[IndexedSource], arguments: dict[str, Any], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kind(**arguments)
    before = json.dumps(source.index[0])
    for decoder in (Segmentation, PanopticSegments):
        monkeypatch.setattr(decoder, "__call__", lambda self: pytest.fail("decoded too early"))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded too early"))
    source[0]
    assert json.dumps(source.index[0]) == before
    assert not any(isinstance(value, np.ndarray) for value in vars(source).values())


def test_e35_a_corrupt_image_is_one_sentence_that_names_the_record(data_root: Path, tmp_path: Path) -> None:
    name = osprey.file_name(720)
    (tmp_path / name).write_bytes(b"no jpeg")
    source = Osprey(images=[str(tmp_path)])
    with pytest.raises(SailError, match=rf"osprey_conversation.json 0*720/0: .*{name} is not a readable image"):
        ENCODER.encode(source[0])


# -- COCO: which class? -----------------------------------------------------------------------------------------------


def test_coco_asks_for_the_class_among_candidates(data_root: Path) -> None:
    source = CocoPrompts(absent=0.0)
    assert source.length == len(panoptic.NUMBERS)
    names = {1: "person", 18: "dog", 149: "road", 155: "sea", 187: "sky", 193: "grass"}
    accuracy = MultipleChoiceAccuracy()
    for sample in samples(source):
        truth = {s.mask.tobytes(): names[s.category_id] for s in panoptic.segments(panoptic.scene(int(sample.id)))}
        prompts = by_name(sample)
        assert len(sample.turns) == len(prompts) == 5
        for turn, (name, answer) in zip(sample.turns, described(sample), strict=True):
            listed = turn.question.split(" The candidate categories: ")[1].removesuffix(".").split(", ")
            assert turn.question.startswith(tuple(start.format(name) for start in prompt_templates.CLASSIFY))
            assert turn.task == "choice" and tuple(listed) == turn.choices and answer in listed
            assert listed[-1] == "others" and len(set(listed)) == len(listed)
            right = truth[prompts[name].tobytes()]
            assert answer == (right if right in listed else "others")
            assert len(listed) in ((11, 12) if right in listed else (10, 11))
            accuracy.update(EvalRecord(prediction=turn.answer, true_answer=turn.answer, choices=turn.choices))
    assert accuracy.compute()["mcq_accuracy"] == 1


def test_coco_leaves_crowds_out(data_root: Path) -> None:
    source = CocoPrompts()
    for index in range(source.length):
        sample = source.full_record(index)
        found = panoptic.segments(panoptic.scene(int(sample.id)))
        expected = {segment.mask.tobytes() for segment in found if not segment.crowd}
        assert {mask_of(prompt).tobytes() for prompt in sample.prompts} == expected


def test_coco_removes_the_right_class_one_time_in_twenty(data_root: Path) -> None:
    source = CocoPrompts(absent=0.0)
    answers = [
        text for seed in range(200) for _, text in described(source.sample_record(0, np.random.default_rng(seed)))
    ]
    assert 0.03 < answers.count("others") / len(answers) < 0.075


# -- Pix2Cap ----------------------------------------------------------------------------------------------------------


def test_pix2cap_asks_for_the_description_of_its_described_segments(data_root: Path) -> None:
    source = Pix2CapPrompts(absent=0.0)
    assert source.length == len(panoptic.NUMBERS) - 1
    for index in range(source.length):
        sample = source.full_record(index)
        found = panoptic.segments(panoptic.scene(int(sample.id)))
        truth = {s.mask.tobytes(): " ".join(pix2cap.described(s.colour).split()) for s in found if s.colour}
        prompts = by_name(sample)
        assert {prompts[name].tobytes(): text for name, text in described(sample)} == truth
        assert all(re.sub(r"<Prompt\d+>", "{}", turn.question) in prompt_templates.DESCRIBE for turn in sample.turns)
    assert {len(source.sample_record(0, np.random.default_rng(seed)).turns) for seed in range(60)} >= {1, 2, 3}


# -- Osprey -----------------------------------------------------------------------------------------------------------


def test_osprey_conversations_name_their_regions_by_prompt(data_root: Path) -> None:
    sample = Osprey(absent=0.0)[0]
    things = photo(720).things
    prompts = by_name(sample)
    assert len(prompts) == 3 and len(sample.turns) == 2
    names = re.findall(r"<Prompt\d+>", sample.turns[0].question)
    assert sample.turns[0].question == f"There are {names[0]}, {names[1]} and {names[2]}. What are they?"
    assert sample.turns[0].answer == f"{names[0]} is {things[0].colour}."
    assert sample.turns[1].question == f"And {names[1]} and {names[2]}?"
    assert sample.turns[1].answer == f"{names[1]} is {things[1].colour} and {names[2]} is {things[2].colour}."
    for name, thing in zip(names, things, strict=True):  # E41: one polygon, one RLE, one of counts
        assert np.array_equal(prompts[name], thing.mask)


def test_e15_osprey_with_more_than_nine_regions(data_root: Path) -> None:
    sample = Osprey(absent=0.0)[1]
    names = [f"<Prompt{prompt.id}>" for prompt in sample.prompts]
    assert len(names) == osprey.MANY
    assert sample.turns[0].question == f"Is {names[0]} in {names[11]} or {names[9]}?"
    assert sample.turns[0].answer == f"In {names[10]}, not {names[0]}."


def test_e41_osprey_without_regions_is_a_conversation(data_root: Path) -> None:
    sample = Osprey(absent=1.0)[2]
    assert sample.prompts == () and NEGATIVE not in sample.meta
    assert sample.turns[0].answer == "Things on a grey ground, naïvely drawn."


def test_a_photo_of_osprey_that_moved_is_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAIL_DATA", str(tmp_path))
    osprey.write(tmp_path)
    source, name = Osprey(), osprey.file_name(720)
    old, new = (tmp_path / folder / name for folder in (layout.COCO_TRAIN2014, layout.COCO_TRAIN2017))
    assert source[0].image == str(old)
    old.rename(new)
    assert source[0].image == Osprey()[0].image == str(new)
    new.unlink()
    assert source[0].image == str(old)  # gone: told as a missing image, by its path


def test_osprey_conversations_with_more_regions_than_prompts_are_left_out(data_root: Path) -> None:
    assert Osprey(num_prompts=15).length == 3
    assert Osprey(num_prompts=16).length == 4
    assert Osprey(num_prompts=11).length == 2


def test_osprey_short_answers_are_asked_for(data_root: Path) -> None:
    for sample in samples(Osprey("short_form", absent=0.0)):
        for turn in sample.turns:
            assert turn.question.endswith("? Answer the question using a single word or phrase.")
    for kind in ("conversation", "part_level", "positive_negative"):
        for sample in samples(Osprey(kind)):  # type: ignore[arg-type]
            assert not any("single word" in turn.question for turn in sample.turns)


def test_osprey_descriptions_lose_the_parts_that_name_regions(data_root: Path) -> None:
    source = Osprey("detail_description", absent=0.0)
    truth = {osprey.told(photo(720), place): photo(720).things[place].mask for place in range(3)}
    sample = source.full_record(0)
    prompts = by_name(sample)
    found = {text: prompts[name] for name, text in described(sample)}
    assert list(found) == list(truth)
    assert all(np.array_equal(found[text], mask) for text, mask in truth.items())
    assert [text for _, text in described(source.full_record(1))] == [
        osprey.told(photo(721), 0)
    ]  # nothing is left of the other


def test_osprey_descriptions_are_of_one_region_or_more_up_to_the_limit(data_root: Path) -> None:
    source = Osprey("detail_description", objects=4, absent=0.0)
    counts = {len(source.sample_record(2, np.random.default_rng(seed)).turns) for seed in range(60)}
    assert counts == {1, 2, 3, 4}


def test_e34_osprey_finds_each_photo_in_whichever_of_cocos_folders_it_lies(data_root: Path) -> None:
    found = {sample.image for kind in KINDS for sample in samples(Osprey(kind))}  # type: ignore[arg-type]
    assert found == {str(data_root / folder / osprey.file_name(number)) for number, folder in osprey.PHOTOS.items()}


def test_e34_a_photo_that_is_missing_is_told_and_found_once_it_is_there(data_root: Path, tmp_path: Path) -> None:
    source = Osprey(images=[str(tmp_path / "a"), str(tmp_path / "b")])
    assert source.length == 3
    with pytest.raises(SailError, match=r"0*720/0: no image 0*720.jpg in .*/a, .*/b; copy it there, or set images"):
        source[0]
    photo(720).save(tmp_path / "b" / osprey.file_name(720))
    assert source[0].image == str(tmp_path / "b" / osprey.file_name(720))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conversations": osprey.talk("What is <region3>?", "A thing.")},
            "names <region3>, but the record has 2 regions",
        ),
        ({"conversations": [{"from": "gpt", "value": "Hello."}]}, "no question with an answer"),
        ({"conversations": [{"from": "system", "value": "?"}]}, "message 1 is from 'system'; write human or gpt"),
        ({"annotation": [{"bbox": [0, 0, 1, 1]}]}, "the key 'segmentation' is missing; fix the record"),
        ({"height": None}, None),
    ],
)
def test_osprey_tells_a_broken_record_by_name_and_reads_the_others(
    change: dict[str, Any], message: str | None, data_root: Path, tmp_path: Path
) -> None:
    good = osprey.record(photo(720), 2, conversations=osprey.talk("What is <region1>?", "A thing."))
    dump(tmp_path / "osprey_conversation.json", [good | change, None, good])
    source = Osprey(annotations=str(tmp_path), absent=0.0)
    with pytest.raises(SailError, match=message and rf"osprey_conversation.json 0*720/0: .*{re.escape(message)}"):
        ENCODER.encode(source[0])
    with pytest.raises(SailError, match=r"osprey_conversation.json record/1: the key 'file_name' is missing"):
        source[1]
    assert len(ENCODER.encode(source[2]).regions) == 2


def test_osprey_descriptions_and_regions_must_be_as_many(data_root: Path, tmp_path: Path) -> None:
    dump(tmp_path / "osprey_detail_description.json", [osprey.record(photo(720), 2, description=["one"])])
    with pytest.raises(SailError, match="1 descriptions of 2 regions; give one for each"):
        Osprey("detail_description", str(tmp_path))[0]


# -- SAM --------------------------------------------------------------------------------------------------------------


def test_sam_objects_are_asked_about_once_each_in_parts_of_an_image(data_root: Path) -> None:
    source = SamPrompts(absent=0.0)
    for number, count in sam_prompts.OBJECTS.items():
        parts = [n for n in range(source.length) if source.index[n]["id"].startswith(sam_prompts.image_name(number))]
        assert len(parts) == -(-count // 5)  # none for an image without objects
        said = {}
        for sample in map(source.__getitem__, parts):
            prompts = by_name(sample)
            assert len(prompts) <= 5 and sample.image == str(data_root / "sam/images" / sam_prompts.image_name(number))
            said |= {text: prompts[name] for name, text in described(sample)}
        one = photo(number)
        assert set(said) == {f"The thing is {sam_prompts.thing(one, n).colour}, piece № {n}." for n in range(count)}
        for n in range(count):
            colour = sam_prompts.thing(one, n).colour
            assert np.array_equal(said[f"The thing is {colour}, piece № {n}."], sam_prompts.thing(one, n).mask)


def test_sam_questions_ask_for_as_much_detail_as_possible(data_root: Path) -> None:
    for turn in SamPrompts(absent=0.0)[0].turns:
        assert turn.question.endswith(" Please provide as detailed as possible.")
        assert (
            re.sub(r"<Prompt\d+>", "{}", turn.question).removesuffix(prompt_templates.DESCRIBE_IN_FULL)
            in prompt_templates.DESCRIBE
        )


@pytest.mark.parametrize("broken", [{"segmentation": [[1, 2, 3]]}, {"segmentation": {"counts": "x"}}])
def test_a_sam_mask_without_a_size_is_told(broken: dict[str, Any], tmp_path: Path) -> None:
    objects = [{"caption": "a thing", **broken}]
    dump(tmp_path / "sam.json", [{"image_name": "a.jpg", "object_annotations": objects}, {"image_name": "b.jpg"}])
    source = SamPrompts(str(tmp_path / "sam.json"))
    with pytest.raises(SailError, match=r"sam.json a.jpg/0.0: a mask must be an RLE with its size"):
        source[0]
    with pytest.raises(SailError, match=r"sam.json b.jpg/1: the key 'object_annotations' is missing"):
        source[1]


# -- region captions --------------------------------------------------------------------------------------------------


def test_region_captions_are_the_phrases_of_refcocog(data_root: Path) -> None:
    source = RegionCaptions(absent=0.0)
    assert source.length == referring.PHOTOS
    for sample in samples(source):
        things = {thing.colour: thing.mask for thing in photo(int(sample.id)).things}
        prompts = by_name(sample)
        for turn, (name, phrase) in zip(sample.turns, described(sample), strict=True):
            assert turn.question == f"Can you provide me with a short description of {name}?"
            assert phrase == phrase.lower() and not phrase.endswith(".")
            (colour,) = [colour for colour in things if colour in phrase]
            assert np.array_equal(prompts[name], things[colour])
    assert {len(source.sample_record(0, np.random.default_rng(seed)).turns) for seed in range(40)} == {1, 2}


def test_the_region_caption_benchmark_asks_one_question_of_each_image(data_root: Path) -> None:
    source = RegionCaptionBenchmark()
    assert source.length == len(region_captions.NUMBERS)
    for sample, number in zip(samples(source), region_captions.NUMBERS, strict=True):
        (turn,) = sample.turns
        assert turn.question == "Can you provide me with a detailed description of the region <Prompt0>"
        assert turn.answer == region_captions.caption(number) and turn.task == "describe"
        assert [prompt.id for prompt in sample.prompts] == [0]
        assert np.array_equal(region_mask(sample.prompts[0], photo(number).size), photo(number).things[0].mask)
        assert ENCODER.encode(sample, answers=False).regions


def test_a_benchmark_image_without_a_region_is_told(data_root: Path, tmp_path: Path) -> None:
    pictures = [{"id": n, "file_name": "a.jpg", "height": 4, "width": 4, "caption": "a thing"} for n in (5, 6)]
    del pictures[1]["caption"]
    regions = [{"id": 1, "image_id": 6, "segmentation": [[0, 0, 4, 0, 4, 4]]}]
    path = dump(tmp_path / "region.json", {"images": pictures, "annotations": regions})
    source = RegionCaptionBenchmark(str(path))
    with pytest.raises(SailError, match=r"region.json 5: no mask; give the image's annotation one"):
        source[0]
    with pytest.raises(SailError, match=r"region.json 6: no caption"):
        source[1]
