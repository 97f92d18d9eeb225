"""The synthetic laboratory: what it draws, asks and answers; its tokenizer; its contact sheet."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, islice, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from tokenizers import Tokenizer

from sail_lightning.data.contact_sheet import contact_sheet
from sail_lightning.data.synthetic import Laboratory, LaboratorySlice, scenes
from sail_lightning.data.synthetic.grammar import TASK_OF, Interviewer
from sail_lightning.data.synthetic.scenes import HELD_OUT, SEEN_PAIRS, Scene, SceneObject, draw_scene
from sail_lightning.data.synthetic.words import TOKENIZER_FILE, UNKNOWN, build_tokenizer
from sail_lightning.sample import Box, Mask, Point, Sample, Scribble, Turn

SPLITS = ("train", "val", "test", "compositional")
SAMPLES = 500
"""Of each split, in the tests below."""


def _scene(seed: int, **settings: Any) -> Scene:
    return draw_scene(np.random.default_rng(seed), **settings)


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    return {split: list(Laboratory(seed=3, split=split).take(SAMPLES)) for split in SPLITS}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER_FILE))


def _same(one: Sample, other: Sample) -> bool:
    arrays = zip([one.image, *one.masks], [other.image, *other.masks], strict=True)
    return (
        one.turns == other.turns
        and all(np.array_equal(a, b) for a, b in arrays)
        and repr(one.prompts) == repr(other.prompts)
        and (one.source, one.id, one.meta) == (other.source, other.id, other.meta)
    )


# ---------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize(("size", "low", "high"), [(32, 2, 5), (64, 2, 5), (128, 2, 5), (96, 8, 10)])
def test_any_resolution_and_count_gives_objects_within_the_frame(size: int, low: int, high: int) -> None:
    for seed in range(20):
        scene = _scene(seed, size=size, min_objects=low, max_objects=high)
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        assert low <= len(scene.objects) <= high
        for thing in scene.objects:
            assert thing.mask.shape == (size, size) and thing.mask.dtype == np.bool_
            assert 0.004 * size**2 < thing.mask.sum() < 0.2 * size**2


def test_masks_are_disjoint() -> None:
    for seed in range(100):
        assert np.sum([thing.mask for thing in _scene(seed).objects], axis=0).max() == 1


def test_masks_are_the_pixels_that_have_the_objects_colour() -> None:
    """Ground is dark everywhere; an object's brightest channel is above any ground's."""
    for seed in range(100):
        scene = _scene(seed)
        everything = np.logical_or.reduce([thing.mask for thing in scene.objects])
        assert scene.image[~everything].max() <= 96
        for thing in scene.objects:
            base = np.array(scenes.COLOURS[thing.colour])
            near = np.abs(scene.image[thing.mask] - base).max(1) <= scenes.COLOUR_JITTER
            dark = np.abs(scene.image[thing.mask] - base * scenes.TEXTURE_SHADE).max(1) <= scenes.COLOUR_JITTER
            assert (near | dark).all()
            assert dark.any() == (thing.texture != "plain")


def test_every_object_keeps_most_of_itself_visible() -> None:
    """Against the area of a whole shape, in squared radii."""
    whole = {"circle": 2.96, "square": 2.96, "triangle": 2.0, "cross": 2.36}
    for seed in range(150):
        for thing in _scene(seed, min_objects=5, max_objects=5).objects:
            low, high = scenes.SIZES[thing.size]
            assert 0.85 * 0.7 * whole[thing.shape] * low**2 < thing.mask.sum() < 1.15 * whole[thing.shape] * high**2


def test_objects_overlap_now_and_then_and_never_too_much() -> None:
    hidden = 0
    for seed in range(60):
        canvas = scenes._Canvas(np.random.default_rng(seed), 64, 1.0)
        for _ in range(6):
            before = [(canvas.owner == index).sum() for index in range(1, len(canvas.area))]
            canvas.place(SEEN_PAIRS)
            for index, seen in enumerate(before, start=1):
                lost = seen - (canvas.owner == index).sum()
                assert lost <= scenes.HIDES_AT_MOST * canvas.area[index]
        for index in range(1, len(canvas.area)):
            visible = (canvas.owner == index).sum()
            assert visible >= 0.7 * canvas.area[index]
            hidden += visible < canvas.area[index]
    assert hidden > 30


def test_objects_of_one_colour_do_not_touch() -> None:
    for seed in range(100):
        objects = _scene(seed, min_objects=5, max_objects=5).objects
        for one, other in combinations(objects, 2):
            if one.colour == other.colour:
                grown = np.pad(one.mask, 1)
                near = [grown[1 + dy : 65 + dy, 1 + dx : 65 + dx] for dy, dx in product((-1, 0, 1), repeat=2)]
                assert not (np.logical_or.reduce(near) & other.mask).any()


def test_large_is_clearly_larger_than_small() -> None:
    """Of one shape, the smallest large object outgrows the largest small one, when nothing hides them."""
    spans: dict[str, list[int]] = {"small": [], "large": []}
    for seed in range(200):
        for thing in _scene(seed, min_objects=1, max_objects=1).objects:
            spans[thing.size].append(int(thing.mask.any(1).sum()))
    assert max(spans["small"]) < min(spans["large"])


def test_too_many_objects_are_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SCENES_TRIED", 2)
    with pytest.raises(ValueError, match="lower min_objects"):
        draw_scene(np.random.default_rng(0), min_objects=60, max_objects=60, size=32)


def test_the_held_out_pairs_leave_every_colour_and_shape_in_training() -> None:
    assert len({colour for colour, _ in HELD_OUT}) == len({shape for _, shape in HELD_OUT}) == len(HELD_OUT) == 4
    assert {colour for colour, _ in SEEN_PAIRS} == set(scenes.COLOURS)
    assert {shape for _, shape in SEEN_PAIRS} == set(scenes.SHAPES)


# ------------------------------------------------------------------------------------------------------- laboratory


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_decided_by_seed_split_and_index(split: Any) -> None:
    one, other = Laboratory(seed=7, split=split), pickle.loads(pickle.dumps(Laboratory(seed=7, split=split)))
    assert _same(one[5], other[5])
    assert _same(one[5], list(islice(one, 6))[5])
    assert not np.array_equal(one[5].image, one[6].image)  # type: ignore[arg-type]
    assert not np.array_equal(one[5].image, replace(one, seed=8)[5].image)  # type: ignore[arg-type]


def test_splits_share_no_scene(samples: dict[str, list[Sample]]) -> None:
    pictures = [np.asarray(sample.image).tobytes() for split in SPLITS for sample in samples[split]]
    assert len(set(pictures)) == len(pictures) == SAMPLES * len(SPLITS)


def _scene_behind(laboratory: Laboratory, index: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Sample, Scene]:
    """A sample and the scene that it is about."""
    drawn: list[Scene] = []

    def recorded(*args: Any, **kwargs: Any) -> Scene:
        drawn.append(draw_scene(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr("sail_lightning.data.synthetic.laboratory.draw_scene", recorded)
    return laboratory[index], drawn[-1]


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_occur_in_the_compositional_split_only(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(200):
        sample, scene = _scene_behind(Laboratory(split=split), index, monkeypatch)
        pairs = {(thing.colour, thing.shape) for thing in scene.objects}
        assert pairs.isdisjoint(HELD_OUT) == (split != "compositional")
        if split != "compositional":
            # Neither in a description of nothing nor in a wrong choice: their absence would be learnt as an answer.
            text = " ".join(turn.question + turn.answer for turn in sample.turns)
            assert not any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)


def test_compositional_questions_are_about_a_held_out_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(150):
        sample, scene = _scene_behind(Laboratory(split="compositional", seed=1), index, monkeypatch)
        unseen = [thing.mask for thing in scene.objects if (thing.colour, thing.shape) in HELD_OUT]
        for kind, turn in zip(sample.meta["kinds"], sample.turns, strict=True):
            if kind in ("alike", "none"):  # about the region or the others; about what is not there
                continue
            masks = [sample.masks[target] for target in turn.targets] or [_prompted(sample, turn, scene).mask]
            assert any((mask & held).any() for mask in masks for held in unseen)


def test_all_kinds_of_turn_occur_about_as_often_as_asked(samples: dict[str, list[Sample]]) -> None:
    tasks = Counter(turn.task for sample in samples["train"] for turn in sample.turns)
    total = sum(tasks.values())
    assert total == 5 * SAMPLES
    for task, share in Laboratory().tasks.items():
        assert abs(tasks[task] / total - share) < 0.05
    assert {kind for sample in samples["train"] for kind in sample.meta["kinds"]} == set(TASK_OF)


def test_tasks_and_kinds_can_be_chosen() -> None:
    laboratory = Laboratory(tasks={"refer": 1.0}, kinds={"none": 1.0}, questions=2)
    for sample in laboratory.take(20):
        assert sample.meta["kinds"] == ("none",) * len(sample.turns)
        assert sample.masks == ()


@pytest.mark.parametrize("split", SPLITS)
def test_every_seg_has_its_mask_in_order(split: str, samples: dict[str, list[Sample]]) -> None:
    for sample in samples[split]:
        assert [target for turn in sample.turns for target in turn.targets] == list(range(len(sample.masks)))
        assert all(turn.answer.count("[SEG]") == len(turn.targets) for turn in sample.turns)
        assert all(np.asarray(mask).any() for mask in sample.masks)


@pytest.mark.parametrize("split", SPLITS)
def test_no_sample_asks_the_same_twice(split: str, samples: dict[str, list[Sample]]) -> None:
    for sample in samples[split]:
        wordings = "please segment |can you segment |where is |where are |segment |find |show me | in the picture"
        asked = [re.sub(wordings, "", turn.question).rstrip("?.") for turn in sample.turns]
        assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("split", SPLITS)
def test_each_prompt_is_asked_once_and_points_at_an_object_of_its_own(
    split: str, samples: dict[str, list[Sample]]
) -> None:
    for sample in samples[split]:
        named = [int(number) for turn in sample.turns for number in re.findall(r"<Prompt(\d+)>", turn.question)]
        assert named == [prompt.id for prompt in sample.prompts]
        assert len(set(named)) == len(named) and all(0 <= number < 4 for number in named)


def test_all_prompt_ids_and_forms_are_used(samples: dict[str, list[Sample]]) -> None:
    prompts = [prompt for sample in samples["train"] for prompt in sample.prompts]
    assert {prompt.id for prompt in prompts} == {0, 1, 2, 3}
    forms = Counter(type(prompt) for prompt in prompts)
    assert abs(forms[Mask] / len(prompts) - 0.4) < 0.06
    assert abs(forms[Box] / len(prompts) - 0.3) < 0.06
    assert abs(forms[Point] / len(prompts) - 0.3) < 0.06


def test_a_caption_is_the_last_turn(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["train"]:
        assert "caption" not in [turn.task for turn in sample.turns[:-1]]


def test_samples_name_themselves() -> None:
    sample = Laboratory(seed=4, split="val")[17]
    assert (sample.source, sample.id) == ("laboratory/val", "val-4-17")


def test_the_endless_list_has_no_length_and_no_end_to_count_from() -> None:
    with pytest.raises(TypeError):
        len(Laboratory())  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="0 or more"):
        Laboratory()[-1]
    assert Laboratory()[10**9].turns


def test_a_slice_is_a_list_of_the_first_samples() -> None:
    laboratory = Laboratory(seed=2)
    part = laboratory.take(6)
    assert isinstance(part, LaboratorySlice) and len(part) == len(list(part)) == 6
    assert _same(part[4], laboratory[4]) and _same(part[-1], laboratory[5])
    assert [sample.id for sample in part[1:3]] == ["train-2-1", "train-2-2"]
    with pytest.raises(IndexError):
        part[6]


@pytest.mark.parametrize("split", SPLITS)
def test_a_balanced_slice_keeps_the_exact_proportions(split: Any) -> None:
    part = Laboratory(split=split, tasks={"refer": 2, "choice": 1, "caption": 1}, kinds={"none": 1, "single": 1})
    kinds = [sample.meta["kinds"] for sample in part.balanced(80)]
    assert Counter(kinds) == {("none",): 20, ("single",): 20, ("choice",): 20, ("caption",): 20}
    assert len(set(kinds[:4])) == 4, "spread evenly"


def test_a_balanced_slice_of_all_tasks_gets_every_kind() -> None:
    kinds = Counter(kind for sample in Laboratory(split="test").balanced(200) for kind in sample.meta["kinds"])
    assert kinds["single"] == 50 and kinds["describe"] == kinds["choice"] == 30 and kinds["caption"] == 10
    assert set(kinds) == set(TASK_OF)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "train, val, test, compositional"),
        ({"tasks": {"refr": 1.0}}, "unknown key 'refr' in tasks"),
        ({"kinds": {"double": 1.0}}, "unknown key 'double' in kinds"),
        ({"kinds": {"none": -1.0}}, "kinds.none must be 0 or more"),
        ({"tasks": {"refer": 0.0}}, "must give some weight"),
        ({"num_prompts": 16}, "between 1 and 15"),
        ({"min_objects": 6}, "max_objects"),
        ({"questions": 0}, "at least 1"),
        ({"size": 8}, "at least 32"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Laboratory(**settings)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**40),
    size=st.sampled_from([32, 48, 96, 128]),
    most=st.integers(2, 10),
    questions=st.integers(1, 8),
    num_prompts=st.integers(1, 15),
)
def test_any_setting_gives_whole_samples(seed: int, size: int, most: int, questions: int, num_prompts: int) -> None:
    laboratory = Laboratory(seed, size=size, max_objects=most, questions=questions, num_prompts=num_prompts)
    for sample in laboratory.take(4):
        assert 1 <= len(sample.turns) <= questions
        assert sum(len(turn.targets) for turn in sample.turns) == len(sample.masks)
        assert all(np.asarray(mask).shape == (size, size) for mask in sample.masks)
        assert all(0 <= (-1 if prompt.id is None else prompt.id) < num_prompts for prompt in sample.prompts)


# ---------------------------------------------------------------------------------------------------------- answers
# Read from the question's words and the objects' attributes alone, without the grammar's own code.

Noun = re.compile(
    r"(?:(small|large) )?(?:(plain|striped|dotted) )?(?:(red|green|blue|yellow|purple|white) )?"
    r"(object|circle|square|triangle|cross)(?:e?s)?"
)
WORDINGS = re.compile(
    r"(?:please segment|can you segment|where is|where are|segment|find|show me) (.*?)(?: in the picture)?[.?]"
)


def _fitting(scene: Scene, noun: str) -> list[SceneObject]:
    found = Noun.fullmatch(noun)
    assert found, noun
    size, texture, colour, shape = found.groups()
    return [
        thing
        for thing in scene.objects
        if size in (None, thing.size)
        and texture in (None, thing.texture)
        and colour in (None, thing.colour)
        and shape in ("object", thing.shape)
    ]


def _only(scene: Scene, noun: str) -> SceneObject:
    found = _fitting(scene, noun)
    assert len(found) == 1, noun
    return found[0]


def _prompted(sample: Sample, turn: Turn, scene: Scene) -> SceneObject:
    """The one object that a turn's region lies on."""
    number = int(re.findall(r"<Prompt(\d+)>", turn.question)[0])
    prompt = next(prompt for prompt in sample.prompts if prompt.id == number)
    for thing in scene.objects:
        ys, xs = np.nonzero(thing.mask)
        if isinstance(prompt, Point) and thing.mask[int(prompt.y), int(prompt.x)]:
            return thing
        if isinstance(prompt, Mask) and np.array_equal(prompt.mask, thing.mask):
            return thing
        if isinstance(prompt, Box):
            tight = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            if (prompt.x0, prompt.y0, prompt.x1, prompt.y1) == tight:
                return thing
    raise AssertionError(f"{prompt} lies on no object")


def _centre(thing: SceneObject) -> tuple[float, float]:
    ys, xs = np.nonzero(thing.mask)
    return float(xs.mean()), float(ys.mean())


def _beside(scene: Scene, noun: str, relation: str, anchor: SceneObject) -> SceneObject:
    """The one object of a noun that lies on a side of another; nothing else of that noun comes near that."""
    axis = 0 if relation in ("left of", "right of") else 1
    sign = -1 if relation in ("left of", "above") else 1
    ahead = [
        (sign * (_centre(thing)[axis] - _centre(anchor)[axis]) / 64, thing)
        for thing in _fitting(scene, noun)
        if thing is not anchor
    ]
    (best,) = [thing for gap, thing in ahead if gap > 0.11]
    assert all(gap < -0.11 for gap, thing in ahead if thing is not best)
    return best


def _expected(kind: str, sample: Sample, turn: Turn, scene: Scene) -> list[list[SceneObject]]:
    """For each `[SEG]` of a turn, the objects it stands for."""
    if kind == "caption":
        return [[thing] for thing in sorted(scene.objects, key=_centre)]
    if kind in ("describe", "choice"):
        return []
    asked = WORDINGS.fullmatch(turn.question)
    assert asked, turn.question
    text = asked.group(1)
    if kind == "none":
        assert _fitting(scene, text.removeprefix("the ")) == []
        return []
    if kind == "single":
        return [[_only(scene, text.removeprefix("the "))]]
    if kind == "multi":
        if text.startswith("the "):
            return [[_only(scene, part.removeprefix("the "))] for part in text.split(" and ")]
        found = _fitting(scene, re.sub("^(all|every) ", "", text))
        assert len(found) > 1
        return [found]
    if kind == "ordinal":
        word, noun, end = re.fullmatch(  # type: ignore[union-attr]
            r"the (\w+most|second) (.*?)(?: from the (left|right))?", text
        ).groups()
        axis = 1 if word in ("topmost", "bottommost") else 0
        backwards = word in ("rightmost", "bottommost") or end == "right"
        row = sorted(_fitting(scene, noun), key=lambda thing: _centre(thing)[axis], reverse=backwards)
        place = 1 if word == "second" else 0
        steps = [abs(_centre(a)[axis] - _centre(b)[axis]) for a, b in pairwise(row)]
        assert all(step >= 0.0999 * 64 for step in steps[: place + 1])
        return [[row[place]]]
    region = r"<Prompt\d+>"
    if kind == "region":
        assert re.fullmatch(region, text)
        return [[_prompted(sample, turn, scene)]]
    if kind == "alike":
        this = _prompted(sample, turn, scene)
        form = re.fullmatch(rf"(the object|all other objects) with the same (colour|shape) as {region}", text)
        assert form
        attribute = form.group(2)
        found = [t for t in scene.objects if t is not this and getattr(t, attribute) == getattr(this, attribute)]
        assert (len(found) == 1) == (form.group(1) == "the object")
        return [found]
    form = re.fullmatch(rf"the (.*) (left of|right of|above|below) (?:the (.*)|{region})", text)
    assert form
    anchor = _prompted(sample, turn, scene) if kind == "beside" else _only(scene, form.group(3))
    return [[_beside(scene, form.group(1), form.group(2), anchor)]]


def _described(thing: SceneObject) -> str:
    return f"a {thing.size} {'' if thing.texture == 'plain' else thing.texture + ' '}{thing.colour} {thing.shape}"


@pytest.mark.parametrize("kind", sorted(TASK_OF))
@pytest.mark.parametrize("split", ["train", "compositional"])
def test_answers_follow_from_the_question_and_the_objects(
    kind: str, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASK_OF[kind]
    laboratory = Laboratory(
        seed=11, split=split, tasks={task: 1.0}, kinds={kind: 1.0} if task == "refer" else None, questions=3
    )
    checked = 0
    for index in range(120):
        sample, scene = _scene_behind(laboratory, index, monkeypatch)
        for found, turn in zip(sample.meta["kinds"], sample.turns, strict=True):
            if found != kind:
                continue
            checked += 1
            expected = _expected(kind, sample, turn, scene)
            masks = [sample.masks[target] for target in turn.targets]
            assert len(masks) == len(expected)
            for mask, things in zip(masks, expected, strict=True):
                assert np.array_equal(mask, np.logical_or.reduce([thing.mask for thing in things]))  # type: ignore[arg-type]
            if kind == "none":
                assert turn.answer == "no target."
            elif kind == "describe":
                assert turn.answer == f"{_described(_prompted(sample, turn, scene))}."
            elif kind == "caption":
                things = [f"<p> {_described(thing)} </p> [SEG]" for thing in sorted(scene.objects, key=_centre)]
                assert turn.answer == ", ".join(things) + "."
            elif kind == "choice":
                _check_choice(turn, _prompted(sample, turn, scene))
            else:
                assert turn.answer == ("it is [SEG]." if len(masks) == 1 else "it is [SEG] and [SEG].")
    assert checked >= 60


def _check_choice(turn: Turn, thing: SceneObject) -> None:
    right = [option for option in turn.choices if set(option.split()) <= {thing.colour, thing.shape}]
    assert [f"{option}." for option in right] == [turn.answer]
    assert 2 <= len(turn.choices) <= 4 and len(set(turn.choices)) == len(turn.choices)
    listed = " ".join(f"{letter}: {option}" for letter, option in zip("abcd", turn.choices, strict=False))
    assert turn.question.endswith(f"? {listed}")


def test_the_right_choice_may_stand_anywhere() -> None:
    turns = [sample.turns[0] for sample in Laboratory(tasks={"choice": 1.0}, questions=1).take(300)]
    for count in (2, 3, 4):
        places = Counter(turn.choices.index(turn.answer[:-1]) for turn in turns if len(turn.choices) == count)
        assert set(places) == set(range(count))
        assert max(places.values()) < 1.8 * places.total() / count


def test_nothing_more_to_ask_gives_none() -> None:
    thing = SceneObject("circle", "red", "small", "plain", np.ones((8, 8), np.bool_), (4.0, 4.0))
    scene = Scene(np.zeros((8, 8, 3), np.uint8), (thing,))
    interviewer = Interviewer(scene, np.random.default_rng(0))
    assert interviewer.ask("multi") is interviewer.ask("ordinal") is interviewer.ask("alike") is None
    assert interviewer.ask("describe") is not None
    assert interviewer.ask("describe") is None, "each object is pointed at once"


# --------------------------------------------------------------------------------------------------------- tokenizer


def test_the_shipped_tokenizer_is_the_one_that_is_built() -> None:
    assert json.loads(TOKENIZER_FILE.read_text()) == json.loads(build_tokenizer().to_str())


def test_special_tokens_come_first_in_the_agreed_order(tokenizer: Tokenizer) -> None:
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<vision>", "<vpatch>", "</vision>", "[SEG]", "<p>", "</p>"]
    first += [*(f"<Prompt{number}>" for number in range(15)), UNKNOWN]
    assert [tokenizer.id_to_token(number) for number in range(len(first))] == first
    assert tokenizer.get_vocab_size() < 200


def test_no_text_of_the_grammar_is_unknown_and_answers_come_back_whole(
    samples: dict[str, list[Sample]], tokenizer: Tokenizer
) -> None:
    unknown = tokenizer.token_to_id(UNKNOWN)
    texts = {turn.question for part in samples.values() for sample in part for turn in sample.turns}
    answers = {turn.answer for part in samples.values() for sample in part for turn in sample.turns}
    for encoding in tokenizer.encode_batch(sorted(texts | answers)):
        assert unknown not in encoding.ids
    for answer in answers:
        assert tokenizer.decode(tokenizer.encode(answer).ids, skip_special_tokens=False) == answer


def test_capitals_do_not_matter_and_other_words_are_unknown(tokenizer: Tokenizer) -> None:
    assert (
        tokenizer.encode("Please segment the RED circle.").ids
        == tokenizer.encode("please segment the red circle .").ids
    )
    assert tokenizer.encode("zebra").tokens == [UNKNOWN]


# ----------------------------------------------------------------------------------------------------- contact sheet


def test_a_contact_sheet_shows_every_sample(tmp_path: Any) -> None:
    samples = Laboratory().take(5)
    sheet = contact_sheet(samples, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(sheet))
    one = contact_sheet(samples[:1], columns=2)
    assert sheet.width > 1.9 * one.width and sheet.height > 2.2 * 256


def test_a_contact_sheet_marks_masks_and_prompts() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), np.bool_)
    mask[10:20, 10:20] = True
    line = Scribble(((40.0, 5.0), (50.0, 30.0)), id=1)
    bare = np.asarray(contact_sheet([Sample(image, ())]))
    masked = np.asarray(contact_sheet([Sample(image, (), masks=(lambda: mask,))]))
    prompted = np.asarray(contact_sheet([Sample(image, (), prompts=(Box(2, 2, 9, 9), Point(30, 30), line))]))
    picture = np.s_[8:178, 266 : 266 + 256]
    left, top = 266 + int(14 * 256 / 60), 8 + int(11.5 * 256 / 60)
    assert bare[picture].max() == 0
    assert masked[top, left].max() > 0, "tinted within the mask"
    assert (prompted[picture] == 255).all(-1).sum() > 50


def test_a_contact_sheet_takes_files_and_text_only(tmp_path: Any) -> None:
    Image.new("RGB", (300, 200), (1, 2, 3)).save(tmp_path / "picture.png")
    Image.new("L", (300, 200), 255).save(tmp_path / "mask.png")
    file = Sample(tmp_path / "picture.png", (), masks=(tmp_path / "mask.png",))
    assert contact_sheet([file, Sample(None, (Turn("hello"),))]).width > 1000


def test_a_contact_sheet_decodes_run_lengths() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    coded = {"size": [8, 8], "counts": coco.encode(np.ones((8, 8), np.uint8, order="F"))["counts"]}
    sheets = [
        np.asarray(contact_sheet([Sample(picture, (), masks=(mask,))])) for mask in (coded, np.ones((8, 8), bool))
    ]
    assert np.array_equal(*sheets)


def test_a_contact_sheet_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        contact_sheet([])
