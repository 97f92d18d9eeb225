"""The cases of `sail-lightning bench`: each runs in our form and in the baseline's, and compares the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sail_lightning.benchmarks import official_style, workloads
from sail_lightning.benchmarks.settings import Settings, Size
from sail_lightning.benchmarks.workloads import VOCABULARY
from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.generation.engine import Generation, generate
from sail_lightning.model.losses import LanguageLoss, MaskLoss
from sail_lightning.model.model import SailModel
from sail_lightning.plugins.attention import AutoAttention, SDPAAttention

OURS, BASELINE = "ours", "official style"


@dataclass(frozen=True)
class Case:
    """Two runs of the same work; `difference` returns the largest relative difference of their results."""

    variants: Mapping[str, Callable[[], Any]]
    difference: Callable[[], float]
    tokens: int
    """Number of tokens without padding; for generation, of new tokens."""


def training_step(settings: Settings, images: tuple[Size, ...], stride: int = 2) -> Case:
    """Forward and backward pass of the whole model with language, mask and dice losses; no optimiser."""
    model = _model(settings, stride)
    samples = _samples(settings, model, images)
    batch = pack(samples).to(settings.device)
    mask_loss, language_loss = MaskLoss(), LanguageLoss()

    def run(losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)  # the same random points
        sums = losses()
        counts = {"language": len(batch.target_ids), "mask": len(batch.seg_rows), "dice": len(batch.seg_rows)}
        torch.stack([sums[name] / counts[name] for name in sums]).sum().backward()
        named = model.named_parameters()
        gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        return {name: value.detach() for name, value in sums.items()} | gradients

    def ours() -> dict[str, Tensor]:
        output = model(batch, language_loss=language_loss)
        masks = mask_loss(output.mask_logits, batch.masks)
        return {"language": output.language, "mask": masks.bce, "dice": masks.dice}

    def theirs() -> dict[str, Tensor]:
        return official_style.losses(model, samples, batch, mask_loss)

    variants = {BASELINE: partial(run, theirs), OURS: partial(run, ours)}
    return Case(variants, lambda: _difference(variants), workloads.tokens_of(samples))


def attention(settings: Settings, images: tuple[Size, ...]) -> Case:
    """Forward and backward pass of one attention layer: the plan's spans, or a dense mask over padded samples."""
    model = _model(settings, 4)
    samples = _samples(settings, model, images)
    batch = pack(samples).to(settings.device)
    sizes, device = settings.sizes, torch.device(settings.device)
    lengths = [len(item) for item in samples]
    width = sizes.hidden // sizes.heads
    generator = torch.Generator().manual_seed(0)
    heads = (sizes.heads, sizes.key_heads, sizes.key_heads)
    rows = [torch.randn(sum(lengths), count, width, generator=generator).to(device, settings.type) for count in heads]
    upstream = torch.randn(sum(lengths), sizes.heads, width, generator=generator).to(device, settings.type)
    kernel = AutoAttention() if device.type == "cuda" else SDPAAttention()
    dense = official_style.DenseAttention(official_style.dense_mask(samples, max(lengths), device))

    def run(attend: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in rows]
        output = attend(inputs)
        gradients = torch.autograd.grad(output, inputs, upstream)
        return {"output": output.detach()} | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}

    def padded(inputs: list[Tensor]) -> Tensor:
        pad = torch.nn.utils.rnn.pad_sequence
        blocks = [pad(list(tensor.split(lengths)), batch_first=True).transpose(1, 2) for tensor in inputs]
        query, key, value = blocks
        output = dense(query, key, value, width**-0.5)
        return torch.cat([row[:length] for row, length in zip(output, lengths, strict=True)])

    variants = {
        BASELINE: partial(run, padded),
        OURS: partial(run, lambda inputs: kernel(*inputs, batch.plan, width**-0.5)),
    }
    return Case(variants, lambda: _difference(variants), sum(lengths))


def language_loss(settings: Settings, images: tuple[Size, ...]) -> Case:
    """Language head and cross-entropy, forward and backward: supervised rows, or all of them."""
    model = _model(settings, 4)
    samples = _samples(settings, model, images)
    batch = pack(samples).to(settings.device)
    hidden = torch.randn(len(batch), model.dims.hidden_size, device=settings.device, dtype=settings.type)
    weight = model.backbone.get_parameter("lm_head.weight")

    def run(loss: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        states = hidden.clone().requires_grad_()
        value = loss(states)
        of_states, of_weight = torch.autograd.grad(value, (states, weight))
        return {"loss": value.detach(), "gradient of states": of_states, "of the head": of_weight}

    def ours(states: Tensor) -> Tensor:
        supervised = states.index_select(0, batch.target_rows)
        return LanguageLoss()(supervised, model.backbone.logits, batch.target_ids, batch.target_weights)

    variants = {
        BASELINE: partial(run, lambda states: official_style.all_logits_loss(model, states, batch)),
        OURS: partial(run, ours),
    }
    return Case(variants, lambda: _difference(variants), workloads.tokens_of(samples))


def mask_head(settings: Settings, images: tuple[Size, ...], stride: int = 2) -> Case:
    """Upsampler, projections and mask logits, forward and backward."""
    model = _model(settings, stride)
    samples = _samples(settings, model, images)
    batch = pack(samples).to(settings.device)
    hidden = torch.randn(len(batch), model.dims.hidden_size, device=settings.device, dtype=settings.type)
    parameters = [*model.upsampler.parameters(), *model.mask_head.parameters()]

    def run(logits_of: Callable[[Tensor], list[Tensor]]) -> dict[str, Tensor]:
        states = hidden.clone().requires_grad_()
        logits = logits_of(states)
        total = torch.stack([one.float().square().mean() for one in logits]).sum()
        gradients = torch.autograd.grad(total, [states, *parameters])
        values = {f"logits {i}": one.detach() for i, one in enumerate(logits)}
        return values | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}

    def theirs(states: Tensor) -> list[Tensor]:
        tokens = model.vision_tokens(states, batch)
        queries = model.mask_head.queries(states.index_select(0, batch.seg_rows)).split(list(batch.seg_counts))
        keys = [official_style.mask_keys(model, one, grid) for one, grid in zip(tokens, batch.grids, strict=True)]
        return [torch.einsum("nc,chw->nhw", own, key) for own, key in zip(queries, keys, strict=True)]

    variants = {
        BASELINE: partial(run, theirs),
        OURS: partial(run, lambda states: list(model.mask_logits(states, batch))),
    }
    return Case(variants, lambda: _difference(variants), workloads.tokens_of(samples))


def prefill(settings: Settings, images: tuple[Size, ...]) -> Case:
    """Reads one question on each image: one packed pass, or image and question of each, one after another."""
    model = _model(settings, 4).eval()
    samples = [
        item for size in images for item in workloads.questions(model, size, 1, vocabulary=settings.sizes.vocabulary)
    ]
    batch = pack(samples).to(settings.device)
    ends = torch.tensor([len(item) for item in samples]).cumsum(0) - 1

    @torch.inference_mode()
    def ours() -> dict[str, Tensor]:
        hidden = model.backbone(model.embed(batch), batch.positions, batch.plan, batch.vision)
        return {f"state {i}": state for i, state in enumerate(hidden[ends.to(hidden.device)])}

    def theirs() -> dict[str, Tensor]:
        return {f"state {i}": official_style.prefill(model, item)[1][-1] for i, item in enumerate(samples)}

    variants: dict[str, Callable[[], Any]] = {BASELINE: theirs, OURS: ours}
    return Case(variants, lambda: _difference(variants), workloads.tokens_of(samples))


def answers(settings: Settings, images: tuple[Size, ...], count: int, stride: int = 2) -> Case:
    """Greedy answers of a fixed length with one mask each: `count` questions on each image."""
    model = _model(settings, stride).eval()
    samples = [
        item
        for size in images
        for item in workloads.questions(model, size, count, vocabulary=settings.sizes.vocabulary)
    ]
    tokens: Any = VOCABULARY

    def ours() -> list[Generation]:
        return generate(model, tokens, samples, settings.new_tokens, stop_on_repetition=False)

    def theirs() -> list[tuple[list[int], Tensor, np.ndarray]]:
        made = official_style.generate(model, samples, settings.new_tokens)
        return [
            (ids, logits, official_style.at_image_size(logits, item))
            for (ids, logits), item in zip(made, samples, strict=True)
        ]

    def difference() -> float:
        """Returns the relative difference of mask logits; 1 where any id or more than a hundredth of a mask differs.

        A model with random weights masks nearly all of every image, so comparing masks alone is no test.
        """
        with _mask_logits(model) as found:
            own = ours()
        others = theirs()
        # The begun [SEG] is part of our answer.
        if any(answer.ids[1:] != ids for answer, (ids, _, _) in zip(own, others, strict=True)):
            return 1.0
        if any(np.mean(answer.masks != masks) > 0.01 for answer, (_, _, masks) in zip(own, others, strict=True)):
            return 1.0
        wanted = [logits.float() for _, logits, _ in others]
        differences = [
            (one.float() - other).norm() / (other - other.mean()).norm()
            for one, other in zip(found, wanted, strict=True)
        ]
        return float(torch.stack(differences).max())

    return Case({BASELINE: theirs, OURS: ours}, difference, len(samples) * settings.new_tokens)


@contextmanager
def _mask_logits(model: SailModel) -> Iterator[list[Tensor]]:
    """Mask logits (1, h, w) of each answer with one mask that `generate` makes within, images in order."""
    found: list[Tensor] = []
    read = model.predict_masks

    def recorded(*arguments: Any) -> dict[int, Tensor]:
        logits = read(*arguments)
        found.extend(mask for image in sorted(logits) for mask in logits[image].split(1))
        return logits

    model.predict_masks = recorded  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        del model.predict_masks


@dataclass(frozen=True)
class Entry:
    """A case in the list: its title, and the function that makes it."""

    title: str
    make: Callable[[Settings], Case]


CASES: dict[str, Entry] = {
    "step-single": Entry("training step, one image", lambda s: training_step(s, s.single)),
    "step-batch": Entry("training step, images of mixed sizes", lambda s: training_step(s, s.mixed)),
    "step-single-stride4": Entry("the same, one image, stride 4", lambda s: training_step(s, s.single, 4)),
    "step-batch-stride4": Entry("the same, mixed sizes, stride 4", lambda s: training_step(s, s.mixed, 4)),
    "attention-single": Entry("attention of one layer, one image", lambda s: attention(s, s.single)),
    "attention-batch": Entry("attention of one layer, mixed sizes", lambda s: attention(s, s.mixed)),
    "loss": Entry("language head and loss, mixed sizes", lambda s: language_loss(s, s.mixed)),
    "mask-head-single": Entry("mask head, one image", lambda s: mask_head(s, s.single)),
    "mask-head-batch": Entry("mask head, mixed sizes", lambda s: mask_head(s, s.mixed)),
    "prefill": Entry("reading images and questions, mixed sizes", lambda s: prefill(s, s.mixed)),
    "answer": Entry("one question, one image", lambda s: answers(s, s.single, 1)),
    "questions": Entry("several questions, one image", lambda s: answers(s, s.single, s.questions)),
}


def _model(settings: Settings, stride: int) -> SailModel:
    return workloads.build_model(settings, stride)


def _samples(settings: Settings, model: SailModel, images: tuple[Size, ...]) -> list[EncodedSample]:
    return [workloads.sample(model, size, settings.words, settings.sizes.vocabulary) for size in images]


def _difference(variants: Mapping[str, Callable[[], dict[str, Tensor]]]) -> float:
    """Largest relative difference (2-norm) between the tensors of two variants."""
    first, second = (run() for run in variants.values())
    assert first.keys() == second.keys()
    pairs = [(first[name].float(), second[name].float()) for name in first]
    return max(float((one - other).norm() / one.norm().clamp_min(1e-12)) for one, other in pairs)
