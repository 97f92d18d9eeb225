"""Tokens per second of training on packed batches: of the transformer alone, and with the mask head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sail_lightning.benchmarks import flops, workloads
from sail_lightning.benchmarks.measure import alternate, peak_memory
from sail_lightning.benchmarks.settings import Settings
from sail_lightning.data.collate import pack
from sail_lightning.losses import LanguageLoss, MaskLoss


@dataclass(frozen=True)
class Throughput:
    """Of one form of the training step (forward and backward pass, no optimiser)."""

    name: str
    tokens: int
    seconds: float
    flops: int
    peak_mib: float | None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def teraflops(self) -> float:
        """Per second; of the exact mask and of supervised logits."""
        return self.flops / self.seconds / 1e12


def measure(settings: Settings, repetitions: int) -> list[Throughput]:
    """The model of the settings, in bfloat16 on CUDA, on one packed batch of `budget` tokens."""
    device = torch.device(settings.device)
    options = {"activation_checkpointing": settings.checkpointing, "compile_layers": settings.compile}
    model = workloads.build_model(settings.sizes, 4, device, **options)
    if device.type == "cuda":
        model.bfloat16()
    pictures = [settings.mixed[-1]]
    one = len(workloads.sample(model, pictures[0], settings.words, settings.sizes.vocabulary))
    samples = [
        workloads.sample(model, pictures[0], settings.words, settings.sizes.vocabulary, seed)
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
    name = settings.sizes.preset or f"hidden {settings.sizes.hidden}, {settings.sizes.layers} layers"
    found = []
    for title, run, forward in (
        (f"{name}, transformer", step(transformer), transformer_flops),
        (f"{name}, with mask head", step(everything), transformer_flops + head_flops),
    ):
        run()  # compiles, and makes the gradients' buffers
        peak = peak_memory(run, device) if device.type == "cuda" else None
        seconds = alternate({title: run}, repetitions, device)[title].median
        found.append(Throughput(title, len(batch), seconds, flops.training_step(forward), peak))
    return found
