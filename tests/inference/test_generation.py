"""Greedy decoding with a shared prefix and a cache says what reading everything anew at each step would say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_harness import SIZES, DenseAttention, chatter, exact_model, ids_of, picture, script, tiny_model
from torch import Tensor

from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.generation import engine, kv_cache, prefix_schedule
from sail_lightning.generation.decode_step import STATIC_AFTER, DecodeStep
from sail_lightning.generation.engine import Generation, generate
from sail_lightning.generation.kv_cache import SlottedKVCache
from sail_lightning.generation.prefix_schedule import MAX_SEQUENCES_PER_ROW
from sail_lightning.generation.stop_rules import (
    REPETITION_MAX_PERIOD,
    REPETITION_MIN_COUNT,
    REPETITION_MIN_MASKS,
    REPETITION_MIN_TOKENS,
    StopRules,
    truncate_repetition,
)
from sail_lightning.interfaces import Backbone, KeyValueCache
from sail_lightning.model.losses import resize
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.attention import SDPAAttention
from sail_lightning.plugins.backbones import EncoderBackbone, EVEv2, SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection, RegionPooling
from sail_lightning.sample import Box, Mask, Point, Sample, Turn
from sail_lightning.sequence.attention_plan import Span

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
"""Images of several sizes, shared with and without prompts, histories, text only, two images."""


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
            if token in tokens.stop_token_ids:
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
    (keys,) = network.mask_features(network.vision_tokens(hidden, batch)[:1], batch.grids[:1], [0], hidden)
    logits = torch.einsum("nc,chw->nhw", network.mask_head.queries(hidden[rows]), keys.maps[0])
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
def passes(model: PixelSAIL) -> Iterator[list[int]]:
    """How many tokens the backbone was given to read, pass by pass."""
    backbone = model.model.backbone
    read: list[int] = []

    def counted(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(embeddings: Tensor, *rest: object) -> Tensor:
            read.append(len(embeddings))
            return original(embeddings, *rest)

        return call

    with (
        patch.object(backbone, "forward", counted(backbone.forward)),
        patch.object(backbone, "decode", counted(backbone.decode)),
    ):
        yield read


class Replay:
    """Stands in for a CUDA graph: does again what was captured, if all that it reads and writes is where it was."""

    def __init__(self, step: DecodeStep, lengths: list[int]) -> None:
        self.step, self.lengths = step, lengths
        self.places = self.addresses()
        self.output: Tensor | None = None
        self.count = 0

    def addresses(self) -> list[int]:
        step = self.step
        fixed = [step.ids, step.positions, step.attend_mask, step.slots, step.strides, step.row]
        layers = [tensor for pair in step.cache.layers for tensor in pair]
        return [tensor.data_ptr() for tensor in (*fixed, *layers)]

    def replay(self) -> None:
        assert self.addresses() == self.places
        state = self.step._run(self.lengths)
        self.count += 1
        assert self.step._output is not None
        self.step._output.resize_as_(state).copy_(state)


@contextmanager
def replays() -> Iterator[list[Replay]]:
    """Static steps are captured, as on CUDA."""
    graphs: list[Replay] = []

    def capture(step: DecodeStep, lengths: list[int]) -> None:
        graphs.append(Replay(step, lengths))
        step._graph, step._output = graphs[-1], torch.empty(0, dtype=torch.float64)  # type: ignore[assignment]

    with patch.object(DecodeStep, "captures", True), patch.object(DecodeStep, "_capture", capture):
        yield graphs


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


def backbones() -> list[Backbone]:
    return [EVEv2(**SIZES, mm_hidden_size=12), EncoderBackbone("test_vit", **SIZES, activation_checkpointing=True)]


@pytest.mark.parametrize("kind", [0, 1], ids=["EVEv2", "EncoderBackbone"])
def test_other_backbones_answer_together_what_reading_everything_anew_says(kind: int) -> None:
    prompts = PromptInjection(num_prompts=4, projection=kind == 1)
    model = exact_model(prompt_encoder=prompts, backbone=backbones()[kind], max_side=48)
    with chatter(model):
        together = answered(model, *SAMPLES)
        assert all(same(item, read_anew(model, sample, 12)) for item, sample in zip(together, SAMPLES, strict=True))
    assert len({tuple(item.ids) for item in together}) > 3


POOL = tuple(
    Sample(image, (*history, Turn(f"{verb} the {word} circle.")))
    for image in (None, SHARED, picture(5, 8, 60), picture(6, 32, 32))
    for history, verb, word in (
        ((), "segment", "red"),
        ((), "find the picture of", "blue"),
        (HISTORY, "is it", "green"),
    )
)
"""Questions on three images and on none, short and long."""


@pytest.fixture(scope="module")
def one_at_a_time(model: PixelSAIL) -> list[tuple[Generation, list[Tensor]]]:
    """Answers to `POOL`, and the states that their masks are made of."""
    with chatter(model):
        return [with_states(model, [sample])[0] for sample in POOL]


def with_states(model: PixelSAIL, samples: list[Sample], static: bool = False) -> list[tuple[Generation, list[Tensor]]]:
    states: list[list[Tensor]] = []

    def decode(*arguments: object) -> object:
        found = original(*arguments)
        states.extend(answer.seg_states for answer in found)
        return found

    original = engine._decode
    with patch.object(engine, "_decode", decode):
        answers = generate(model.model, model.tokens, encoded(model, *samples), 12, static)
    return list(zip(answers, states, strict=True))


@settings(max_examples=25)
@given(st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=24), st.booleans(), st.sampled_from([1, 2, 64]))
def test_any_mixture_is_answered_as_one_at_a_time(
    model: PixelSAIL,
    one_at_a_time: list[tuple[Generation, list[Tensor]]],
    chosen: list[int],
    static: bool,
    capacity: int,
) -> None:
    with (
        chatter(model),
        patch.object(engine, "INITIAL_DECODE_CAPACITY", capacity),
        patch.object(kv_cache, "BLOCK", 8),  # so that the cache grows
        patch.object(prefix_schedule, "MAX_SEQUENCES_PER_ROW", 4),
    ):
        together = with_states(model, [POOL[place] for place in chosen], static)
    for place, (found, states) in zip(chosen, together, strict=True):
        alone, wanted = one_at_a_time[place]
        assert same(found, alone)
        torch.testing.assert_close(states, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("static", [False, True])
def test_more_questions_on_an_image_than_a_row_takes(static: bool, model: PixelSAIL) -> None:
    words = ("red", "blue", "green", "large", "small")
    samples = [
        Sample(SHARED, (Turn(f"{verb} the {a} {b}."),)) for verb in ("segment", "find") for a in words for b in words
    ]
    samples = samples[: MAX_SEQUENCES_PER_ROW + 4]
    with chatter(model), caches() as made:
        together = generate(model.model, model.tokens, encoded(model, *samples), 12, static)
        assert all(same(item, answered(model, sample)[0]) for item, sample in zip(together, samples, strict=True))
    assert made[0] == 2
    assert len({tuple(item.ids) for item in together}) > 10


@contextmanager
def caches() -> Iterator[list[int]]:
    """The rows of each cache that is made."""
    rows: list[int] = []

    def make(count: int, capacity: int) -> SlottedKVCache:
        rows.append(count)
        return SlottedKVCache(count, capacity)

    with patch.object(engine, "SlottedKVCache", make):
        yield rows


def test_keys_of_an_image_are_kept_once_for_all_questions_on_it(model: PixelSAIL) -> None:
    questions = [Sample(SHARED, (Turn(f"segment the {word} circle."),)) for word in ("red", "blue", "green")]
    other = Sample(picture(5, 8, 60), (Turn("segment the circle."),))
    with script(model), caches() as made:
        answered(model, *questions, other, *questions)
    assert made == [2]


@pytest.mark.parametrize("static", [False, True])
def test_rows_of_answers_that_ended_leave_the_cache_but_rarely(static: bool, model: PixelSAIL) -> None:
    samples = [Sample(picture(seed, 16, 24), (Turn("segment the red circle."),)) for seed in range(16)]
    left: list[int] = []

    def select(own: SlottedKVCache, rows: Tensor) -> None:
        left.append(len(rows))
        original(own, rows)

    original = SlottedKVCache.select
    with chatter(model), patch.object(SlottedKVCache, "select", select):
        together = generate(model.model, model.tokens, encoded(model, *samples), 20, static)
    with chatter(model):
        assert all(same(item, answered(model, one, limit=20)[0]) for item, one in zip(together, samples, strict=True))
    before = [16, *left]
    assert left and all(2 * after <= rows for rows, after in itertools.pairwise(before))


def varied(model: PixelSAIL, count: int) -> list[int]:
    """Words that do not repeat."""
    words = ids_of(model, "a", "red", "circle", ".", "<p>", "</p>")
    return [words[(3 * place + place // 7) % len(words)] for place in range(count)]


@pytest.mark.parametrize("static", [False, True])
def test_the_cache_grows_by_doubling_when_answers_are_long(static: bool, model: PixelSAIL) -> None:
    grown: list[int] = []

    def grow(own: SlottedKVCache, capacity: int) -> None:
        before = own.capacity
        original(own, capacity)
        grown.append(own.capacity)
        assert own.capacity >= 2 * before

    original = SlottedKVCache.grow
    said = varied(model, 60)
    with (
        patch.object(engine, "INITIAL_DECODE_CAPACITY", 1),
        patch.object(kv_cache, "BLOCK", 8),
        patch.object(SlottedKVCache, "grow", grow),
        script(model, *said),
        replays() as graphs,
    ):
        found = generate(model.model, model.tokens, encoded(model, *SAMPLES[:4]), 60, static)
    assert [item.ids for item in found] == [said] * 4
    assert 2 <= len(grown) <= 4
    assert len(graphs) == (len(grown) + 1 if static else 0)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_answers_in_bfloat16(how: str) -> None:
    model = tiny_model()
    model = model.bfloat16() if how == "bfloat16" else model
    with script(model, model.tokens.seg, *ids_of(model, "red")), torch.autocast("cpu", enabled=how == "autocast"):
        found = answered(model, *SAMPLES[:6])
    assert [item.masks.shape for item in found] == [(1, 24, 40)] * 5 + [(1, 50, 17)]
    assert [item.ids for item in found] == [[model.tokens.seg, *ids_of(model, "red")]] * 6


def test_a_captured_step_is_replayed_until_the_batch_changes(model: PixelSAIL) -> None:
    samples = [*SAMPLES, *(Sample(picture(seed, 16, 24), (Turn("segment the red circle."),)) for seed in range(6))]
    with chatter(model), replays() as graphs:
        together = generate(model.model, model.tokens, encoded(model, *samples), 30, True)
    with chatter(model):
        assert all(same(item, answered(model, one, limit=30)[0]) for item, one in zip(together, samples, strict=True))
    assert len(graphs) > 1 and max(graph.count for graph in graphs) > 2


def test_long_answers_are_captured_by_default(model: PixelSAIL) -> None:
    with script(model, *varied(model, 20)), replays() as graphs:
        (found,) = answered(model, SAMPLES[0], limit=40)
    with script(model, *varied(model, 20)):
        assert same(found, answered(model, SAMPLES[0], limit=40)[0])
    (graph,) = graphs
    assert graph.count == 20 - STATIC_AFTER - 1  # the first of the static steps makes ready


@pytest.mark.gpu
class TestOnCUDA:
    """Kernels and graphs, where there are any."""

    @pytest.fixture(scope="class")
    def model(self) -> PixelSAIL:
        return exact_model(backbone=SailQwen(**SIZES, attention=SDPAAttention())).cuda()

    @pytest.mark.parametrize("static", [False, True, None])
    def test_answers_are_those_of_one_at_a_time(self, model: PixelSAIL, static: bool | None) -> None:
        samples = [*SAMPLES, *POOL]
        with chatter(model):
            together = generate(model.model, model.tokens, encoded(model, *samples), 40, static)
            for item, sample in zip(together, samples, strict=True):
                (alone,) = generate(model.model, model.tokens, encoded(model, sample), 40, False)
                assert same(item, alone)

    def test_a_static_step_is_captured(self, model: PixelSAIL) -> None:
        captured: list[bool] = []

        def capture(step: DecodeStep, lengths: list[int]) -> None:
            original(step, lengths)
            captured.append(step._graph is not None)

        original = DecodeStep._capture
        with chatter(model), patch.object(DecodeStep, "_capture", capture):
            generate(model.model, model.tokens, encoded(model, *SAMPLES), 40, True)
        assert captured and all(captured)

    def test_a_backbone_that_waits_for_the_device_goes_without_a_graph(
        self, model: PixelSAIL, caplog: pytest.LogCaptureFixture
    ) -> None:
        backbone = model.model.backbone
        decode = backbone.decode

        def waiting(embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
            assert int(positions.max()) > 0
            return decode(embeddings, positions, kv_cache)

        with chatter(model):
            wanted = generate(model.model, model.tokens, encoded(model, *SAMPLES), 12, False)
            with patch.object(backbone, "decode", waiting), caplog.at_level("WARNING"):
                found = generate(model.model, model.tokens, encoded(model, *SAMPLES), 12, True)
        assert all(same(*pair) for pair in zip(found, wanted, strict=True))
        assert "cannot be captured in a CUDA graph" in caplog.text

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("static", [False, True])
    def test_answers_on_the_training_kernel(self, dtype: torch.dtype, static: bool) -> None:
        sizes = SIZES | {"hidden_size": 128}
        model = tiny_model(backbone=SailQwen(**sizes)).to("cuda", dtype)
        items = encoded(model, *SAMPLES)
        found = generate(model.model, model.tokens, items, 16, static)
        again = generate(model.model, model.tokens, items, 16, static)
        assert [item.ids for item in found] == [item.ids for item in again]


# -- the prefix -------------------------------------------------------------------------------------------------------


def test_an_image_is_read_once_for_all_questions_on_it(model: PixelSAIL) -> None:
    other = picture(1, 16, 16)
    questions = [Sample(SHARED, (Turn(f"segment the {word} circle."),)) for word in ("red", "blue", "green")]
    items = encoded(model, *questions, Sample(other, (Turn("segment the circle."),)))
    with script(model, model.tokens.seg), passes(model) as read:
        generate(model.model, model.tokens, items, 3)
    prefix = 3 * 5 + 2
    assert [item.sequence.prefix for item in items[:3]] == [prefix] * 3
    assert read == [prefix + len(items[3]), sum(len(item) - prefix for item in items[:3]), 4]


def test_an_image_is_embedded_once_for_all_questions_on_it(model: PixelSAIL) -> None:
    with patch.object(model.model.backbone, "embed_patches", wraps=model.model.backbone.embed_patches) as embed:
        answered(model, *SAMPLES, limit=1)
    (call,) = embed.call_args_list
    patches, grids = call.args
    assert sorted(grids) == [(1, 1), *[(2, 3)] * 2, *[(3, 5)] * 3, *[(5, 3)] * 2, (7, 3)]
    assert len(patches) == sum(rows * columns for rows, columns in grids)


def test_an_image_is_read_once_for_each_set_of_prompts_on_it(model: PixelSAIL) -> None:
    items = encoded(model, *SAMPLES[:5])
    with script(model, model.tokens.seg), passes(model) as read:
        generate(model.model, model.tokens, items, 12)
    prefix = 3 * 5 + 2  # read without a prompt, with the box, and with the point, which one question has
    assert read == [2 * prefix + len(items[4]), sum(len(item) - prefix for item in items[:4]), 5]


def test_equal_patches_of_images_of_different_sizes_give_masks_of_each_size(model: PixelSAIL) -> None:
    flat = [np.full((height, width, 3), 90, np.uint8) for height, width in ((24, 32), (48, 64))]
    model.max_side = 32
    samples = [Sample(image, (Turn("segment the circle."),)) for image in flat]
    with script(model, model.tokens.seg), passes(model) as read:
        found = answered(model, *samples)
        suffix = sum(len(item) - item.sequence.prefix for item in encoded(model, *samples))
    model.max_side = 1024
    assert [item.masks.shape for item in found] == [(1, 24, 32), (1, 48, 64)]
    assert read[0] == 3 * 4 + 2 and read[1] == suffix


def test_only_images_that_own_a_mask_are_upsampled(model: PixelSAIL, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    upsampler = model.model.upsampler
    original = upsampler.apply_head

    def apply_head(features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        seen.append(len(features))
        return original(features, head)

    monkeypatch.setattr(upsampler, "apply_head", apply_head)
    with script(model, *ids_of(model, "red")):
        answered(model, *SAMPLES)
    assert seen == []
    with chatter(model):
        found = answered(model, SAMPLES[0], SAMPLES[1], SAMPLES[5], SAMPLES[6])
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


def test_a_seg_without_an_image_has_no_mask(model: PixelSAIL) -> None:
    with script(model, model.tokens.seg):
        first, second = answered(model, SAMPLES[7], SAMPLES[0])
    assert first.ids == second.ids == [model.tokens.seg]
    assert (len(first.masks), len(second.masks)) == (0, 1)


def test_masks_belong_to_the_first_of_several_images(model: PixelSAIL) -> None:
    with script(model, model.tokens.seg):
        assert answered(model, SAMPLES[8])[0].masks.shape == (1, 16, 24)


def test_an_answer_ends_at_the_end_of_a_turn(model: PixelSAIL) -> None:
    with script(model, *ids_of(model, "red"), model.tokens.ids["<|im_end|>"], *ids_of(model, "circle")):
        (found,) = answered(model, SAMPLES[0])
    assert found.ids == ids_of(model, "red") and found.finish == "end"


# -- stop rules -------------------------------------------------------------------------------------------------------


def test_a_repetition_is_truncated_to_its_first_copy(model: PixelSAIL) -> None:
    first, block = ids_of(model, "a"), ids_of(model, "red", "circle")
    with script(model, *first, *block * 50), passes(model) as read:
        (found,) = answered(model, SAMPLES[0], limit=100)
    assert found.ids == first + block and found.finish == "loop"
    assert len(read) == 1 + REPETITION_MIN_TOKENS, "decoding stops where the repetition is found"


def test_masks_of_a_truncated_repetition_are_dropped(model: PixelSAIL) -> None:
    seg, dot = model.tokens.seg, ids_of(model, ".")
    with script(model, *[seg, *dot] * 200):
        (found,) = answered(model, SAMPLES[0], limit=300)
    with script(model, seg):
        (one,) = answered(model, SAMPLES[0])
    assert found.ids == [seg, *dot] and found.finish == "loop"
    assert np.array_equal(found.masks, one.masks)


def test_a_long_list_of_masks_is_no_repetition(model: PixelSAIL) -> None:
    said = [model.tokens.seg, *ids_of(model, ".")] * (REPETITION_MIN_MASKS - 1)
    with script(model, *said):
        (found,) = answered(model, SAMPLES[0], limit=100)
    assert found.ids == said and len(found.masks) == REPETITION_MIN_MASKS - 1 and found.finish == "end"


def test_others_are_answered_while_one_repeats_itself(model: PixelSAIL) -> None:
    word, end = ids_of(model, "red")[0], model.tokens.end
    size = len(model.tokens)

    def logits(hidden: Tensor) -> Tensor:
        tokens = torch.full((len(hidden),), word)
        tokens[1:] = end
        return torch.nn.functional.one_hot(tokens, size).to(hidden.dtype)

    model.model.backbone.logits = logits
    try:
        loop, short = answered(model, SAMPLES[5], SAMPLES[0], limit=60)  # the longer row is the first
    finally:
        del model.model.backbone.logits
    assert (loop.ids, loop.finish) == ([word], "loop") and (short.ids, short.finish) == ([], "end")


SEG, END, WORD = 9, 8, 1


@pytest.mark.parametrize(
    ("token", "new_tokens", "finish", "ids"),
    [
        (WORD, 0, None, [5, WORD]),
        (END, 0, "end", [5]),
        (WORD, 2, "length", [5, WORD]),
        (SEG, 2, None, [5, SEG]),
        (WORD, 3, "length", [5]),
        (END, 3, "end", [5]),
    ],
    ids=["goes on", "stop token", "last token allowed", "last is [SEG]", "behind the limit", "stop token at the limit"],
)
def test_an_answer_ends_at_a_stop_token_or_at_its_limit(
    token: int, new_tokens: int, finish: str | None, ids: list[int]
) -> None:
    answer = [5]
    assert StopRules({END}, SEG, max_new_tokens=3).append(token, answer, new_tokens) == finish
    assert answer == ids


@pytest.mark.parametrize("stops", [True, False])
def test_an_answer_that_repeats_itself_ends_if_that_is_wanted(stops: bool) -> None:
    answer = [5, *[WORD] * (REPETITION_MIN_TOKENS - 1)]
    rules = StopRules({END}, SEG, max_new_tokens=100, stop_on_repetition=stops)
    assert rules.append(WORD, answer, REPETITION_MIN_TOKENS) == ("loop" if stops else None)
    assert answer == [5, *[WORD] * (1 if stops else REPETITION_MIN_TOKENS)]


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), min_size=1, max_size=REPETITION_MAX_PERIOD))
def test_what_is_truncated_was_repeated(first: list[int], block: list[int]) -> None:
    ids = first + block * max(REPETITION_MIN_COUNT, REPETITION_MIN_TOKENS)
    whole = list(ids)
    assert truncate_repetition(ids, seg=9)
    assert ids == whole[: len(ids)]
    dropped = whole[len(ids) :]
    period = next(p for p in range(1, REPETITION_MAX_PERIOD + 1) if dropped == (ids[-p:] * len(whole))[: len(dropped)])
    assert len(dropped) >= (REPETITION_MIN_COUNT - 1) * period


@given(st.lists(st.integers(0, 2), max_size=REPETITION_MIN_TOKENS - 1))
def test_short_repeats_such_as_those_of_digits_are_kept(ids: list[int]) -> None:
    kept = list(ids)
    assert not truncate_repetition(ids, seg=9) and ids == kept
