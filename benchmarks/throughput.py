"""Tokens per second of training on packed batches: of the transformer alone, and with the mask head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sail_lightning.benchmarks import flops, workloads
from sail_lightning.benchmarks.measure import alternate, peak_allocated
from sail_lightning.benchmarks.settings import Settings
from sail_lightning.encoding.collate import pack
from sail_lightning.errors import SailError
from sail_lightning.model.losses import LanguageLoss, MaskLoss

PEAKS = {"of_measured_product": 790.0, "of_data_sheet": 989.0}
"""TFLOP/s of an H100 or H200 (SXM) in bfloat16: of a large matrix product, measured, and by the data sheet."""


@dataclass(frozen=True)
class Throughput:
    """Throughput of one form of the training step (forward and backward pass, no optimiser).

    `peak_mib` is all that CUDA tensors take at the peak, weights and gradients included; None on the CPU. `peaks` are
    the TFLOP/s that it could do, by name; empty where they are not known.
    """

    name: str
    tokens: int
    seconds: float
    flops: int
    peak_mib: float | None
    peaks: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def teraflops(self) -> float:
        """TFLOP/s for the exact mask and supervised logits."""
        return self.flops / self.seconds / 1e12

    @property
    def shares(self) -> dict[str, float]:
        """Model FLOPs utilisation: `teraflops` as a share of each peak."""
        return {name: self.teraflops / peak for name, peak in self.peaks.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the values for JSON, with the derived ones."""
        derived = {"tokens_per_second": self.tokens_per_second, "teraflops": self.teraflops, "shares": self.shares}
        return asdict(self) | derived


def peaks_of(machine: str, dtype: str) -> dict[str, float]:
    """Returns `PEAKS` if they apply to this machine, by its CUDA name; else nothing."""
    known = dtype == "bfloat16" and ("H100 80GB HBM3" in machine or ("H200" in machine and "NVL" not in machine))
    return PEAKS if known else {}


def measure(settings: Settings, repetitions: int) -> list[Throughput]:
    """Measures the model of the settings on one packed batch of `budget` tokens.

    Raises:
        SailError: the device's memory is too small.
    """
    name = settings.sizes.preset or f"hidden {settings.sizes.hidden}, {settings.sizes.layers} layers"
    try:
        return _measure(name, settings, repetitions)
    except torch.OutOfMemoryError:
        # Without the cause, which holds what it ran out of.
        raise SailError(
            f"throughput of {name}: a batch of {settings.budget} tokens does not fit into the device's memory; "
            "give --checkpointing, or a smaller --budget"
        ) from None


def _measure(name: str, settings: Settings, repetitions: int) -> list[Throughput]:
    device = torch.device(settings.device)
    options = {"activation_checkpointing": settings.checkpointing, "compile_layers": settings.compile}
    model = workloads.build_model(settings, 4, **options)
    images = [settings.mixed[-1]]
    one = len(workloads.sample(model, images[0], settings.words, settings.sizes.vocabulary))
    samples = [
        workloads.sample(model, images[0], settings.words, settings.sizes.vocabulary, seed)
        for seed in range(max(1, settings.budget // one))
    ]
    batch = pack(samples).to(device)
    mask_loss, language_loss = MaskLoss(), LanguageLoss()
    supervised = len(batch.target_ids)

    def transformer() -> Tensor:
        hidden = model.backbone(model.embed(batch), batch.positions, batch.plan, batch.vision)
        states = hidden.index_select(0, batch.target_rows)
        return language_loss(states, model.backbone.logits, batch.target_ids, batch.target_weights) / supervised

    def everything() -> Tensor:
        output = model(batch, language_loss=language_loss)
        masks = mask_loss(output.mask_logits, batch.masks)
        return output.language / supervised + (masks.bce + masks.dice) / len(batch.seg_rows)

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            loss().backward()

        return run

    transformer_flops = flops.transformer_forward(model, batch.plan, len(batch.patches), supervised)
    head_flops = flops.mask_head_forward(model, batch.grids, len(batch.seg_rows))
    peaks = peaks_of(torch.cuda.get_device_name(device), settings.dtype) if device.type == "cuda" else {}
    found = []
    for title, run, forward in (
        (f"{name}, transformer", step(transformer), transformer_flops),
        (f"{name}, with mask head", step(everything), transformer_flops + head_flops),
    ):
        run()  # compiles, and makes the gradients' buffers
        peak = peak_allocated(run, device)
        seconds = alternate({title: run}, repetitions, device)[title].median
        found.append(Throughput(title, len(batch), seconds, flops.training_step(forward), peak, peaks))
    return found
