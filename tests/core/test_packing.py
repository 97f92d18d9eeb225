"""Records to packed batches: nothing leaks between samples, every index is exact, every error names its record.

Indices are recomputed from the words and pixels, token by token and pixel by pixel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from tiny_sail import blob, picture, records, tiny

from sail_lightning.encoding.collate import pack, pack_stream
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import (
    load_image,
    load_mask,
    patch_coverage,
    patchify,
    region_mask,
    resized_size,
)
from sail_lightning.sample import Box, Mask, Point, Prompt, Sample, Scribble, Turn
from sail_lightning.sequence.layout import ImageLayout, SequenceBuilder
from sail_lightning.sequence.tokenizer import SailTokenizer

VECTORS = json.loads((Path(__file__).parents[1] / "golden" / "eval_vectors.json").read_text())["preprocessing"]
PATCH, MAX_SIDE = 8, 40
MODEL = tiny(max_side=MAX_SIDE).eval()
ENCODER = MODEL.encoder
TOKENS = ENCODER.tokens


# -- random records ---------------------------------------------------------------------------------------------------

sides = st.integers(1, 60)
seeds = st.integers(0, 10**6)
words = st.lists(st.sampled_from(["red", "circle", "the", "left", "of", "square", "?"]), min_size=1, max_size=5)


@st.composite
def prompts_for(draw: st.DrawFn, height: int, width: int) -> Prompt:
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    kind = draw(st.sampled_from(["box", "point", "mask", "scribble"]))
    if kind == "box":
        return Box(x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height)))
    if kind == "point":
        return Point(x + 0.5, y + 0.25)
    if kind == "mask":
        return Mask(blob(height, width, draw(seeds)))
    return Scribble(((x, y), (draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1)))))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Words alone, one image or two; up to two prompts and any number of masks where there is an image."""
    sizes = draw(st.lists(st.tuples(sides, sides), max_size=2))
    images = tuple(picture(height, width, draw(seeds)) for height, width in sizes)
    prompts: tuple[Prompt, ...] = ()
    if sizes:
        ids = draw(st.lists(st.integers(0, 3), unique=True, max_size=2))
        prompts = tuple(replace(draw(prompts_for(*sizes[0])), id=id) for id in ids)
    turns, targets = [], 0
    for _ in range(draw(st.integers(1, 3))):
        named = draw(st.lists(st.sampled_from([f"<Prompt{p.id}>" for p in prompts]), max_size=2)) if prompts else []
        count = draw(st.integers(0, 2)) if sizes else 0
        answer = " ".join([*draw(words), *["[SEG]"] * count])
        turns.append(Turn(" ".join([*draw(words), *named]), answer, "chat", tuple(range(targets, targets + count))))
        targets += count
    masks = tuple(blob(*sizes[0], draw(seeds)) for _ in range(targets))
    image: Any = None if not images else images[0] if len(images) == 1 and draw(st.booleans()) else images
    return Sample(image, tuple(turns), masks, prompts, source="drawn", id=str(draw(seeds)))


batches = st.lists(samples(), min_size=1, max_size=4)


def encoded(batch: Seq[Sample]) -> list[EncodedSample]:
    return [ENCODER.encode(sample) for sample in batch]


# -- a packed batch is its samples ------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(batches)
def test_a_packed_forward_pass_equals_each_sample_alone(batch: list[Sample]) -> None:
    items = encoded(batch)
    with torch.no_grad():
        whole = MODEL.model(pack(items), taps={"vision"})
        alone = [MODEL.model(pack([item]), taps={"vision"}) for item in items]
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(whole.hidden, torch.cat([one.hidden for one in alone]), **close)
    torch.testing.assert_close(whole.logits, torch.cat([one.logits for one in alone]), **close)
    wanted = [maps for one, item in zip(alone, items, strict=True) if item.masks for maps in one.mask_logits]
    ours = whole.mask_logits if wanted else ()
    assert len(ours) == len(wanted)
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, **close)
    maps = {image: map_ for group in whole.vision for image, map_ in zip(group.images, group.maps, strict=True)}
    assert sorted(maps) == list(range(sum(len(item.sequence.grids) for item in items)))


@settings(max_examples=25)
@given(batches)
def test_the_order_of_samples_changes_nothing(batch: list[Sample]) -> None:
    items = encoded(batch)
    with torch.no_grad():
        forth, back = (MODEL.model(pack(order)).hidden for order in (items, items[::-1]))
    lengths = [len(item) for item in items]
    turned = torch.cat(list(back.split(lengths[::-1]))[::-1])
    torch.testing.assert_close(forth, turned, atol=1e-4, rtol=1e-4)


# -- naive recomputation of every index -------------------------------------------------------------------------------


def naive(batch: Seq[Sample]) -> dict[str, Any]:
    """What a packed batch must hold, from one string per sample and loops over its tokens."""
    out: dict[str, Any] = {
        name: []
        for name in (
            *("ids", "patch_rows", "grids", "target_rows", "target_ids", "seg_rows", "seg_image", "seg_counts"),
            *("token_ids", "covered", "mentions", "lengths"),
        )
    }
    start = image = 0
    for sample in batch:
        images = () if sample.image is None else sample.image if isinstance(sample.image, tuple) else (sample.image,)
        text, grids = "", []
        for array in images:
            height, width = resized_size(array.shape[:2], PATCH, MAX_SIDE)
            grids.append((height // PATCH, width // PATCH))
            text += "<vision>" + "<vpatch>" * (height // PATCH) * (width // PATCH) + "</vision>"
        for turn in sample.turns:
            text += f"<|im_start|>user\n{turn.question}<|im_end|>\n{turn.answer}<|endoftext|>"
        tokens = TOKENS.tokenizer.convert_ids_to_tokens(TOKENS.tokenizer.encode(text, add_special_tokens=False))
        ids = TOKENS.tokenizer.convert_tokens_to_ids(tokens)
        out["ids"] += ids
        out["grids"] += grids
        out["lengths"].append(len(tokens))
        answering, own_segs, own_patches = False, 0, []
        for row, token in enumerate(tokens):
            if answering:
                out["target_rows"].append(start + row - 1)
                out["target_ids"].append(ids[row])
            if token == "<|im_end|>":
                answering = True
            elif token == "<|endoftext|>":
                answering = False
            elif token == "[SEG]":
                out["seg_rows"].append(start + row)
                own_segs += 1
            elif token == "<vpatch>":
                own_patches.append(start + row)
        out["patch_rows"] += own_patches
        if own_segs:
            out["seg_image"].append(image)
            out["seg_counts"].append(own_segs)
        for prompt in sample.prompts:
            name = f"<Prompt{prompt.id}>"
            region = len(out["token_ids"])
            out["token_ids"].append(TOKENS.tokenizer.convert_tokens_to_ids(name))
            cells = naive_coverage(naive_region(prompt, images[0].shape[:2]), grids[0], PATCH)
            hit = [
                own_patches[r * grids[0][1] + c] for r in range(grids[0][0]) for c in range(grids[0][1]) if cells[r, c]
            ]
            out["covered"] += [(region, row) for row in hit]
            out["mentions"] += [(region, start + row) for row, token in enumerate(tokens) if token == name]
        start += len(tokens)
        image += len(images)
    return out


def naive_region(prompt: Prompt, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a region, one at a time: those that a box cuts, the one under a point; scribbles as drawn."""
    covered = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            if isinstance(prompt, Box):
                covered[y, x] = x < prompt.x1 and x + 1 > prompt.x0 and y < prompt.y1 and y + 1 > prompt.y0
            elif isinstance(prompt, Point):
                covered[y, x] = x <= prompt.x < x + 1 and y <= prompt.y < y + 1
    if isinstance(prompt, Mask):
        return np.asarray(prompt.mask)
    return region_mask(prompt, size) if isinstance(prompt, Scribble) else covered


def naive_cells(old: int, cells: int, patch: int) -> list[set[int]]:
    """For each pixel along a side, the cells it belongs to: those that read it when the side is resized to nearest
    pixels, or else that of the next pixel that is read."""
    reads: dict[int, set[int]] = {}
    for new in range(cells * patch):
        reads.setdefault(min(int((new + 0.5) * old / (cells * patch)), old - 1), set()).add(new // patch)
    owners = []
    for pixel in range(old):
        later = [read for read in reads if read > pixel]
        owners.append(reads[pixel] if pixel in reads else {min(reads[min(later)])} if later else {cells - 1})
    return owners


def naive_coverage(mask: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    rows, columns = (naive_cells(mask.shape[axis], grid[axis], patch) for axis in (0, 1))
    covered = np.zeros(grid, bool)
    for y, x in np.argwhere(mask):
        for r in rows[y]:
            for c in columns[x]:
                covered[r, c] = True
    return covered


@settings(max_examples=40)
@given(batches)
def test_every_index_is_the_one_counted_token_by_token(batch: list[Sample]) -> None:
    packed, wanted = pack(encoded(batch)), naive(batch)
    for name in ("ids", "patch_rows", "target_rows", "target_ids", "seg_rows"):
        assert getattr(packed, name).tolist() == wanted[name], name
    for name in ("grids", "seg_image", "seg_counts"):
        assert list(getattr(packed, name)) == wanted[name], name
    assert list(packed.plan.lengths) == wanted["lengths"]
    regions = packed.regions
    assert regions.token_ids.tolist() == wanted["token_ids"]
    assert list(zip(regions.patch_region.tolist(), regions.patch_rows.tolist(), strict=True)) == wanted["covered"]
    mentions = zip(regions.mention_region.tolist(), regions.mention_rows.tolist(), strict=True)
    assert list(mentions) == wanted["mentions"]
    assert packed.patches.shape == (len(wanted["patch_rows"]), 3 * PATCH**2)
    assert (packed.counts.tokens, packed.counts.masks) == (len(wanted["target_rows"]), len(wanted["seg_rows"]))
    assert packed.counts.images == len(wanted["grids"])
    owners = [sample for sample in batch if sample.masks]
    assert len(packed.masks) == len(owners)
    for masks, sample in zip(packed.masks, owners, strict=True):
        assert (masks.numpy() == np.stack([np.asarray(mask) for mask in sample.masks])).all()


def test_masks_weigh_the_words_of_their_own_sample_only() -> None:
    encoder = replace(ENCODER, mask_sample_weight=0.1)
    items = [encoder.encode(sample) for sample in records()]
    weights = pack(items).target_weights.split([len(item.sequence.target_rows) for item in items])
    assert [weight.unique().tolist() for weight in weights] == [[pytest.approx(w)] for w in (0.1, 1, 1, 0.1)]


def test_a_batch_for_generation_leaves_the_last_answer_open() -> None:
    sample = records()[0]
    open_, whole = ENCODER.encode(sample, answers=False), ENCODER.encode(sample)
    assert open_.sequence.ids.tolist() == whole.sequence.ids[: len(open_)].tolist()
    assert whole.sequence.ids[len(open_) :].tolist() == TOKENS.answer(sample.turns[-1].answer)
    assert open_.masks == ()


def test_masks_are_decoded_once_for_an_answer_and_not_for_a_question_or_a_record_that_is_refused() -> None:
    calls: list[int] = []

    def lazy(place: int) -> Callable[[], np.ndarray]:
        return lambda: (calls.append(place), blob(24, 40, place))[1]

    sample = replace(records()[0], masks=tuple(lazy(place) for place in range(3)))
    pack([ENCODER.encode(sample, answers=False)])
    with pytest.raises(SailError, match="over the limit"):
        replace(ENCODER, max_tokens=20).encode(sample)
    with pytest.raises(SailError, match="give one mask per"):
        ENCODER.encode(replace(sample, masks=(*sample.masks, lazy(3))))
    assert calls == []
    (masks,) = pack([ENCODER.encode(sample)]).masks
    assert calls == [0, 1, 2]
    assert (masks.numpy() == np.stack([blob(24, 40, place) for place in range(3)])).all()


def test_half_a_character_in_a_text_is_told() -> None:
    with pytest.raises(SailError, match="half a character"):
        ENCODER.encode(Sample(None, (Turn("what is \ud83d?", "x"),)))


def test_masks_follow_the_targets_of_the_turns() -> None:
    masks = tuple(blob(24, 40, place) for place in range(2))
    turns = (Turn("first?", "[SEG]", targets=(1,)), Turn("both?", "[SEG] [SEG]", targets=(0, 1)))
    encoded = ENCODER.encode(Sample(picture(24, 40), turns, masks))
    assert [mask.tolist() for mask in encoded.masks] == [masks[place].tolist() for place in (1, 0, 1)]


@pytest.mark.parametrize(
    ("targets", "message"),
    [((0, 1), "turn 0 has 1 .SEG. but 2 targets"), ((2,), "turn 0 names mask 2"), ((0,), "give one mask per")],
)
def test_targets_that_do_not_fit_are_refused(targets: tuple[int, ...], message: str) -> None:
    sample = Sample(picture(24, 40), (Turn("?", "[SEG]", targets=targets),), (blob(24, 40), blob(24, 40, 1)))
    with pytest.raises(SailError, match=message):
        ENCODER.encode(sample)


def test_masks_are_the_same_from_an_array_a_run_length_code_a_file_and_a_function(tmp_path: Path) -> None:
    mask = blob(13, 17, 3)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    for reference in (mask, code, tmp_path / "mask.png", lambda: mask):
        decoded = load_mask(reference)
        assert decoded.dtype == bool and (decoded == mask).all()


@pytest.mark.parametrize("name", ["p.jpg", "p.png", "grey.png", "palette.png", "transparent.png", "grey.jpg"])
def test_an_image_of_any_kind_is_what_pil_converts_it_to(name: str, tmp_path: Path) -> None:
    image, path = Image.fromarray(picture(20, 30)), tmp_path / name
    kinds = {"grey": "L", "palette": "P", "transparent": "RGBA"}
    image.convert(kinds.get(path.stem, "RGB")).save(path)
    found = load_image(path)
    assert found.dtype == np.uint8 and (found == np.asarray(Image.open(path).convert("RGB"))).all()


def test_pixels_stay_bytes_until_the_backbone_reads_them() -> None:
    batch = pack(encoded(records()))
    assert batch.patches.dtype == torch.uint8 and all(masks.dtype == torch.bool for masks in batch.masks)
    embedded = MODEL.model.backbone.embed_patches(batch.patches, batch.grids)
    assert embedded.dtype == torch.float32 and len(embedded) == len(batch.patches)


# -- streams ----------------------------------------------------------------------------------------------------------


class Length:
    """Stands in for an encoded sample: `pack_stream` asks for its length alone."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def packs_of(lengths: Iterable[int], budget: int, buffer_size: int) -> tuple[list[Length], list[list[Length]]]:
    items = [Length(length) for length in lengths]
    return items, list(pack_stream(items, budget, buffer_size))


some_lengths = st.lists(st.integers(1, 120), max_size=40)
budgets, buffer_sizes = st.integers(1, 200), st.integers(1, 50)


@given(some_lengths, budgets)
def test_without_looking_ahead_a_stream_is_cut_in_order(lengths: list[int], budget: int) -> None:
    items, packs = packs_of(lengths, budget, 1)
    assert [item for group in packs for item in group] == items
    for group, following in pairwise(packs):
        assert sum(map(len, group)) + len(following[0]) > budget, "a sample that fits is not put off"


@given(some_lengths, budgets, buffer_sizes)
def test_packs_keep_the_budget_and_lose_and_double_nothing(lengths: list[int], budget: int, buffer_size: int) -> None:
    items, packs = packs_of(lengths, budget, buffer_size)
    assert all(len(group) == 1 or sum(map(len, group)) <= budget for group in packs)
    assert sorted(id(item) for group in packs for item in group) == sorted(map(id, items))


@given(some_lengths, budgets, buffer_sizes)
def test_no_sample_waits_for_more_packs_than_are_looked_ahead(
    lengths: list[int], budget: int, buffer_size: int
) -> None:
    items, packs = packs_of(lengths, budget, buffer_size)
    place = {id(item): number for number, item in enumerate(items)}
    taken: set[int] = set()
    for group in packs:
        waiting = [number for number in range(len(items)) if number not in taken]
        assert place[id(group[0])] == waiting[0], "a pack begins with the oldest"
        taken |= {place[id(item)] for item in group}
    # While pack n is made, each sample taken is replaced by the next: those are at hand as pack n + 1 begins.
    arrived = dict.fromkeys(range(min(buffer_size, len(items))), 0)
    for number, group in enumerate(packs):
        for item in group:
            assert number - arrived[place[id(item)]] < buffer_size
            if len(arrived) < len(items):
                arrived[len(arrived)] = number + 1


@given(some_lengths, budgets, buffer_sizes)
def test_a_pack_is_filled_by_the_best_fit_among_those_at_hand(
    lengths: list[int], budget: int, buffer_size: int
) -> None:
    items, packs = packs_of(lengths, budget, buffer_size)
    left = list(items)
    for group in packs:
        room = budget
        for step, item in enumerate(group):
            at_hand = left[:buffer_size]
            fitting = [other for other in at_hand if len(other) <= room]
            assert item is (at_hand[0] if step == 0 else next(o for o in fitting if len(o) == max(map(len, fitting))))
            left.remove(item)
            room -= len(item)
        assert all(len(other) > room for other in left[:buffer_size])
    assert not left


def test_packs_are_made_while_a_stream_is_read() -> None:
    stream = iter(Length(10) for _ in range(1000))
    group = next(pack_stream(stream, 40, 8))
    assert (len(group), sum(1 for _ in stream)) == (4, 1000 - 4 - 8)


COCO_SIZES = ((640, 480), (640, 480), (640, 427), (640, 427), (480, 640), (640, 426), (500, 375), (612, 612))
COCO_SIZES += ((427, 640), (640, 640), (640, 360), (375, 500), (640, 424), (333, 500), (640, 478), (428, 640))
"""(width, height) of images, as often as they are in COCO, roughly."""


def questions(max_side: int) -> Iterator[Length]:
    """Tokens of questions about such images at patch size 16, 30 to 300 of them words, without end."""
    rng = np.random.default_rng(0)
    while True:
        height, width = resized_size(COCO_SIZES[rng.integers(len(COCO_SIZES))][::-1], 16, max_side)
        yield Length(2 + (height // 16) * (width // 16) + int(rng.integers(30, 301)))


def fill(budget: int, buffer_size: int, max_side: int, packs: int = 200) -> float:
    groups = islice(pack_stream(questions(max_side), budget, buffer_size), packs)
    return float(np.mean([min(1.0, sum(map(len, group)) / budget) for group in groups]))


@pytest.mark.parametrize("max_side", [512, 1024])
def test_batches_of_images_fill_their_budget(max_side: int) -> None:
    looking, in_order = fill(16384, 32, max_side), fill(16384, 1, max_side)
    assert looking > 0.95
    assert looking > in_order


# -- vectors of the data specification --------------------------------------------------------------------------------


def test_one_image_and_three_words_are_laid_out_as_specified() -> None:
    wanted = VECTORS["single_2x3_image_plus_3_text"]
    sequence = SequenceBuilder(ImageLayout((7,), 9, end=(8,))).image((2, 3)).text([1, 1, 1]).build()
    assert sequence.ids.tolist() == wanted["input_ids"]
    assert sequence.positions.tolist() == wanted["position_ids_thw"]
    batch = pack([bare(sequence)])
    assert patch_index(batch, 11) == [wanted["vision_patch_indices"]]
    rows = ["".join(str(int(seen)) for seen in row) for row in batch.plan.dense_mask()]
    assert rows == wanted["attention_mask_rows"]


def test_images_of_a_batch_of_four_own_their_patches() -> None:
    def builder() -> SequenceBuilder:
        return SequenceBuilder(ImageLayout((7,), 9, end=(8,)))

    sequences = [
        builder().image((2, 2)).text([1]).build(),
        builder().image((2, 3)).text([1]).build(),
        builder().text([1, 1, 1]).build(),
        builder().image((1, 2)).text([1]).build(),
    ]
    ours = patch_index(pack([bare(sequence) for sequence in sequences]), 9)
    assert ours == VECTORS["batch_of_four_patch_offsets"]["expected"]


def bare(sequence: Any) -> EncodedSample:
    """A laid out sequence as a sample without prompts and masks; its patches are numbered black pixels."""
    patches = np.zeros((len(sequence.patch_rows), 12), np.uint8)
    return EncodedSample(Sample(None, ()), sequence, patches, None, (), np.empty(0, np.int64), (), 1.0)


def patch_index(batch: Any, width: int) -> list[list[int]]:
    """The patch that each row takes, -1 for none, per sample; padded to `width`."""
    index = torch.full((len(batch),), -1)
    index[batch.patch_rows] = torch.arange(len(batch.patch_rows))
    return [part.tolist() + [-1] * (width - len(part)) for part in index.split(list(batch.plan.lengths))]


def test_patches_are_channel_first_as_specified() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(3, 4, 4).transpose(1, 2, 0)
    patches, grid = patchify(image, 2)
    assert (grid, patches.tolist()) == ((2, 2), VECTORS["patch_vector_layout"]["patches"])


@pytest.mark.parametrize("rule", ["cover", "nearest"])
def test_masks_are_put_on_the_grid_as_specified(rule: Any) -> None:
    mask = np.zeros((32, 48), bool)
    mask[15, 15] = mask[31, 40] = True
    assert patch_coverage(mask, (2, 3), 16, rule).astype(int).tolist() == VECTORS["mask_to_patch"]["grid"]


@pytest.mark.parametrize("row", VECTORS["resize_wh"], ids=lambda row: "{}x{}".format(*row["image_wh"]))
@pytest.mark.parametrize("patch", [16, 32])
def test_images_are_resized_as_specified(row: dict, patch: int) -> None:
    width, height = row["image_wh"]
    assert list(resized_size((height, width), patch))[::-1] == row[f"patch{patch}"]


# -- regions on the grid ----------------------------------------------------------------------------------------------

large = st.one_of(st.integers(1, 3000), st.sampled_from([1, 2, 3000]))


@settings(max_examples=60)
@given(
    large, large, st.sampled_from([8, 16, 28, 32]), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)
)
def test_a_prompt_of_one_pixel_keeps_a_patch_in_images_of_any_size(
    height: int, width: int, patch: int, v: float, u: float
) -> None:
    new_height, new_width = resized_size((height, width), patch)
    grid = (new_height // patch, new_width // patch)
    mask = region_mask(Point(u * width, v * height), (height, width))
    assert mask.sum() == 1
    covered = patch_coverage(mask, grid, patch)
    assert covered.any()
    row, column = (np.argwhere(covered).mean(0) + 0.5) / grid
    shift = (max(1 / grid[0], 1 / height), max(1 / grid[1], 1 / width))
    assert abs(row - v) <= shift[0] and abs(column - u) <= shift[1], "the patch lies where the pixel lies"


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), seeds, st.sampled_from([4, 8]), st.floats(0.005, 0.3))
def test_coverage_equals_the_pixel_by_pixel_rule_and_holds_all_that_nearest_pixels_hold(
    height: int, width: int, seed: int, patch: int, density: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    new_height, new_width = resized_size((height, width), patch, max_side=32)
    grid = (new_height // patch, new_width // patch)
    covered = patch_coverage(mask, grid, patch)
    assert (covered == naive_coverage(mask, grid, patch)).all()
    assert covered.any() == mask.any()
    nearest = patch_coverage(mask, grid, patch, rule="nearest_pil")
    rows, columns = (
        [min(int((new + 0.5) * old / (cells * patch)), old - 1) for new in range(cells * patch)]
        for old, cells in zip(mask.shape, grid, strict=True)
    )
    small = mask[np.ix_(rows, columns)]
    blocks = [[small[r * patch :, c * patch :][:patch, :patch].any() for c in range(grid[1])] for r in range(grid[0])]
    assert (nearest == np.array(blocks)).all()
    assert (nearest <= covered).all()


corners = st.floats(-5, 30, allow_nan=False, width=32)


@settings(max_examples=80)
@given(st.integers(1, 24), st.integers(1, 24), corners, corners, corners, corners)
def test_a_box_covers_the_pixels_it_cuts(height: int, width: int, a: float, b: float, c: float, d: float) -> None:
    box = Box(min(a, b), min(c, d), max(a, b), max(c, d))
    wanted = naive_region(box, (height, width))
    if wanted.any():
        assert (region_mask(box, (height, width)) == wanted).all()
    else:
        with pytest.raises(SailError, match="covers nothing"):
            region_mask(box, (height, width))


@settings(max_examples=80)
@given(st.integers(1, 24), st.integers(1, 24), corners, corners)
def test_a_point_covers_the_pixel_it_lies_in(height: int, width: int, x: float, y: float) -> None:
    wanted = naive_region(Point(x, y), (height, width))
    if wanted.any():
        assert (region_mask(Point(x, y), (height, width)) == wanted).all()
    else:
        with pytest.raises(SailError, match="covers nothing"):
            region_mask(Point(x, y), (height, width))


places = st.tuples(st.floats(0, 23.9), st.floats(0, 19.9))


@settings(max_examples=60)
@given(st.lists(places, min_size=2, max_size=5))
def test_a_scribble_covers_the_pixels_along_its_line(points: list[tuple[float, float]]) -> None:
    covered = region_mask(Scribble(tuple(points)), (20, 24))
    on = np.argwhere(covered)[:, ::-1] + 0.5  # (x, y) of pixel centres
    steps = np.linspace(0, 1, 60)[:, None]
    line = np.concatenate([np.asarray(p) + steps * (np.asarray(q) - np.asarray(p)) for p, q in pairwise(points)])
    distance = np.linalg.norm(on[:, None] - line[None], axis=-1)
    assert distance.min(1).max() <= 1.5, "no pixel lies off the line"
    assert distance.min(0).max() <= 1.5, "no part of the line is missing"


def test_a_mask_prompt_is_its_own_region_from_an_array_or_a_file(tmp_path: Path) -> None:
    mask = blob(13, 17, 3)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    for given_ in (mask, tmp_path / "mask.png", str(tmp_path / "mask.png")):
        assert (region_mask(Mask(given_), (13, 17)) == mask).all()


# -- errors -----------------------------------------------------------------------------------------------------------

PICTURE = picture(16, 24)
ON = np.ones((16, 24), bool)


def record(question: str, answer: str = "", **fields: Any) -> Sample:
    return Sample(fields.pop("image", PICTURE), (Turn(question, answer),), source="faults", id="7", **fields)


FAULTS = {
    "fewer masks than [SEG]": (
        record("find it.", "[SEG] and [SEG].", masks=(ON,)),
        r"2 \[SEG\] in the text but 1 masks; give one mask per \[SEG\]",
    ),
    "masks without [SEG]": (record("find it.", "no.", masks=(ON,)), r"0 \[SEG\] in the text but 1 masks"),
    "a mask of another size": (
        record("find it.", "[SEG]", masks=(ON.T,)),
        r"a mask of \(24, 16\) pixels \(height, width\), but the image has \(16, 24\)",
    ),
    "masks without a picture": (record("find it.", "[SEG]", masks=(ON,), image=None), "masks need an image"),
    "an id out of range": (
        record("what is <Prompt0>?", prompts=(Point(1, 1, id=4),)),
        "prompt id 4 is out of range: this model knows 0 to 3",
    ),
    "an id twice": (
        record("what is <Prompt1>?", prompts=(Point(1, 1, id=1), Point(2, 2, id=1))),
        "two prompts have the id 1; give each its own",
    ),
    "a place in the list that is another's id": (
        record("what is <Prompt1>?", prompts=(Point(1, 1, id=1), Point(2, 2))),
        "two prompts have the id 1",
    ),
    "a prompt that is named but absent": (
        record("what is <Prompt2>?", prompts=(Point(1, 1),)),
        "the text names <Prompt2>, but the prompts are <Prompt0>",
    ),
    "a prompt named where there is none": (record("what is <Prompt1>?"), "<Prompt1>, but the prompts are none"),
    "a prompt without a picture": (
        record("what is <Prompt0>?", prompts=(Point(1, 1),), image=None),
        "visual prompts need an image",
    ),
    "a prompt outside the picture": (
        record("what is <Prompt0>?", prompts=(Point(24, 1),)),
        r"the prompt Point\(x=24, .*covers nothing of the image \(24 x 16 pixels\)",
    ),
    "an empty prompt mask": (
        record("what is <Prompt0>?", prompts=(Mask(~ON),)),
        r"the prompt Mask covers nothing of the image \(24 x 16 pixels\)",
    ),
    "a prompt mask of another size": (
        record("what is <Prompt0>?", prompts=(Mask(ON.T),)),
        "the prompt mask is 16 x 24 pixels, the image 24 x 16; draw it at the image's size",
    ),
    "a text over the limit": (
        record("red " * 100),
        r"1\d\d tokens are over the limit of 80; shorten the text, lower max_side or raise max_tokens",
    ),
    "a layout token in a question": (
        record("what is <vpatch>?"),
        "a text may not contain <vpatch>: that token lays out the sequence; remove it",
    ),
    "a layout token in an answer": (record("what?", "a <|endoftext|> b"), r"may not contain <\|endoftext\|>"),
    "a missing picture": (record("what?", image="absent.png"), r"no image absent\.png"),
    "a missing mask file": (record("find it.", "[SEG]", masks=("absent.png",)), r"no mask file absent\.png"),
    "an array that is no picture": (
        record("what?", image=np.zeros((4, 4), np.uint8)),
        r"an image must be \(H, W, 3\) uint8, not \(4, 4\) uint8",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_that_names_the_record(fault: str) -> None:
    sample, message = FAULTS[fault]
    with pytest.raises(SailError, match=rf"^faults 7: .*{message}") as caught:
        replace(ENCODER, max_tokens=80).encode(sample)
    assert "\n" not in str(caught.value)


def test_what_a_user_typed_wrong_is_told_apart_from_broken_data() -> None:
    usage = {name for name, (sample, _) in FAULTS.items() if is_usage(sample)}
    assert {"an id out of range", "a text over the limit", "a prompt named where there is none"} <= usage
    assert usage.isdisjoint({"a missing picture", "fewer masks than [SEG]", "a mask of another size"})


def is_usage(sample: Sample) -> bool:
    try:
        replace(ENCODER, max_tokens=80).encode(sample)
    except SailError as error:
        return isinstance(error, SailUsageError)
    raise AssertionError("no fault")


def test_a_record_is_named_even_where_its_short_id_is_a_part_of_the_message() -> None:
    sample = Sample(PICTURE, (Turn("what?"),), prompts=(Point(1, 1, id=17),), id="7")
    with pytest.raises(SailError, match="^7: prompt id 17 is out of range"):
        ENCODER.encode(sample)


def test_a_record_without_a_name_is_told_without_one() -> None:
    with pytest.raises(SailError, match=r"^no image absent\.png"):
        ENCODER.encode(Sample("absent.png", (Turn("what?"),)))


def test_the_longest_sequence_that_is_allowed_is_allowed() -> None:
    sample = record("red circle?", "no.")
    length = len(ENCODER.encode(sample))
    assert len(replace(ENCODER, max_tokens=length).encode(sample)) == length
    with pytest.raises(SailUsageError, match=f"{length} tokens are over the limit of {length - 1}"):
        replace(ENCODER, max_tokens=length - 1).encode(sample)


def test_an_encoder_needs_no_model() -> None:
    encoder = Encoder(SailTokenizer("laboratory", 4), PATCH, 4, MAX_SIDE)
    sample = records()[0]
    ours, wanted = encoder.encode(sample), ENCODER.encode(sample)
    assert (ours.sequence.ids == wanted.sequence.ids).all()
    assert (ours.patches == wanted.patches).all()


@given(st.integers(8, 90), st.integers(1, 200), st.integers(1, 200))
def test_any_longest_side_of_a_patch_or_more_cuts_into_patches(max_side: int, height: int, width: int) -> None:
    cells, (rows, columns) = patchify(np.zeros((height, width, 3), np.uint8), 8, max_side)
    assert len(cells) == rows * columns and 8 * max(rows, columns) <= max_side


def test_a_longest_side_below_a_patch_is_refused() -> None:
    with pytest.raises(SailUsageError, match=r"max_side must be one patch \(8 pixels\) or more, not 7"):
        tiny(max_side=7).encoder  # noqa: B018
