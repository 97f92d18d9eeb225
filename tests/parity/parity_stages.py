"""Ours against the official code, stage by stage, on recorded runs of it; one function per group of stages.

`tests/golden/official` holds weights, inputs and results of tiny official models (float32, CPU): `SOLO` has one set of
weights and positions on a grid, `EVE` has weights by modality. The weights pass through the converter. Texts, images
and prompts pass through the encoder, and the ids, positions and labels it makes are compared too. Every recorded sample
is read once alone and once in a pack of all the others.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sail_lightning import Mask, PixelSAIL, Sample, Turn
from sail_lightning.conversion.convert import open_model
from sail_lightning.conversion.official import official_names
from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.generation import engine
from sail_lightning.generation.decode_step import DecodeStep
from sail_lightning.generation.engine import generate
from sail_lightning.generation.prefix_schedule import PrefixSchedule
from sail_lightning.image.preprocessing import IMAGE_MEAN, IMAGE_STD, patch_coverage, patchify
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.model import losses
from sail_lightning.model.losses import MaskLoss, uncertain_points
from sail_lightning.plugins.backbones.core import Pixels
from sail_lightning.plugins.backbones.eve import EVEv2, Modalities
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.training.distillation import Distillation

HOME = Path(__file__).parents[1] / "golden"
GOLDEN = HOME / "official"
META = json.loads((GOLDEN / "meta.json").read_text())
WEIGHTS = {"SOLO": "official_tiny_state_dict.safetensors", "EVE": "eve_tiny_state_dict.safetensors"}
CASES = {
    "SOLO": (
        "case1_single_noprompt",
        "case2_nonsquare_two_prompts",
        "case3_batch2_corrected",
        "case4_text_only",
        "case5_image_prompts_no_masks",
        "case6_mixed_text_and_image",
    ),
    "EVE": ("eve_case1_two_prompts", "eve_case2_batch2", "eve_case3_image_and_text"),
}
EXACT, TENSOR, LOSS, GRADIENT = (0.0, 0.0), (1e-4, 1e-4), (2e-5, 0.0), (2e-4, 0.0)
"""Tolerances, absolute and relative: the official code's own noise in float32 is up to 1.1e-5."""
POINTS = 64
"""Sampled points per mask, where losses are computed on points."""
EPS = 1e-4
"""What the official code adds to its divisors; ours divide by counts."""
NEW_TOKENS = 12


@dataclass(frozen=True)
class Row:
    """One comparison: largest absolute error, the tolerance, and the largest share of it that any element used."""

    stage: str
    case: str
    error: float
    tolerance: tuple[float, float]
    share: float


def compare(stage: str, case: str, ours: Any, official: Any, tolerance: tuple[float, float] = TENSOR) -> Row:
    """A row; shapes must agree, and nothing may be infinite or NaN."""
    left, right = (torch.as_tensor(value).detach().double() for value in (ours, official))
    assert left.shape == right.shape, f"{stage}, {case}: {tuple(left.shape)} instead of {tuple(right.shape)}"
    assert left.isfinite().all() and right.isfinite().all(), f"{stage}, {case}: not finite"
    gaps = (left - right).abs()
    allowed = tolerance[0] + tolerance[1] * right.abs()
    shares = torch.where(gaps == 0, 0.0, gaps / allowed)  # exact: zero, or infinite
    return Row(stage, case, float(gaps.max()), tolerance, float(shares.max()))


# -- what was recorded ------------------------------------------------------------------------------------------------


def fresh(family: str) -> PixelSAIL:
    """The converted model, of which the caller may change the weights."""
    model = open_model(GOLDEN if family == "SOLO" else GOLDEN / WEIGHTS[family])
    model.mask_loss = MaskLoss(num_points=0, resolution="features")
    return model


@functools.cache
def model_of(family: str) -> PixelSAIL:
    """The converted model, which nobody changes; its mask loss is dense."""
    return fresh(family)


@dataclass(frozen=True)
class Recorded:
    """A batch of the official code: its tensors, and its samples as our encoder makes them."""

    name: str
    tensors: dict[str, Tensor]
    samples: tuple[EncodedSample, ...]

    @property
    def masks(self) -> int:
        """Target masks of all samples."""
        return sum(len(item.masks) for item in self.samples)

    def official(self, key: str, place: int) -> Tensor | None:
        """A result `out.KEY` (B, L, ...) of one sample, padding cut off."""
        value = self.tensors.get(f"out.{key}")
        return None if value is None else value[place, : len(self.samples[place])]


@functools.cache
def recorded(family: str) -> tuple[Recorded, ...]:
    """All batches of a family; of the batch of two different images, also each alone."""
    batches = {name: load_file(GOLDEN / f"{name}.safetensors") for name in CASES[family]}
    if family == "SOLO":
        both = batches["case3_batch2_corrected"]
        single = load_file(GOLDEN / "case3_batch2_quirk_and_persample.safetensors")
        for place, rows in enumerate((slice(0, 6), slice(6, 14))):
            own = {key.split(".", 1)[1]: value for key, value in single.items() if key.startswith(f"sample{place}.")}
            length = own["in.input_ids"].shape[1]
            own["in.labels"] = both["in.labels"][place : place + 1, :length]
            own["in.vision_patches"], own["in.masks.0"] = both["in.vision_patches"][rows], both[f"in.masks.{place}"]
            batches[f"case3_sample{place}"] = own
    return tuple(
        Recorded(name, tensors, tuple(encode(family, tensors, place) for place in range(len(tensors["in.input_ids"]))))
        for name, tensors in batches.items()
    )


def encode(family: str, tensors: dict[str, Tensor], place: int) -> EncodedSample:
    """One recorded sample through our encoder: the text from its ids, the image from its normalised pixels."""
    model = model_of(family)
    encoder = model.encoder
    chat, patch_size = model.tokens.chat, encoder.patch_size
    ids = official_ids(tensors, place)
    text = model.tokens.tokenizer.decode([id for id in ids if id >= 0], clean_up_tokenization_spaces=False)
    turn = "(.*?)".join(re.escape(part) for part in (chat.question_start, chat.question_end, chat.answer_end))
    turns = tuple(Turn(*words) for words in re.findall(turn, text, re.DOTALL))
    picture, prompts = None, ()
    if (grid := official_grid(family, tensors, place)) is not None:
        pixels = official_pixels(family, tensors, place)
        normal = model.model.backbone.pixels
        scale, shift = (buffer.view(3, -1)[:, 0, None, None] for buffer in (normal.scale, normal.shift))
        picture = ((pixels - shift) / scale).round().to(torch.uint8).permute(1, 2, 0).numpy()
        cells = official_prompts(family, tensors, place).view(grid).numpy()
        cell = np.ones((patch_size, patch_size), bool)
        prompts = tuple(Mask(np.kron(cells == id, cell), int(id)) for id in np.unique(cells[cells >= 0]))
    wanted = sum(turn.answer.count("[SEG]") for turn in turns)
    empty = () if picture is None else tuple(np.zeros(picture.shape[:2], bool) for _ in range(wanted))
    encoded = encoder.encode(Sample(picture, turns, empty, prompts))
    # The image is as the official code resized it; its masks are of the original's size, as losses want them.
    masks = tensors.get(f"in.masks.{place}", torch.empty(0)).bool().numpy()
    factor = 0.1 if any(key.startswith("in.masks") for key in tensors) else 1.0  # official: of the whole batch
    return replace(encoded, masks=tuple(masks), target_weight=factor)


def official_ids(tensors: dict[str, Tensor], place: int) -> list[int]:
    """Ids without padding; EVE's have one -200 in place of an image."""
    mask = tensors["in.attention_mask"][place]
    length = int(mask.sum() if mask.dim() == 1 else mask[0].any(-1).sum())
    return tensors["in.input_ids"][place, :length].tolist()


def official_grid(family: str, tensors: dict[str, Tensor], place: int) -> tuple[int, int] | None:
    """Rows and columns of patches; None without an image."""
    rows, columns = tensors["in.patch_nums_per_images"][place].tolist()
    if rows == 0:
        return None
    return (rows, columns) if family == "SOLO" else (rows, columns - 1)  # EVE counts the vector that ends a row


def official_pixels(family: str, tensors: dict[str, Tensor], place: int) -> Tensor:
    """The normalised image (3, height, width)."""
    if family == "EVE":
        return tensors[f"in.pixel_values.{place}"]
    index = tensors["in.vision_patch_indices"][place]
    own = index[index >= 0]
    rows, columns = tensors["in.patch_nums_per_images"][place].tolist()
    patches = tensors["in.vision_patches"][own]
    side = model_of(family).model.dims.patch_size
    return patches.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4).reshape(3, rows * side, columns * side)


def official_prompts(family: str, tensors: dict[str, Tensor], place: int) -> Tensor:
    """The number of the prompt on each patch, or below zero."""
    if family == "SOLO":
        return tensors["in.vp_token_indices"][place][tensors["in.vision_patch_indices"][place] >= 0]
    rows, columns = tensors["in.patch_nums_per_images"][place].tolist()
    return tensors[f"in.visual_prompt_indexes.{place}"][1:].view(rows, columns)[:, :-1]


def one_per_picture(item: EncodedSample) -> np.ndarray:
    """Our ids as EVE's inputs have them: -200 in place of an image."""
    ids = np.where(item.sequence.vision, -200, item.sequence.ids)
    inside = np.flatnonzero(item.sequence.vision)[1:]
    return np.delete(ids, inside)


def labels_of(item: EncodedSample) -> np.ndarray:
    """The official form of what is supervised: the id at its own place, -100 elsewhere."""
    labels = np.full(len(item), -100)
    labels[item.sequence.target_rows + 1] = item.sequence.target_ids
    return labels


# -- what we make of it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """Our states of one sample; None for features (C, h, w) of no image, and mask logits (n, h, w) of no `[SEG]`."""

    unprompted: Tensor
    embeddings: Tensor
    first_layer: Tensor
    hidden: Tensor
    logits: Tensor
    queries: Tensor
    upsampled: Tensor | None
    features: Tensor | None
    mask_logits: Tensor | None


def read(model: PixelSAIL, samples: Sequence[EncodedSample]) -> list[Reading]:
    """One forward pass of all samples, cut up again."""
    network = model.model
    backbone, batch = network.backbone, pack(samples)
    layer, upsampled = [], []
    hooks = [
        backbone.model.layers[0].register_forward_hook(lambda _, __, out: layer.append(out)),
        network.upsampler.register_forward_hook(lambda _, __, out: upsampled.append(out)),
    ]
    try:
        output = network(batch, taps={"mask"})
    finally:
        for hook in hooks:
            hook.remove()
    first_layer = layer[0].flatten(end_dim=-2)
    if isinstance(backbone, EVEv2):  # its layers read words first
        first_layer = Modalities.of(batch.vision).restore(first_layer)
    words = backbone.embed_tokens(batch.ids)
    patches = backbone.embed_patches(batch.patches, batch.grids).to(words.dtype)
    lengths = [len(item) for item in samples]
    rows = zip(
        words.index_add(0, batch.patch_rows, patches).split(lengths),
        network.embed(batch).split(lengths),
        first_layer.split(lengths),
        output.hidden.split(lengths),
        backbone.logits(output.hidden).split(lengths),
        network.mask_head.queries(output.hidden[batch.seg_rows]).split([len(item.seg_rows) for item in samples]),
        strict=True,
    )
    before, after = {}, {}
    for group, maps in zip(output.mask, upsampled, strict=True):
        before |= dict(zip(group.images, maps, strict=bool(group.images)))
        after |= dict(zip(group.images, group.maps, strict=bool(group.images)))
    # As a model without teachers reads them: in strips.
    masks = dict(zip(batch.seg_image, network.mask_logits(output.hidden, batch), strict=bool(batch.seg_image)))
    readings, image = [], 0
    for item, states in zip(samples, rows, strict=True):
        own = image if item.sequence.grids else -1
        readings.append(Reading(*states, before.get(own), after.get(own), masks.get(own)))
        image += len(item.sequence.grids)
    return readings


@functools.cache
def readings(family: str, together: bool) -> dict[str, list[Reading]]:
    """Readings of every batch's samples, by batch: all in one pack, or each sample alone."""
    batches = recorded(family)
    everything = [item for batch in batches for item in batch.samples]
    model = model_of(family)
    flat = iter(read(model, everything) if together else [read(model, [item])[0] for item in everything])
    return {batch.name: [next(flat) for _ in batch.samples] for batch in batches}


# -- stages -----------------------------------------------------------------------------------------------------------


def preprocessing(family: str, together: bool) -> Iterator[Row]:
    """Images to normalised patches, and prompt masks to patches. (Packs come later; both ways are one.)"""
    model = model_of(family)
    if family == "EVE":
        for name, file, place in (("eve_case2_batch2", "20x36", 0), ("eve_case2_batch2", "40x28", 1)):
            expected = load_file(GOLDEN / f"{name}.safetensors")[f"in.pixel_values.{place}"]
            cells, grid = patchify(read_picture(GOLDEN / f"eve_image_{file}.png"), 8, model.max_side, "area")
            pixels = model.model.backbone.pixels(torch.from_numpy(cells)).view(*grid, 3, 8, 8)
            pixels = pixels.permute(2, 0, 3, 1, 4).reshape(expected.shape)
            yield compare("preprocessing: images", file, pixels, expected)
        return
    expected = load_file(HOME / "preprocessing.safetensors")
    for size in (16, 32):
        cells, grid = patchify(read_picture(HOME / "prep_image_70x45.png"), size)
        pixels = Pixels(size, IMAGE_MEAN, IMAGE_STD)(torch.from_numpy(cells)).view(*grid, 3, size, size)
        wanted = expected[f"image_patches_p{size}"]
        yield compare("preprocessing: images", f"70x45, patch {size}", pixels[: len(wanted)], wanted)
        for name, file in (("mask", "prep_mask_70x45.png"), ("bigmask", "prep_mask_1500x130.png")):
            wanted = expected[f"{name}_patches_p{size}"]
            ours = patch_coverage(read_picture(HOME / file)[..., 0] > 0, wanted.shape, size, rule="nearest_pil")
            yield compare("preprocessing: prompt masks", f"{file}, patch {size}", ours, wanted, EXACT)


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def layout(family: str, together: bool) -> Iterator[Row]:
    """What the encoder makes of texts and images."""
    batches = recorded(family)
    samples = [item for batch in batches for item in batch.samples]
    packed = pack(samples) if together else None
    rules: list[Tensor] = []
    for batch in batches:
        for place, item in enumerate(batch.samples):
            case, tensors, length = f"{batch.name}.{place}", batch.tensors, len(item)
            ids = item.sequence.ids if family == "SOLO" else one_per_picture(item)
            yield compare("token ids", case, ids, official_ids(tensors, place), EXACT)
            if family == "SOLO":
                positions, labels = tensors["in.position_ids"][:, place, :length], tensors["in.labels"][place, :length]
                rules.append(tensors["in.attention_mask"][place, 0, :length, :length])
            else:
                positions, labels = torch.arange(length).expand(3, -1), batch.official("expanded_labels", place)
                rules.append(torch.ones(length, length, dtype=torch.bool).tril())
                seen = tensors["out.visual_token_mask"][place, :length, 0]
                yield compare("vision tokens: which", case, item.sequence.vision, seen, EXACT)
            yield compare("positions", case, item.sequence.positions, positions, EXACT)
            yield compare("labels", case, labels_of(item), labels, EXACT)
            if item.sequence.grids:
                own = pack([item])
                pixels = model_of(family).model.backbone.pixels(own.patches).view(*own.grids[0], 3, -1)
                side = model_of(family).model.dims.patch_size
                pixels = pixels.unflatten(3, (side, side)).permute(2, 0, 3, 1, 4)
                wanted = official_pixels(family, tensors, place)
                yield compare("pixels", case, pixels.reshape(wanted.shape), wanted)
            if not together:
                plan = AttentionPlan.build([list(item.sequence.spans)])
                yield compare("attention mask", case, plan.dense_mask(), rules[-1], EXACT)
    if packed is not None:
        yield compare("attention mask", "all", packed.plan.dense_mask(), torch.block_diag(*rules).bool(), EXACT)


def states(family: str, together: bool) -> Iterator[Row]:
    """From embeddings to mask logits."""
    for batch in recorded(family):
        queries = []
        for place, reading in enumerate(readings(family, together)[batch.name]):
            case, item, out = f"{batch.name}.{place}", batch.samples[place], batch.tensors
            if (wanted := out.get(f"out.vision_tokens.{place}")) is not None:
                rows = torch.from_numpy(item.sequence.vision)
                yield compare("vision tokens", case, reading.unprompted[rows], wanted)
            for stage, key, ours in (
                ("embeddings with prompts", "hidden_states.0", reading.embeddings),
                ("states after layer 1", "hidden_states.1", reading.first_layer),
                ("last hidden states", "hidden_states.2", reading.hidden),
                ("logits", "logits", reading.logits),
            ):
                if (wanted := batch.official(key, place)) is not None:
                    yield compare(stage, case, ours, wanted)
            if reading.features is not None and f"out.image_features.{place}" in out:
                features = reading.features.permute(1, 2, 0)
                yield compare("mask features", case, features, out[f"out.image_features.{place}"])
            if reading.upsampled is not None and f"out.upsampled_first8ch.{place}" in out:
                wanted = out[f"out.upsampled_first8ch.{place}"]
                yield compare("upsampled features", case, reading.upsampled[: len(wanted)], wanted)
            if reading.mask_logits is not None:
                wanted = out[f"out.mask_logits.{len(queries)}"]
                yield compare("mask logits", case, reading.mask_logits, wanted)
                queries.append(reading.queries)
        if queries:  # without masks, the official states are pseudo ones, to keep weights in the graph
            yield compare("[SEG] embeddings", batch.name, torch.cat(queries), out["out.seg_embeddings"])


@contextmanager
def sampled_at(points: Sequence[Tensor]) -> Iterator[MaskLoss]:
    """The mask loss on points, at these instead of drawn ones, image by image."""
    left = iter(points)
    with patch.object(losses, "uncertain_points", lambda *_: next(left)):
        yield MaskLoss(num_points=POINTS)


def official_losses(
    family: str, batch: Recorded, own: Sequence[Reading], points: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """Our losses of an official batch, divided as the official code divides, from our readings of it."""
    model = model_of(family)
    items = list(zip(batch.samples, own, strict=True))
    logits = torch.cat([reading.logits[torch.from_numpy(item.sequence.target_rows)] for item, reading in items])
    targets = torch.cat([torch.from_numpy(item.sequence.target_ids) for item in batch.samples])
    weights = torch.cat([torch.full((len(item.sequence.target_ids),), item.target_weight) for item in batch.samples])
    tokens, language = len(targets), model.language_loss
    found = {
        "ce_loss": language(logits, nn.Identity(), targets, torch.ones_like(weights)) / tokens,
        "llm_loss": language(logits, nn.Identity(), targets, weights) / tokens,
    }
    if not batch.masks:
        return found
    masked = [(reading.mask_logits, torch.from_numpy(np.stack(item.masks))) for item, reading in items if item.masks]
    predicted, wanted = zip(*masked, strict=True)
    if points is None:
        sums, bce, dice = model.mask_loss(predicted, wanted), 1.0, 1.0
    else:
        with sampled_at(points) as loss:
            sums, bce, dice = loss(predicted, wanted), POINTS / (POINTS + EPS), 1 / (1 + EPS)
    divisor = batch.masks + EPS
    return found | {"loss_mask": sums.bce * bce / divisor, "loss_dice": sums.dice * dice / divisor}


def loss_values(family: str, together: bool) -> Iterator[Row]:
    """Language, mask and dice losses, dense and on sampled points."""
    names = {"ce_loss": "cross-entropy", "llm_loss": "language loss"}
    names |= {"loss_mask": "mask loss", "loss_dice": "dice loss"}
    for batch in recorded(family):
        for key, ours in official_losses(family, batch, readings(family, together)[batch.name]).items():
            yield compare(names[key], batch.name, ours, batch.tensors[f"out.{key}"], LOSS)
        points = [batch.tensors[key] for key in sorted(batch.tensors) if key.startswith("ptsout.point_coords")]
        if not points:
            continue
        sampled = official_losses(family, batch, readings(family, together)[batch.name], points)
        for key in ("loss_mask", "loss_dice"):
            yield compare(f"{names[key]}, on points", batch.name, sampled[key], batch.tensors[f"ptsout.{key}"], LOSS)
        own = [reading for reading in readings(family, together)[batch.name] if reading.mask_logits is not None]
        for place, (reading, wanted) in enumerate(zip(own, points, strict=True)):
            if f"ptsout.rand_extra.{place}" in batch.tensors:
                draws = [batch.tensors[f"ptsout.{name}.{place}"] for name in ("rand_candidates", "rand_extra")]
                ours = uncertain_points(reading.mask_logits, POINTS, 3.0, 0.75, draws=tuple(draws))
                yield compare("sampled points", f"{batch.name}.{place}", ours, wanted, EXACT)


@functools.cache
def official_gradients(family: str, name: str, together: bool) -> dict[str, Tensor]:
    """Of the sum of all losses of a recorded batch, by official names."""
    model = model_of(family)
    names = official_names(model)
    weights = {names[key]: weight for key, weight in model.model.named_parameters()}
    (batch,) = (batch for batch in recorded(family) if batch.name == name)
    # Read afresh: batches that are packed together share one graph, and a graph is gone after one backward pass.
    found = official_losses(family, batch, readings.__wrapped__(family, together)[name])
    total = found["llm_loss"] + found["loss_mask"] + found["loss_dice"]
    made = torch.autograd.grad(total, list(weights.values()))
    return dict(zip(weights, made, strict=True))


def gradients(family: str, together: bool) -> Iterator[Row]:
    """Of the sum of all losses; every parameter's norm, and some parameters whole."""
    norms: dict[str, dict[str, float | None]]
    if family == "SOLO":
        stored = json.loads((GOLDEN / "grad_norms.json").read_text())
        norms = {name: facts["grad_norms"] for name, facts in stored.items()}
        whole = {"case2_nonsquare_two_prompts": "grads_case2", "case3_batch2_corrected": "grads_case3_corrected"}
    else:
        norms, whole = {"eve_case2_batch2": META["eve"]["grad_norms_case2"]}, {}
    for batch in recorded(family):
        if batch.name not in norms:
            continue
        own = official_gradients(family, batch.name, together)
        trained = {name: norm for name, norm in norms[batch.name].items() if norm is not None}
        assert trained.keys() == own.keys()
        for name, norm in trained.items():
            yield compare("gradients: norms", f"{batch.name}, {name}", own[name].norm(), norm, GRADIENT)
        if batch.name in whole:
            for name, wanted in load_file(GOLDEN / f"{whole[batch.name]}.safetensors").items():
                yield compare("gradients", f"{batch.name}, {name}", own[name], wanted, GRADIENT)


class RecordedTeacher(Teacher):
    """Recorded features, by the size of the image."""

    def __init__(self, tap: str, maps: dict[tuple[int, int], Tensor]) -> None:
        super().__init__()
        self.student_features, self.maps, self.channels = tap, maps, 256

    def build(self, dims: Dims) -> Dims:
        return dims

    def forward(self, images: Tensor) -> Tensor:
        """One image (1, 3, height, width) to its map."""
        return self.maps[tuple(images.shape[-2:])]


def distillation(family: str, together: bool) -> Iterator[Row]:
    """The training step's own losses of the batch of two images, with two teachers, of both or of the first alone."""
    if family != "SOLO":
        return
    model, facts = model_of(family), load_file(GOLDEN / "distill.safetensors")
    batch = next(batch for batch in recorded(family) if batch.name == "case3_batch2_corrected")
    side = model.model.dims.patch_size
    sizes = [tuple(side * count for count in item.sequence.grids[0]) for item in batch.samples]
    teachers, linears = {}, {}
    for name, tap in (("mask2former", "mask"), ("sam2", "vision")):
        maps = [facts[f"teacher.{name}.{picture}"] for picture in "ab"]
        teachers[name] = RecordedTeacher(tap, dict(zip(sizes, maps, strict=True)))
        weight = facts[f"{name}_distill_linear.weight"]
        linears[name] = nn.Linear(*weight.shape[::-1])
        linears[name].load_state_dict({"weight": weight, "bias": facts[f"{name}_distill_linear.bias"]})
    distill = Distillation(teachers)
    distill.update(linears)
    with patch.object(model, "distill", distill), torch.no_grad():
        first, second = (model.losses(pack([item]))[0] for item in batch.samples)
        both = {key: first[key] + second[key] for key in first}
        if together:
            both = model.losses(pack(batch.samples))[0]
    tokens = sum(len(item.sequence.target_rows) for item in batch.samples)
    for run, sums, images in (("both", both, 2), ("second_none", first, 1)):
        for name in teachers:
            ours = sums[name] / (images + EPS)
            yield compare("distillation losses", f"{run}, {name}", ours, facts[f"{run}.{name}_distill_loss"], LOSS)
    for key, name, divisor in (
        ("language", "llm_loss", tokens),
        ("mask", "loss_mask", batch.masks + EPS),
        ("dice", "loss_dice", batch.masks + EPS),
    ):
        yield compare("training step's losses", key, both[key] / divisor, facts[f"both.{name}"], LOSS)


# -- generation -------------------------------------------------------------------------------------------------------

RUNS = {"SOLO": ("gen1_noprompt", "gen2_two_prompts", "gen3_prefix_answer"), "EVE": ("eve_gen1",)}


def question(family: str, name: str) -> EncodedSample:
    """A recorded question: its image, text, prompts, and how the answer begins."""
    facts = META["eve"]["gen1"] if family == "EVE" else META["generation"][name]
    given = facts.get("kwargs", {})
    prompts = tuple(
        Mask(read_picture(GOLDEN / f"{name}_promptmask{place}.png")[..., 0] > 0, id)
        for place, id in enumerate(given.get("prompt_ids", []))
    )
    sample = Sample(GOLDEN / facts.get("image", f"{name}_image.png"), (Turn(facts["text"]),), prompts=prompts)
    return model_of(family).encoder.encode(sample, answers=False, answer_prefix=given.get("prefix_answer", ""))


@dataclass
class Calls:
    """What a function was called with, and what it returned."""

    function: Callable[..., Any]
    given: list[tuple[Any, ...]]
    returned: list[Any]

    def __call__(self, *args: Any) -> Any:
        # As they were: the next step's positions are these, moved on.
        self.given.append(tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))
        result = self.function(*args)
        self.returned.append(result)
        return result


def answers(family: str, together: bool) -> Iterator[Row]:
    """Greedy answers with masks."""
    names = RUNS[family]
    items = [question(family, name) for name in names]
    if not together:
        for name, item in zip(names, items, strict=True):
            yield from _answers(family, (name,), [item])
        return
    if family == "EVE":  # one run was recorded; another image, with a prompt, is its company
        picture = GOLDEN / "eve_image_40x28.png"
        region = np.ones(read_picture(picture).shape[:2], bool)
        company = Sample(picture, (Turn("What is <Prompt2> there?"),), prompts=(Mask(region, 2),))
        items.append(model_of(family).encoder.encode(company, answers=False))
    yield from _answers(family, names, items)


def _answers(family: str, names: Sequence[str], items: Sequence[EncodedSample]) -> Iterator[Row]:
    """Asks all questions at once, and compares the first, whose names are given, with what was recorded."""
    model = model_of(family)
    network = model.model
    spies = {}
    kept: dict[int, Sequence[int]] = {}
    compact = DecodeStep.compact

    def compacting(step: DecodeStep, indices: Sequence[int]) -> None:
        kept[len(spies["decode"].given)] = indices
        compact(step, indices)

    with ExitStack() as stack:
        for key, owner, name in (
            ("forward", network.backbone, "forward"),
            ("decode", network.backbone, "decode"),
            ("logits", network.backbone, "logits"),
            ("queries", network.mask_head, "queries"),
            ("resized", engine, "resize"),
            ("schedule", PrefixSchedule, "build"),
        ):
            spies[key] = Calls(getattr(owner, name), [], [])
            stack.enter_context(patch.object(owner, name, spies[key]))
        stack.enter_context(patch.object(DecodeStep, "compact", compacting))
        found = generate(network, model.tokens, items, NEW_TOKENS)
    (schedule,) = spies["schedule"].returned
    read, orders = asked(schedule, spies["forward"], spies["decode"], kept)
    for place, (name, item) in enumerate(zip(names, items, strict=False)):
        wanted = load_file(GOLDEN / f"{name}.safetensors")
        length, prefix = len(item), item.sequence.prefix
        ids = item.sequence.ids if family == "SOLO" else one_per_picture(item)
        yield compare("prompt: token ids", name, ids, wanted["prompt_ids"][0], EXACT)
        positions = torch.cat([part for part, _ in read[place]], 1)[:, : length + NEW_TOKENS - 1]
        hidden = torch.cat([part for _, part in read[place]])[: length + NEW_TOKENS - 1]
        said = zip(orders[:NEW_TOKENS], spies["logits"].returned, strict=False)
        chosen = torch.stack([out[order.index(place)] for order, out in said])
        fed = wanted["step_position_ids"][:, 0] if family == "SOLO" else wanted["fed_position_ids"].expand(3, -1)
        yield compare("generation: positions", name, positions, fed, EXACT)
        if family == "SOLO":
            plan = AttentionPlan.build([list(item.sequence.spans)])
            mask = wanted["prefix_attention_mask"][0, 0]
            yield compare("prefix: attention mask", name, plan.dense_mask()[:prefix, :prefix], mask, EXACT)
            yield compare("prefix: last hidden states", name, hidden[:prefix], wanted["prefix_last_hidden"])
            cells = np.full(length, -1)
            for region in item.regions:
                cells[region.patch_rows] = model.tokens.prompt_ids.index(region.token_id)
            yield compare("prompt: patches", name, cells, wanted["vp_token_indices"][0].clamp(min=-1), EXACT)
        yield compare("generation: last hidden states", name, hidden, wanted["all_last_hidden"])
        yield compare("generation: logits", name, chosen, wanted["step_last_logits"])
        yield compare("generation: tokens", name, found[place].ids[-NEW_TOKENS:], wanted["new_tokens"], EXACT)
        yield compare("generation: [SEG] embeddings", name, spies["queries"].returned[place], wanted["seg_embeddings"])
        yield compare("generation: mask logits", name, spies["resized"].given[place][0], wanted["mask_logits_lowres"])
        if "mask_logits_fullres" in wanted:  # every one of these answers has one mask
            full = spies["resized"].returned[place]
            yield compare("generation: resized mask logits", name, full, wanted["mask_logits_fullres"])
        yield compare("generation: masks", name, found[place].masks, wanted["mask_bool"], EXACT)


def asked(
    schedule: PrefixSchedule, forward: Calls, decode: Calls, kept: dict[int, Sequence[int]]
) -> tuple[list[list[tuple[Tensor, Tensor]]], list[list[int]]]:
    """Positions (3, n) and states (n, D) of what was read of each question, in order; and the questions of each step.

    `kept` are the indices of the questions that go on, by the number of decode calls before.
    """
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in schedule.samples]

    def add(given: tuple[Any, ...], out: Tensor, lengths: list[int], owners: Sequence[Sequence[int]]) -> None:
        for positions, states, own in zip(given[1].split(lengths, 1), out.split(lengths), owners, strict=True):
            for index in own:
                parts[index].append((positions, states))

    groups = schedule.groups
    lengths = [schedule.prefill_length(group) for group in groups]
    add(forward.given[0], forward.returned[0], lengths, [group.members for group in groups])
    sharing = [index for index in schedule.order if schedule.prefix_length(index)]
    order = list(schedule.order)
    orders = [order]
    for count, (given, out) in enumerate(zip(decode.given, decode.returned, strict=True)):
        owners: list[tuple[int]] = []
        if sharing:  # the own tokens of those that share an image come first
            lengths = []
            while sum(lengths) < len(out):
                owners.append((sharing.pop(0),))
                lengths.append(schedule.suffix_length(owners[-1][0]))
        else:
            order = [order[position] for position in kept.get(count, range(len(order)))]
            orders.append(order)
            lengths, owners = [1] * len(order), [(index,) for index in order]
        add(given, out, lengths, owners)
    return parts, orders


STAGES = {
    function.__name__: function
    for function in (preprocessing, layout, states, loss_values, gradients, distillation, answers)
}


# -- half precision ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounding:
    """Error of a stage against float32, of the L2 norm and the largest absolute one."""

    stage: str
    relative: float
    largest: float


MODES = ("bf16-true", "bf16-mixed")


def rounding(family: str, mode: str) -> list[Rounding]:
    """Errors of one forward pass of all recorded samples in half precision, as Lightning's plugins run it.

    Mode `weights` computes in float32 with weights rounded to bfloat16: what no arithmetic can fix.
    """
    samples = [item for batch in recorded(family) for item in batch.samples]
    exact, model = _stage_values(model_of(family), samples), fresh(family)
    if mode == "weights":
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())
        rounded = _stage_values(model, samples)
    else:
        plugin = HalfPrecision("bf16-true") if mode == "bf16-true" else MixedPrecision("bf16-mixed", "cpu")
        with plugin.forward_context():
            rounded = _stage_values(plugin.convert_module(model), samples)
    rows = []
    for stage, wanted in exact.items():
        gap = rounded[stage].double() - wanted.double()
        rows.append(Rounding(stage, float(gap.norm() / wanted.double().norm()), float(gap.abs().max())))
    return rows


@torch.no_grad()
def _stage_values(model: PixelSAIL, samples: Sequence[EncodedSample]) -> dict[str, Tensor]:
    own = read(model, samples)
    sums = model.losses(pack(samples))[0]
    return {
        "embeddings with prompts": torch.cat([reading.embeddings for reading in own]),
        "states after layer 1": torch.cat([reading.first_layer for reading in own]),
        "last hidden states": torch.cat([reading.hidden for reading in own]),
        "logits": torch.cat([reading.logits for reading in own]),
        "mask features": torch.cat([reading.features.flatten() for reading in own if reading.features is not None]),
        "[SEG] embeddings": torch.cat([reading.queries for reading in own]),
        "mask logits": torch.cat([r.mask_logits.flatten() for r in own if r.mask_logits is not None]),
        "language loss": sums["language"],
        "mask loss": sums["mask"],
        "dice loss": sums["dice"],
    }
