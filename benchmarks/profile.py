"""Profiles a training step: its operations by part, the speed of its matrix products, the memory that it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sail_lightning.benchmarks import cases, flops, workloads
from sail_lightning.benchmarks.measure import MIB, alternate
from sail_lightning.benchmarks.settings import Settings, Size
from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.encoding.collate import pack
from sail_lightning.model.model import SailModel

STRIDE = 2
"""Stride of the mask features in pixels, as in the official weights."""


def measure(settings: Settings, repetitions: int) -> dict[str, float]:
    """Measures the parts of the training steps `step-single` and `step-batch`.

    Args:
        settings: Settings of the benchmark.
        repetitions: Number of times each part is timed; medians are returned.

    Returns:
        Values by name; each name begins with `single_` or `mixed_`. Operations of a step: `mask_head_gflop`,
        `decoder_gflop` (with the language head and the patches), `attention_gflop`. Speed of a step's matrix products,
        forward and backward, each run alone: `products_gflop_per_s`, and on the CPU `products_gflop_per_s_thread`.
        Seconds: `floor_s` (mask head and decoder at that speed, plus attention), `attention_s` (all layers, measured)
        and `step_s` (measured). Memory kept for the backward pass: `last_block_mib` (the three products of the mask
        head's largest maps) and `decoder_mib` (the decoder).
    """
    found: dict[str, float] = {}
    for name, images in (("single", settings.single), ("mixed", settings.mixed)):
        found |= {f"{name}_{key}": value for key, value in _step(settings, images, repetitions).items()}
    return found


def _step(settings: Settings, images: tuple[Size, ...], repetitions: int) -> dict[str, float]:
    device = torch.device(settings.device)
    model = workloads.build_model(settings, STRIDE)
    words, vocabulary = settings.words, settings.sizes.vocabulary
    batch = pack([workloads.sample(model, size, words, vocabulary) for size in images]).to(device)
    attention = flops.attention_forward(model, batch.plan)
    transformer = flops.transformer_forward(model, batch.plan, len(batch.patches), len(batch.target_ids))
    head = flops.mask_head_forward(model, batch.grids, len(batch.seg_rows))
    gflop = {
        "mask_head_gflop": flops.training_step(head) / 1e9,
        "decoder_gflop": flops.training_step(transformer - attention) / 1e9,
        "attention_gflop": flops.training_step(attention) / 1e9,
    }

    def timed(run: Callable[[], Any]) -> float:
        return alternate({"": run}, repetitions, device)[""].median

    counted = products(model, batch)
    seconds = sum(count * timed(_product(*shape, settings)) for shape, count in counted.items())
    rate = sum(count * 6 * rows * inner * outer for (rows, inner, outer), count in counted.items()) / seconds / 1e9
    rates = {"products_gflop_per_s": rate}
    if device.type == "cpu":
        rates["products_gflop_per_s_thread"] = rate / settings.threads
    attention_s = settings.sizes.layers * timed(cases.attention(settings, images).variants[cases.OURS])
    pixels = sum(rows * columns for rows, columns in batch.grids) * (model.dims.patch_size // STRIDE) ** 2
    return {
        **gflop,
        **rates,
        "attention_s": attention_s,
        "floor_s": (gflop["mask_head_gflop"] + gflop["decoder_gflop"]) / rate + attention_s,
        "step_s": timed(cases.training_step(settings, images, STRIDE).variants[cases.OURS]),
        "last_block_mib": 3 * pixels * model.dims.feature_channels * settings.type.itemsize / MIB,
        "decoder_mib": _kept(model, batch) / MIB,
    }


def products(model: SailModel, batch: PackedBatch) -> Counter[tuple[int, int, int]]:
    """Returns the large matrix products of a forward pass, (rows, inner, outer), and the number of each."""
    backbone: Any = model.backbone
    upsampler: Any = model.upsampler
    cells = len(batch.patches)
    channels = model.dims.feature_channels
    found = Counter((len(batch), part.in_features, part.out_features) for part in flops.decoder_linears(model))
    found[(len(batch.target_ids), backbone.lm_head.in_features, backbone.lm_head.out_features)] += 1
    hidden, patch = model.backbone.get_parameter("vis_embed.weight").flatten(1).shape
    found[(cells, patch, hidden)] += 1
    for part in upsampler.pre_projector.modules():
        if isinstance(part, nn.Linear):
            found[(cells, part.in_features, part.out_features)] += 1
    for block in range(len(upsampler.blocks)):
        found[(cells * 4**block, channels, 4 * channels)] += 1  # transposed
        found[(cells * 4 ** (block + 1), channels, channels)] += 1  # point-wise
    found[(cells * 4 ** len(upsampler.blocks), channels, channels)] += 1  # keys
    return found


def _product(rows: int, inner: int, outer: int, settings: Settings) -> Callable[[], object]:
    """Runs a matrix product of a layer: forward, and the two products of its backward pass."""
    make = partial(torch.ones, device=settings.device, dtype=settings.type)
    left, weight, gradient = make(rows, inner), make(outer, inner), make(rows, outer)
    return lambda: (torch.mm(left, weight.T), torch.mm(gradient, weight), torch.mm(gradient.T, left))


def _kept(model: SailModel, batch: PackedBatch) -> int:
    """Returns the bytes that the decoder keeps for the backward pass, without weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no memory address is reused and counted once only

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    embeddings = model.embed(batch)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.backbone(embeddings, batch.positions, batch.plan, batch.vision)
    return sum(kept.values())
