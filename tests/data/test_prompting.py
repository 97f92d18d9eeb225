"""How objects get their visual prompts: ids, shapes, questions about what is not there, names in texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from sail_lightning.callbacks.predictions import to_record
from sail_lightning.data.prompting import (
    MIN_EDGE_DISTANCE,
    NEGATIVE,
    Prompting,
    Region,
    SimulatedPrompt,
    described,
    distance_transform,
    with_names,
)
from sail_lightning.data.samplers import ExhaustiveSampler, RandomSampler
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.drawing import draw_prompt
from sail_lightning.image.preprocessing import load_mask, patch_coverage, region_mask, resized_size
from sail_lightning.sample import BoolMask, Mask, Sample, Turn
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory", num_prompts=15), patch_size=16)
PAPER = {"mask": 0.4, "box": 0.3, "point": 0.3}

seeds = st.integers(0, 10**6)
small_masks = st.builds(
    lambda height, width, seed, share: np.random.default_rng(seed).random((height, width)) < share,
    st.integers(1, 12),
    st.integers(1, 12),
    seeds,
    st.floats(0, 1),
)


@st.composite
def pieces(draw: st.DrawFn) -> BoolMask:
    """A mask of one piece: a walk of overlapping rectangles, thick or thin, often bent, sometimes over the border."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    mask = np.zeros((height, width), bool)
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    for _ in range(draw(st.integers(1, 4))):
        down, right = draw(st.integers(0, 45)), draw(st.integers(0, 45))
        mask[y : y + down + 1, x : x + right + 1] = True
        y, x = min(y + draw(st.integers(0, down)), height - 1), min(x + draw(st.integers(0, right)), width - 1)
    return mask


def drawn(seed: int = 0) -> RandomSampler:
    return RandomSampler(np.random.default_rng(seed))


def dots(count: int) -> list[tuple[Any, str]]:
    """Objects that differ: a row of pixels, and their numbers as text."""
    return [(np.arange(20)[None] == number, f"object {number}") for number in range(count)]


def asked(prompting: Prompting, objects: list[tuple[Any, str]], seed: int = 0) -> Sample:
    sampler = drawn(seed)
    return prompting.build_conversation(objects, described(sampler), sampler, image="a.jpg", source="s", id="1")


# -- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_a_random_permutation_of_all_and_the_first_are_the_objects() -> None:
    prompting = Prompting(num_prompts=6)
    given_out = set()
    for seed in range(40):
        regions, unused = prompting.regions(dots(4), drawn(seed))
        ids = [region.id for region in regions]
        assert sorted(ids + unused) == list(range(6))
        given_out.add(tuple(ids))
    assert len(given_out) > 30
    assert {ids[0] for ids in given_out} == set(range(6))


@given(st.integers(1, 15), seeds)
def test_e12_an_objects_id_mask_and_text_stay_together(count: int, seed: int) -> None:
    sample = asked(Prompting(objects=15, absent=0.0), dots(count), seed)
    assert len(sample.turns) == len(sample.prompts) == count
    for turn, prompt, (mask, text) in zip(sample.turns, sample.prompts, dots(count), strict=True):
        name = f"<Prompt{prompt.id}>"
        assert name in turn.question and turn.answer == f"{name}: {text}"
        assert isinstance(prompt, Mask) and np.array_equal(load_mask(prompt.mask), mask)


def test_a_check_may_take_more_objects_than_there_are_ids() -> None:
    regions, unused = Prompting(objects=2, num_prompts=3).regions(dots(5), ExhaustiveSampler())
    assert [region.id for region in regions] == [0, 1, 2, 3, 4] and unused == []


def test_a_conversation_is_about_one_object_or_more_up_to_the_limit() -> None:
    prompting = Prompting(objects=3)
    counts = Counter(len(prompting.sample_objects(range(9), drawn(seed))) for seed in range(200))
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 40


def test_a_record_without_an_object_is_told() -> None:
    with pytest.raises(SailError, match="no object to ask about; give the record one, or remove it"):
        asked(Prompting(), [])


# -- prompts that are not there ---------------------------------------------------------------------------------------


def test_an_absent_prompt_is_asked_about_once_at_most_and_denied() -> None:
    prompting = Prompting(absent=0.5)
    seen = 0
    for seed in range(100):
        sample = asked(prompting, dots(5), seed)
        extra = [turn for turn in sample.turns if "is not in the image" in turn.answer]
        assert len(sample.turns) - 5 == len(extra) == len(sample.meta.get(NEGATIVE, [])) <= 1
        for turn, id in zip(extra, sample.meta.get(NEGATIVE, []), strict=True):
            assert turn.answer == f"<Prompt{id}> is not in the image." and f"<Prompt{id}>" in turn.question
            assert id not in [prompt.id for prompt in sample.prompts]
            seen += 1
    assert seen > 90  # 1 - 0.5**5


def test_the_probability_of_an_absent_prompt_is_per_object() -> None:
    count = sum(NEGATIVE in asked(Prompting(), dots(5), seed).meta for seed in range(2000))
    assert 0.20 < count / 2000 < 0.25  # 1 - 0.95**5 = 0.226


def test_a_model_can_be_asked_about_an_absent_prompt() -> None:
    prompting, sampler = Prompting(absent=1.0), drawn()
    sample = prompting.build_conversation(dots(2), described(sampler), sampler, image="", source="s", id="1")
    encoded = ENCODER.encode(replace(sample, image=np.zeros((1, 20, 3), np.uint8)))
    (absent,) = sample.meta[NEGATIVE]
    names = [ENCODER.tokens.prompts[prompt.id or 0] for prompt in sample.prompts]
    assert [region.token_id for region in encoded.regions] == [ENCODER.tokens.ids[name] for name in names]
    assert len(encoded.sequence.rows_of(ENCODER.tokens.prompt_ids[absent])) == 2  # in question and answer


def test_e43_no_absent_prompt_where_all_ids_are_used_and_the_ratios_stay_as_they_were_given() -> None:
    shapes = {"box": 3.0, "point": 1.0}
    prompting = Prompting(objects=5, num_prompts=5, absent=1.0, shapes=shapes)
    assert len(asked(prompting, dots(5)).turns) == 5
    assert len(asked(prompting, dots(4)).turns) == 5  # four objects and one that is not there
    assert shapes == {"box": 3.0, "point": 1.0}


def test_a_check_sees_nothing_that_happens_by_chance() -> None:
    prompting = Prompting(absent=0.9, shapes={"box": 1.0})
    sample = prompting.build_conversation(
        dots(3), described(ExhaustiveSampler()), ExhaustiveSampler(), image="a.jpg", source="s", id="1"
    )
    assert [turn.answer for turn in sample.turns] == [f"<Prompt{n}>: object {n}" for n in range(3)]
    assert all(isinstance(prompt, Mask) and isinstance(prompt.mask, np.ndarray) for prompt in sample.prompts)


# -- shapes -----------------------------------------------------------------------------------------------------------


def shapes_of(prompting: Prompting, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in range(count // 10):
        regions, _ = prompting.regions(dots(10), drawn(seed))
        found.update(region.mask.shape if isinstance(region.mask, SimulatedPrompt) else "mask" for region in regions)
    return found


def test_shapes_are_drawn_as_often_as_their_weights_say() -> None:
    assert shapes_of(Prompting(), 100) == {"mask": 100}
    assert shapes_of(Prompting(shapes={"scribble": 2.0, "mask": 0.0}), 100) == {"scribble": 100}
    found = shapes_of(Prompting(shapes={name: 10 * share for name, share in PAPER.items()}), 4000)
    assert all(abs(found[name] / 4000 - share) < 0.03 for name, share in PAPER.items())
    assert set(found) == set(PAPER)


def test_e48_nothing_is_decoded_before_the_prompt_is_used() -> None:
    def decode() -> BoolMask:
        raise AssertionError("decoded too early")

    sample = asked(Prompting(shapes={"box": 1, "point": 1, "scribble": 1}), [(decode, "a")] * 5)
    with pytest.raises(AssertionError, match="too early"):
        region_mask(sample.prompts[0], (1, 1))


@pytest.mark.parametrize("shape", ["box", "point", "scribble"])
@given(mask=pieces(), seed=seeds)
def test_a_shape_is_the_same_for_a_seed_and_never_empty(shape: Any, mask: BoolMask, seed: int) -> None:
    first, second = SimulatedPrompt(mask, shape, seed)(), SimulatedPrompt(mask, shape, seed)()
    assert first.shape == mask.shape and first.dtype == bool and first.any()
    assert np.array_equal(first, second)


@given(pieces())
def test_a_box_is_filled_and_as_tight_as_can_be(mask: BoolMask) -> None:
    box = SimulatedPrompt(mask, "box", 0)()
    rows, columns = np.nonzero(mask)
    expected = np.zeros_like(mask)
    expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert np.array_equal(box, expected)


@given(pieces(), seeds)
def test_a_point_is_one_pixel_deeper_inside_than_a_patch_or_else_the_deepest(mask: BoolMask, seed: int) -> None:
    ((row, column),) = np.argwhere(SimulatedPrompt(mask, "point", seed)())
    assert mask[row, column]
    distances = exact_squares(mask)
    if (distances > MIN_EDGE_DISTANCE**2).any():
        assert distances[row, column] > MIN_EDGE_DISTANCE**2
    else:
        assert distances[row, column] == distances.max()


def test_a_point_is_any_of_the_pixels_that_are_deep_enough() -> None:
    mask = np.zeros((60, 60), bool)
    mask[5:45, 5:45] = True
    deep = {tuple(place) for place in np.argwhere(exact_squares(mask) > MIN_EDGE_DISTANCE**2)}
    found = {tuple(np.argwhere(SimulatedPrompt(mask, "point", seed)())[0]) for seed in range(1000)}
    assert found == deep and len(deep) == 64


@given(pieces(), seeds)
def test_a_scribble_stays_inside_its_object(mask: BoolMask, seed: int) -> None:
    line = SimulatedPrompt(mask, "scribble", seed)()
    assert not (line & ~mask).any()
    assert line.sum() <= 4 * max(mask.shape)


def test_a_scribble_runs_along_the_longer_side() -> None:
    for mask in (np.zeros((40, 120), bool), np.zeros((120, 40), bool)):
        mask[5:-5, 5:-5] = True
        for seed in range(20):
            rows, columns = np.nonzero(SimulatedPrompt(mask, "scribble", seed)())
            assert max(np.ptp(rows), np.ptp(columns)) > 0.3 * max(mask.shape)
            assert is_one_piece_diagonally(SimulatedPrompt(mask, "scribble", seed)())


def test_an_object_of_several_pieces_keeps_its_mask() -> None:
    two = np.array([[1, 0], [0, 1]], bool)  # they touch at a corner only
    for shape in ("box", "point", "scribble"):
        assert np.array_equal(SimulatedPrompt(two, shape, 0)(), two)  # type: ignore[arg-type]
        assert not SimulatedPrompt(np.zeros((3, 3), bool), shape, 0)().any()  # type: ignore[arg-type]


@settings(max_examples=300)
@given(small_masks)
def test_only_what_hangs_together_by_sides_is_drawn_otherwise(mask: BoolMask) -> None:
    drawn = SimulatedPrompt(mask, "box", 0)()
    if pieces_by_filling(mask, diagonally=False) != 1:
        assert np.array_equal(drawn, mask)
        return
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert np.array_equal(drawn, box)


@given(st.one_of(small_masks, pieces()))
def test_depths_are_euclidean_up_to_a_patch(mask: BoolMask) -> None:
    ours, exact = distance_transform(mask), exact_squares(mask)
    near = exact <= MIN_EDGE_DISTANCE**2
    assert ours[near] == pytest.approx(np.sqrt(exact[near]))
    assert (ours[~near] > MIN_EDGE_DISTANCE).all()


def exact_squares(mask: BoolMask) -> np.ndarray:
    """Squared distances to the nearest pixel that is off, by comparing all with all."""
    off = np.argwhere(~mask)
    places = np.stack(np.indices(mask.shape), axis=-1).reshape(-1, 1, 2)
    if not len(off):
        return np.full(mask.shape, 10**6)
    near = [((places[at : at + 500] - off) ** 2).sum(-1).min(1) for at in range(0, len(places), 500)]
    return np.concatenate(near).reshape(mask.shape)


def pieces_by_filling(mask: BoolMask, diagonally: bool) -> int:
    left, count = {tuple(place) for place in np.argwhere(mask)}, 0
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if diagonally or not a or not b]
    while left:
        count += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            for step in steps:
                if (place := (y + step[0], x + step[1])) in left:
                    left.remove(place)
                    front.append(place)
    return count


def is_one_piece_diagonally(mask: BoolMask) -> bool:
    return pieces_by_filling(mask, diagonally=True) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompts": 0}, "num_prompts must be 1 or more, not 0"),
        ({"objects": 16}, "objects must be at most num_prompts (15), not 16"),
        ({"absent": 1.5}, "absent must be from 0 to 1, not 1.5"),
        ({"shapes": {"circle": 1.0}}, "the keys of shapes must be one of mask, box, point, scribble, not 'circle'"),
        ({"shapes": {"box": -1.0}}, "shapes.box must be 0 or more, not -1.0"),
        ({"shapes": {"box": 0.0}}, "shapes must give at least one shape a weight above 0"),
    ],
)
def test_settings_that_cannot_be_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SailUsageError) as raised:
        Prompting(**arguments)
    assert message in str(raised.value)


# -- prompts on the patches -------------------------------------------------------------------------------------------


def covered_patches(size: tuple[int, int], masks: list[Any]) -> list[set[int]]:
    """The vision tokens of each prompt of an image of `size` (height, width)."""
    prompts = tuple(Mask(mask, id) for id, mask in enumerate(masks))
    turn = Turn("what is " + " ".join(f"<Prompt{id}>" for id in range(len(masks))), "a thing")
    sample = Sample(np.zeros((*size, 3), np.uint8), (turn,), prompts=prompts)
    return [set(region.patch_rows.tolist()) for region in ENCODER.encode(sample).regions]


def test_e13_two_small_objects_in_one_patch_both_stay() -> None:
    left, right = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    left[2:5, 2:5] = right[2:5, 9:12] = True
    assert len(covered_patches((32, 32), [left, right])[0]) == 1
    one, other = covered_patches((32, 32), [left, right])
    assert one == other


def test_e14_a_point_on_a_large_image_never_vanishes() -> None:
    size = (1500, 2250)  # it shrinks to less than half: nearest neighbours lost three of four points
    rng = np.random.default_rng(0)
    lost_before = 0
    for seed in range(12):
        top, left = int(rng.integers(0, 1300)), int(rng.integers(0, 2000))
        mask = np.zeros(size, bool)
        mask[top : top + 90, left : left + 70] = True
        point = SimulatedPrompt(mask, "point", seed)
        (patches,) = covered_patches(size, [point])
        assert len(patches) == 1
        height, width = resized_size(size, 16)
        lost_before += not patch_coverage(point(), (height // 16, width // 16), 16, "nearest_pil").any()
    assert lost_before > 3


# -- names in texts ---------------------------------------------------------------------------------------------------


def regions(count: int) -> list[Region]:
    """Region n has the id 15 - n, so that a number left over in a text would show."""
    return [Region(15 - number, np.ones((1, 1), bool)) for number in range(1, count + 1)]


@pytest.mark.parametrize("spelling", ["<region{}>", "<Region{}>", "<regon{}>", "<Regon{}>"])
def test_a_region_is_found_in_all_spellings(spelling: str) -> None:
    for form in (spelling, spelling.strip("<>")):
        text = f"Is {form.format(1)}, near {form.format(2)}'s, ({form.format(3)})?"
        assert with_names(text, regions(3)) == "Is <Prompt14>, near <Prompt13>'s, (<Prompt12>)?"


def test_e15_a_region_is_a_whole_word() -> None:
    text = "<region10> region1 region11 <region1> subregion1 region regions2 region1a"
    expected = "<Prompt5> <Prompt14> <Prompt4> <Prompt14> subregion1 region regions2 region1a"
    assert with_names(text, regions(11)) == expected


@given(st.permutations(range(1, 16)), st.booleans())
def test_e15_whatever_the_order_every_region_gets_its_own_name(order: list[int], bare: bool) -> None:
    text = " ".join(f"region{n}" if bare else f"<region{n}>" for n in order)
    assert with_names(text, regions(15)) == " ".join(f"<Prompt{15 - n}>" for n in order)


@pytest.mark.parametrize("name", ["<region4>", "Regon0"])
def test_a_region_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(SailError, match=f"the text names {name}, but the record has 3 regions; correct the text"):
        with_names(f"what is {name}?", regions(3))


# -- masks of any form as prompts -------------------------------------------------------------------------------------


def test_a_prompt_may_be_an_rle_or_a_function_and_is_drawn_and_written_like_a_mask() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:15, 8:20] = True
    forms = [mask, lambda: mask, coco.encode(np.asfortranarray(mask.astype(np.uint8)))]
    pictures, records = [], []
    for form in forms:
        prompt = Mask(form, 3)  # type: ignore[arg-type]
        assert np.array_equal(region_mask(prompt, (20, 30)), mask)
        picture = Image.new("RGB", (60, 40))
        draw_prompt(ImageDraw.Draw(picture), prompt, 0, 2.0, (40, 60))
        pictures.append(picture.tobytes())
        answer = Prediction("a thing", np.zeros((0, 20, 30), bool), np.zeros((20, 30, 3), np.uint8), prompts=(prompt,))
        records.append(to_record(answer)["prompts"])
    assert len(set(pictures)) == 1 and any(pictures[0])
    assert records[0] == records[1] == records[2]
    assert np.array_equal(coco.decode(records[0][0]["mask"]).astype(bool), mask)


def test_an_empty_prompt_is_told_by_its_name() -> None:
    with pytest.raises(SailError, match="the prompt Mask of <Prompt3> covers nothing of the image"):
        region_mask(Mask(lambda: np.zeros((4, 5), bool), 3), (4, 5))
