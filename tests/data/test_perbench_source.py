"""PerBench: its three tasks, one question per record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import perbench
from dataset_writers.scenes import dump, photo
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data.sources import PerBench
from sail_lightning.data.sources.perbench import named, options
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import EvalRecord, Judge
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import Mask, Sample
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory", num_prompts=15), patch_size=16)


def samples(source: PerBench) -> list[Sample]:
    return [source[index] for index in range(source.length)]


def prompts_of(sample: Sample) -> dict[int | None, np.ndarray]:
    found = {}
    for prompt in sample.prompts:
        assert isinstance(prompt, Mask)
        found[prompt.id] = load_mask(prompt.mask)
    return found


@pytest.mark.parametrize("task", ["caption", "choice", "vres"])
def test_each_task_is_one_question_per_record_that_a_model_can_read(task: Any, data_root: Path) -> None:
    source = PerBench(task)
    assert source.length == len(perbench.NUMBERS) * 3
    read = samples(source)
    assert len({sample.id for sample in read}) == len(read)
    for sample in read:
        assert len(sample.turns) == 1 and str(sample.image).startswith(str(data_root / "perbench/images/sa_76"))
        encoded = ENCODER.encode(sample)
        assert len(encoded.regions) == len(sample.prompts)


def test_a_detailed_caption_is_asked_for_in_the_words_of_the_benchmark(data_root: Path) -> None:
    things = [thing for number in perbench.NUMBERS for thing in photo(number).things]
    for sample, thing in zip(samples(PerBench("caption")), things, strict=True):
        (turn,) = sample.turns
        assert turn.question == (
            "Can you provide me with a detailed description of the region <Prompt0> "
            "Please provide as detailed as possible."
        )
        assert turn.answer == perbench.caption(thing) and turn.task == "describe"
        assert np.array_equal(prompts_of(sample)[0], thing.mask)


def test_a_choice_is_asked_for_in_the_words_of_the_benchmark(data_root: Path) -> None:
    things = [thing for number in perbench.NUMBERS for thing in photo(number).things]
    for sample, thing in zip(samples(PerBench("choice")), things, strict=True):
        (turn,) = sample.turns
        question = perbench.CHOICE.format(thing.colour) + "Select a correct choice."
        assert turn.question == f"Please answer the question according to the <Prompt0>. {question}"
        assert turn.choices == (thing.colour, "purple", "black, or nearly so", "none of these")
        assert turn.task == "choice" and np.array_equal(prompts_of(sample)[0], thing.mask)


def test_other_words_may_be_asked_in(data_root: Path) -> None:
    assert PerBench("caption", words="describe {region}.")[0].turns[0].question == "describe <Prompt0>."
    chosen = PerBench("choice", words="{question}")[0]
    assert chosen.turns[0].question == perbench.CHOICE.format(photo(perbench.NUMBERS[0]).things[0].colour)


def test_the_right_answers_score_full_marks(data_root: Path) -> None:
    metrics = Judge()
    for task in ("choice", "vres"):
        for sample in samples(PerBench(task)):  # type: ignore[arg-type]
            (turn,) = sample.turns
            masks = np.stack([load_mask(sample.masks[place]) for place in turn.targets] or [np.zeros((1, 1), bool)])
            truth: dict[str, Any] = (
                {"choices": turn.choices, "true_answer": turn.answer}
                if task == "choice"
                else {"pred": masks, "target": masks}
            )
            metrics.update(EvalRecord(prediction=turn.answer, extra={"task": turn.task}, **truth))
    figures = metrics.compute()
    assert (figures["mcq_accuracy"], figures["vres_ciou"], figures["vres_giou"]) == (1, 1, 1)


def test_tags_of_the_question_are_prompts_and_those_of_the_answer_targets_in_order(data_root: Path) -> None:
    first, second, third = (samples(PerBench("vres"))[place] for place in range(3))
    one = photo(perbench.NUMBERS[0])
    assert first.turns[0].question == "Which thing is like <Prompt0> but not like <Prompt9>?"
    assert first.turns[0].answer == "It is [SEG], or [SEG]."
    assert set(prompts_of(first)) == {0, 9}
    assert np.array_equal(prompts_of(first)[9], perbench.tagged(one, "obj10").mask)
    for mask, tag in zip(first.masks, ("obj2", "obj10"), strict=True):
        assert np.array_equal(load_mask(mask), perbench.tagged(one, tag).mask)
    assert third.turns[0].question == "Please segment the odd one out." and third.prompts == ()
    assert np.array_equal(load_mask(third.masks[0]), perbench.tagged(one, "obj11").mask)
    assert second.turns[0].targets == (0, 1)


def test_e18_a_tag_in_question_and_answer_is_prompt_and_target(data_root: Path) -> None:
    sample = samples(PerBench("vres"))[1]
    assert sample.turns[0].question == "Please segment <Prompt2> and all that touch it."
    assert sample.turns[0].answer == "[SEG] and [SEG]; <Prompt2> is touched by obj4."
    assert np.array_equal(load_mask(sample.masks[0]), prompts_of(sample)[2])


def test_e18_a_tag_is_a_whole_word() -> None:
    tags = ["obj1", "obj10", "obj", "the man", "the man 2"]
    assert named("obj10 and obj100", tags) == ["obj10"]
    assert named("(obj10), obj1's <obj>.", tags) == ["obj10", "obj1", "obj"]
    assert named("the man 2 and the man", tags) == ["the man 2", "the man"]
    assert named("object myobj1 obj1st", tags) == [] and named("anything", []) == []


@given(st.permutations(range(1, 13)))
def test_e18_targets_are_in_order_of_appearance(order: list[int]) -> None:
    tags = [f"obj{number}" for number in range(1, 13)]
    assert named(" ".join(f"obj{number}" for number in order), tags) == [f"obj{number}" for number in order]


def vres(question: str, answer: str, masks: int, tmp_path: Path, **settings: Any) -> Sample:
    encoded = {f"obj{number}": photo(760).things[0].rle() for number in range(masks)}
    record = {"image_name": "a.jpg", "question": question, "answer": answer, "segmentations": encoded}
    return PerBench("vres", str(dump(tmp_path / "vres.json", [record])), **settings)[0]


def test_e18_an_id_beyond_the_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SailError) as raised:
        vres("What is like obj15?", "obj1", 16, tmp_path)
    assert str(raised.value).endswith(
        "vres.json a.jpg/0: obj15 of the question is mask number 15 of the record, but prompts are numbered 0 to 14; "
        "name fewer masks, or raise num_prompts"
    )
    assert vres("What is like obj14?", "obj15", 16, tmp_path).prompts[0].id == 14  # a target needs no id
    assert vres("What is like obj15?", "obj1", 16, tmp_path, num_prompts=16).prompts[0].id == 15


def test_an_answer_that_names_no_mask_is_told(tmp_path: Path) -> None:
    with pytest.raises(SailError, match="vres.json a.jpg/0: the answer names none of the masks obj0, obj1, so"):
        vres("What is like obj0?", "nothing", 2, tmp_path)


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("caption", {"image_name": "a.jpg"}, "a.jpg/1.0: the key 'segmentation' is missing; fix the record"),
        ("caption", None, "record/1.0: the key 'segmentation' is missing"),
        (
            "choice",
            {"image_name": "a.jpg", "mcqs": [{"object": 3, "question": "", "answer": ""}]},
            "a.jpg/1.0: a mask must",
        ),
        ("vres", {"image_name": "a.jpg", "question": "?"}, "a.jpg/1: the key 'segmentations' is missing"),
    ],
)
def test_a_broken_record_is_told_by_name_and_the_others_are_read(
    task: Any, record: Any, message: str, tmp_path: Path
) -> None:
    rle = photo(760).things[0].rle()
    good = {
        "image_name": "good.jpg",
        "object_annotations": [{"segmentation": rle, "caption": "c"}],
        "mcqs": [{"object": rle, "question": "?", "answer": "A"}],
        "question": "?",
        "answer": "obj",
        "segmentations": {"obj": rle},
    }
    source = PerBench(task, str(dump(tmp_path / "bench.json", [good, record, good])))
    with pytest.raises(SailError, match=f"bench.json {message}"):
        source[1]
    assert str(source[2].image).endswith("good.jpg")


def test_a_model_without_prompts_cannot_be_asked() -> None:
    with pytest.raises(SailUsageError, match="PerBench: num_prompts must be 1 or more, not 0"):
        PerBench(num_prompts=0)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What? A. red B. a blue one C. none", ("red", "a blue one", "none")),
        ("What?\n(A) red\n(B) blue", ("red", "blue")),
        ("What? A: red, B: blue;", ("red", "blue")),
        ("What? A) 1.5 m B) 2 m", ("1.5 m", "2 m")),
        ("What is it? A red car.", ()),
        ("Is plan B. better?", ()),
        ("What? A. red", ()),
    ],
)
def test_options_are_read_from_the_question(question: str, expected: tuple[str, ...]) -> None:
    assert options(question) == expected
