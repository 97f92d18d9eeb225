"""A model and data so small that a training step takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A learning rate that does not depend on how long the run is to be, so that runs of several lengths compare."""
    return LambdaLR(optimizer, lambda step: 1.0)


def tiny_model(**settings: Any) -> PixelSAIL:
    torch.manual_seed(0)
    backbone = SailQwen(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, num_key_value_heads=2)
    arguments: dict[str, Any] = {"mask_channels": 16, "max_new_tokens": 4, "schedule": constant} | settings
    model = PixelSAIL(backbone, DeconvUpsampler(), PromptInjection(num_prompts=4), **arguments)
    model.configure_model()
    return model


def tiny_data(**settings: Any) -> SailDataModule:
    evaluated = LaboratorySource("val", samples=6)
    arguments: dict[str, Any] = {"token_budget": 300, "eval_batch_size": 4} | settings
    return SailDataModule(LaboratorySource(questions=2), evaluated, evaluated, **arguments)
