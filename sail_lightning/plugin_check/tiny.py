"""A Pixel-SAIL of a few thousand weights, and samples that exercise every part of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.encoding.collate import pack
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Box, Mask, Sample, Turn

BACKBONE: dict[str, Any] = {
    "size": "tiny",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
}
"""Arguments of a `SailQwen` with grouped heads, patch size 8."""


def tiny(**changes: Any) -> PixelSAIL:
    """Returns a built model with its teachers, always with the same weights; `changes` are arguments of `PixelSAIL`."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "backbone": SailQwen(**BACKBONE),
        "upsampler": DeconvUpsampler(),
        "prompt_encoder": PromptInjection(num_prompts=4),
        "mask_channels": 12,
        "max_side": 48,
        "max_new_tokens": 6,
    }
    model = PixelSAIL(**(settings | changes))
    model.configure_teachers()
    return model


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns noise, (height, width, 3) uint8."""
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


def blob(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a random rectangle, (height, width) bool."""
    rng = np.random.default_rng([seed, height, width])
    top, left = rng.integers(0, height), rng.integers(0, width)
    mask = np.zeros((height, width), bool)
    mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    return mask


def records() -> list[Sample]:
    """Returns samples: an image with two prompts and three masks, a text, an image with a description only, and one
    with a mask."""
    return [
        Sample(
            noise(24, 40),
            (
                Turn("please segment <Prompt0> and <Prompt2>.", "it is [SEG] and [SEG].", "vres", (0, 1)),
                Turn("where is the red circle?", "it is [SEG].", "refer", (2,)),
            ),
            tuple(blob(24, 40, seed) for seed in range(3)),
            (Box(2, 3, 17, 20, id=0), Mask(blob(24, 40, 7), id=2)),
            source="records",
            id="0",
        ),
        Sample(None, (Turn("what is a circle?", "a shape."),), source="records", id="1"),
        Sample(noise(16, 16), (Turn("describe the picture.", "a large blue square."),), source="records", id="2"),
        Sample(
            noise(30, 9),
            (Turn("find the green cross.", "it is [SEG].", "refer", (0,)),),
            (blob(30, 9),),
            source="records",
            id="3",
        ),
    ]


def text_records() -> list[Sample]:
    """Returns samples of text only."""
    return [
        Sample(None, (Turn("what is a circle?", "a shape."),), source="text", id="0"),
        Sample(None, (Turn("what is red?", "a colour."), Turn("and blue?", "a colour.")), source="text", id="1"),
    ]


def packed(model: PixelSAIL, samples: list[Sample]) -> PackedBatch:
    """Packs samples into one batch on the model's device."""
    encoder = model.encoder
    return pack([encoder.encode(sample) for sample in samples]).to(model.device)
