"""Greedy decoding with a shared prefix and a cache says what reading everything anew at each step would say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inference_harness import DenseAttention, chatter, exact_model, ids_of, picture, script, tiny_model
from torch import Tensor

from sail_lightning.data.collate import pack
from sail_lightning.data.sample import Box, Mask, Point, Sample, Turn
from sail_lightning.data.transform import EncodedSample
from sail_lightning.generation import (
    LOOP_BLOCK,
    LOOP_MASKS,
    LOOP_REPEATS,
    LOOP_TOKENS,
    Generation,
    _prefix_mask,
    cut_loop,
    generate,
)
from sail_lightning.losses import resize
from sail_lightning.model import MaskHead
from sail_lightning.module import PixelSAIL
from sail_lightning.plan import AttentionPlan, Span
from sail_lightning.plugins.prompt_encoders import RegionPooling

SHARED = picture(0, 24, 40)
HISTORY = (Turn("segment the red circle.", "it is [SEG]."), Turn("what is it ?", "a circle."))
SAMPLES = (
    Sample(SHARED, (Turn("segment the red circle."),)),
    Sample(SHARED, (Turn("what is in the picture ?"),)),
    Sample(SHARED, (Turn("describe <Prompt1> ."),), prompts=(Box(2, 3, 20, 20, id=1),)),
    Sample(SHARED, (Turn("what is <Prompt1> ?"),), prompts=(Box(2, 3, 20, 20, id=1),)),
    Sample(SHARED, (Turn("what is <Prompt1> ?"),), prompts=(Point(30, 5, id=1),)),
    Sample(picture(1, 50, 17), (Turn("segment the large square."),)),
    Sample(picture(2, 8, 8), (*HISTORY, Turn("segment the blue triangle."))),
    Sample(None, (Turn("segment the red circle."),)),
    Sample((picture(3, 16, 24), picture(4, 40, 24)), (Turn("segment the circle."),)),
    Sample(
        (picture(4, 40, 24), picture(3, 16, 24)),
        (*HISTORY[:1], Turn("segment <Prompt0> .")),
        prompts=(Mask(np.eye(40, 24, dtype=bool)),),
    ),
)
"""Pictures of several sizes, shared with and without prompts, histories, text only, two pictures."""


@pytest.fixture(scope="module")
def model() -> PixelSAIL:
    return exact_model()


def encoded(model: PixelSAIL, *samples: Sample) -> list[EncodedSample]:
    return [model.encoder.encode(sample, answers=False) for sample in samples]


def answered(model: PixelSAIL, *samples: Sample, limit: int = 12) -> list[Generation]:
    return generate(model.model, model.tokens, encoded(model, *samples), limit)


def same(left: Generation, right: Generation) -> bool:
    return left.ids == right.ids and np.array_equal(left.masks, right.masks) and left.finish == right.finish


@torch.no_grad()
def read_anew(model: PixelSAIL, sample: Sample, limit: int) -> Generation:
    """The definition: the whole sequence, packed as in training, is read from its start at every step."""
    network, tokens = model.model, model.tokens
    (item,) = encoded(model, sample)
    kernel, network.backbone.attention = network.backbone.attention, DenseAttention()
    try:
        ids: list[int] = []
        finish = "length"
        while True:
            longer = extended(item, ids)
            batch = pack([longer])
            hidden = network.backbone(network.embed(batch), batch.positions, batch.plan, batch.vision)
            token = int(network.backbone.logits(hidden[-1]).argmax())
            if token in tokens.stops:
                finish = "end" if len(ids) < limit or ids[-1] == tokens.seg else finish
                break
            if len(ids) == limit:
                break
            ids.append(token)
    finally:
        network.backbone.attention = kernel
    size = longer.image_size
    if size is None:
        return Generation(ids, np.zeros((0, 0, 0), bool), finish)
    rows = [len(item) + place for place, id in enumerate(ids) if id == tokens.seg]
    (group,) = network.mask_features(network.vision_tokens(hidden, batch)[:1], batch.grids[:1], [0], hidden)
    logits = MaskHead.logits(network.mask_head.queries(hidden[rows]), group.maps[0])
    return Generation(ids, (resize(logits.float(), size) > 0).numpy().astype(bool).reshape(-1, *size), finish)


def extended(item: EncodedSample, ids: list[int]) -> EncodedSample:
    """A sample with generated ids behind it."""
    sequence = item.sequence
    steps = sequence.next_position + np.arange(len(ids))
    longer = replace(
        sequence,
        ids=np.concatenate([sequence.ids, np.asarray(ids, np.int64)]),
        positions=np.concatenate([sequence.positions, np.tile(steps, (3, 1))], 1),
        spans=(*sequence.spans, Span("text", len(ids))),
        vision=np.concatenate([sequence.vision, np.zeros(len(ids), bool)]),
    )
    return replace(item, sequence=longer, seg_rows=np.empty(0, np.int64))


@contextmanager
def decode_calls(model: PixelSAIL) -> Iterator[list[torch.Size]]:
    """Shapes (B, S, D) of what the backbone was given to read."""
    backbone = model.model.backbone
    original, shapes = backbone.decode, []

    def decode(embeddings: Tensor, *rest: object) -> Tensor:
        shapes.append(embeddings.shape)
        return original(embeddings, *rest)

    backbone.decode = decode
    try:
        yield shapes
    finally:
        del backbone.decode


# -- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(len(SAMPLES)))
def test_an_answer_is_that_of_reading_everything_anew_at_each_step(place: int, model: PixelSAIL) -> None:
    with chatter(model):
        assert same(answered(model, SAMPLES[place])[0], read_anew(model, SAMPLES[place], 12))


def test_the_answers_under_test_differ_in_length_and_number_of_masks(model: PixelSAIL) -> None:
    with chatter(model):
        found = answered(model, *SAMPLES)
    assert len({len(item.ids) for item in found}) > 3
    assert {0, 1, 2} <= {len(item.masks) for item in found}
    assert {item.finish for item in found} == {"end", "length"}
    assert sum(item.masks.any() and not item.masks.all() for item in found) >= 3


@pytest.mark.parametrize("order", [range(len(SAMPLES)), reversed(range(len(SAMPLES))), [0, 0, 7, 7], [7], [4, 2]])
def test_answers_together_are_those_of_one_at_a_time(order: range, model: PixelSAIL) -> None:
    samples = [SAMPLES[place] for place in order]
    with chatter(model):
        together = answered(model, *samples)
        alone = [answered(model, sample)[0] for sample in samples]
    assert len(together) == len(samples)
    assert [same(left, right) for left, right in zip(together, alone, strict=True)] == [True] * len(samples)


def test_prompts_that_enter_in_the_text_are_read_alike() -> None:
    model = exact_model(prompt_encoder=RegionPooling(num_prompts=4))
    with chatter(model):
        together = answered(model, *SAMPLES)
        assert all(same(item, read_anew(model, sample, 12)) for item, sample in zip(together, SAMPLES, strict=True))


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_the_limit_only_shortens_an_answer(limit: int, model: PixelSAIL) -> None:
    with chatter(model):
        long, short = answered(model, *SAMPLES), answered(model, *SAMPLES, limit=limit)
    for whole, cut in zip(long, short, strict=True):
        assert cut.ids == whole.ids[:limit]
        assert np.array_equal(cut.masks, whole.masks[: len(cut.masks)])
        assert len(cut.masks) == (cut.ids.count(model.tokens.seg) if cut.masks.shape[1] else 0)


def test_no_question_has_no_answer(model: PixelSAIL) -> None:
    assert generate(model.model, model.tokens, [], 4) == []


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_answers_in_bfloat16(how: str) -> None:
    model = tiny_model()
    model = model.bfloat16() if how == "bfloat16" else model
    with script(model, model.tokens.seg, *ids_of(model, "red")), torch.autocast("cpu", enabled=how == "autocast"):
        found = answered(model, *SAMPLES[:6])
    assert [item.masks.shape for item in found] == [(1, 24, 40)] * 5 + [(1, 50, 17)]
    assert [item.ids for item in found] == [[model.tokens.seg, *ids_of(model, "red")]] * 6


# -- the prefix -------------------------------------------------------------------------------------------------------


def test_a_picture_is_read_once_for_all_questions_on_it(model: PixelSAIL) -> None:
    other = picture(1, 16, 16)
    questions = [Sample(SHARED, (Turn(f"segment the {word} circle."),)) for word in ("red", "blue", "green")]
    items = encoded(model, *questions, Sample(other, (Turn("segment the circle."),)))
    with script(model, model.tokens.seg), decode_calls(model) as shapes:
        generate(model.model, model.tokens, items, 3)
    patches = 3 * 5 + 2
    assert [tuple(shape[:2]) for shape in shapes] == [(2, patches), (4, len(items[0]) - patches), (4, 1)]


def test_a_picture_is_read_once_for_each_set_of_prompts_on_it(model: PixelSAIL) -> None:
    with script(model, model.tokens.seg), decode_calls(model) as shapes:
        answered(model, *SAMPLES[:5])
    assert [shape[0] for shape in shapes] == [3, 5, 5]  # no prompt, the box, the point


def test_equal_patches_of_pictures_of_different_sizes_give_masks_of_each_size(model: PixelSAIL) -> None:
    flat = [np.full((height, width, 3), 90, np.uint8) for height, width in ((24, 32), (48, 64))]
    model.max_side = 32
    with script(model, model.tokens.seg), decode_calls(model) as shapes:
        found = answered(model, *(Sample(image, (Turn("segment the circle."),)) for image in flat))
    model.max_side = 1024
    assert [item.masks.shape for item in found] == [(1, 24, 32), (1, 48, 64)]
    assert shapes[0][0] == 1


def test_the_prefix_mask_is_the_rule_for_several_pictures(model: PixelSAIL) -> None:
    items = encoded(model, SAMPLES[8], SAMPLES[0], SAMPLES[7])
    lengths = [len(item) - item.sequence.spans[-1].length for item in items]
    width = max(lengths)
    mask = _prefix_mask(items, lengths, range(3), width, torch.device("cpu"))
    for place, (item, length) in enumerate(zip(items, lengths, strict=True)):
        dense = AttentionPlan.build([list(item.sequence.spans)]).dense_mask()
        assert torch.equal(mask[place, 0, :length, :length], dense[:length, :length])
        assert not mask[place, 0, :length, length:].any()
    assert mask.any(-1).all(), "a padded row without any key would be NaN"


def test_only_pictures_that_own_a_mask_are_upsampled(model: PixelSAIL) -> None:
    seen: list[int] = []
    handle = model.model.upsampler.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with script(model, *ids_of(model, "red")):
        answered(model, *SAMPLES)
    assert seen == []
    with chatter(model):
        found = answered(model, SAMPLES[0], SAMPLES[1], SAMPLES[5], SAMPLES[6])
    handle.remove()
    pictures = {("shared" if place < 2 else place) for place, item in enumerate(found) if len(item.masks)}
    assert sum(seen) == len(pictures) > 0


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_seg_has_a_mask_and_no_other_word_has(count: int, model: PixelSAIL) -> None:
    word = ids_of(model, "red")
    with script(model, *[*word, model.tokens.seg, *word] * count, *word):
        (found,) = answered(model, SAMPLES[0], limit=40)
    assert found.ids.count(model.tokens.seg) == count and found.finish == "end"
    assert found.masks.shape == (count, 24, 40) and found.masks.dtype == bool


@pytest.mark.parametrize("limit", [1, 4])
def test_a_seg_that_is_the_last_allowed_token_has_its_mask(limit: int, model: PixelSAIL) -> None:
    said = [*ids_of(model, "red", "circle", "."), model.tokens.seg][-limit:]
    with script(model, *said, *ids_of(model, "red")):
        (found,) = answered(model, SAMPLES[0], limit=limit)
    with script(model, *said):
        (free,) = answered(model, SAMPLES[0], limit=20)
    assert found.ids == said and found.finish == "length"
    assert np.array_equal(found.masks, free.masks) and len(found.masks) == 1


def test_a_seg_without_a_picture_has_no_mask(model: PixelSAIL) -> None:
    with script(model, model.tokens.seg):
        first, second = answered(model, SAMPLES[7], SAMPLES[0])
    assert first.ids == second.ids == [model.tokens.seg]
    assert (len(first.masks), len(second.masks)) == (0, 1)


def test_masks_belong_to_the_first_of_several_pictures(model: PixelSAIL) -> None:
    with script(model, model.tokens.seg):
        assert answered(model, SAMPLES[8])[0].masks.shape == (1, 16, 24)


def test_an_answer_ends_at_the_end_of_a_turn(model: PixelSAIL) -> None:
    with script(model, *ids_of(model, "red"), model.tokens.ids["<|im_end|>"], *ids_of(model, "circle")):
        (found,) = answered(model, SAMPLES[0])
    assert found.ids == ids_of(model, "red") and found.finish == "end"


# -- the loop guard ---------------------------------------------------------------------------------------------------


def test_a_loop_is_cut_to_the_first_copy_of_what_it_repeats(model: PixelSAIL) -> None:
    first, block = ids_of(model, "a"), ids_of(model, "red", "circle")
    with script(model, *first, *block * 50), decode_calls(model) as shapes:
        (found,) = answered(model, SAMPLES[0], limit=100)
    assert found.ids == first + block and found.finish == "loop"
    assert len(shapes) == 2 + LOOP_TOKENS, "decoding stops where the loop is seen"


def test_a_loop_takes_its_masks_along(model: PixelSAIL) -> None:
    seg, dot = model.tokens.seg, ids_of(model, ".")
    with script(model, *[seg, *dot] * 200):
        (found,) = answered(model, SAMPLES[0], limit=300)
    with script(model, seg):
        (one,) = answered(model, SAMPLES[0])
    assert found.ids == [seg, *dot] and found.finish == "loop"
    assert np.array_equal(found.masks, one.masks)


def test_a_long_list_of_masks_is_no_loop(model: PixelSAIL) -> None:
    said = [model.tokens.seg, *ids_of(model, ".")] * (LOOP_MASKS - 1)
    with script(model, *said):
        (found,) = answered(model, SAMPLES[0], limit=100)
    assert found.ids == said and len(found.masks) == LOOP_MASKS - 1 and found.finish == "end"


def test_others_are_answered_while_one_loops(model: PixelSAIL) -> None:
    word, end = ids_of(model, "red")[0], model.tokens.end
    size = len(model.tokens)

    def logits(hidden: Tensor) -> Tensor:
        tokens = torch.full((len(hidden),), word)
        tokens[1:] = end
        return torch.nn.functional.one_hot(tokens, size)

    model.model.backbone.logits = logits
    try:
        loop, short = answered(model, SAMPLES[0], SAMPLES[5], limit=60)
    finally:
        del model.model.backbone.logits
    assert (loop.ids, loop.finish) == ([word], "loop") and (short.ids, short.finish) == ([], "end")


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), min_size=1, max_size=LOOP_BLOCK))
def test_what_is_cut_was_repeated(first: list[int], block: list[int]) -> None:
    ids = first + block * max(LOOP_REPEATS, LOOP_TOKENS)
    whole = list(ids)
    assert cut_loop(ids, seg=9)
    assert ids == whole[: len(ids)]
    period = next(
        p for p in range(1, LOOP_BLOCK + 1) if whole[len(ids) :] == (ids[-p:] * len(whole))[: len(whole) - len(ids)]
    )
    assert len(whole) - len(ids) >= (LOOP_REPEATS - 1) * period


@given(st.lists(st.integers(0, 2), max_size=LOOP_TOKENS - 1))
def test_short_repeats_such_as_those_of_digits_are_kept(ids: list[int]) -> None:
    kept = list(ids)
    assert not cut_loop(ids, seg=9) and ids == kept
