"""The measured work: a model of stated sizes with random weights, and batches of stated lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sail_lightning.benchmarks.settings import Settings
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.model.model import SailModel
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import NoPrompts
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Sample, Turn
from sail_lightning.sequence.layout import SequenceBuilder

WORDS = 100
"""Ids below this one are special; tokens are drawn above it."""


@dataclass(frozen=True)
class Vocabulary:
    """Stands in for `SailTokenizer` in generation: nothing ends an answer, so all answers have the requested length."""

    seg: int = 10
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)


VOCABULARY = Vocabulary()
IMAGE_TOKENS = {"<vision>": 1, "<vpatch>": 2, "</vision>": 3}


def build_model(settings: Settings, stride: int, **backbone: Any) -> SailModel:
    """Makes the model with the same random weights each time and mask features of `stride` pixels.

    `backbone`: further arguments of `SailQwen`.
    """
    torch.manual_seed(0)
    core = SailQwen(**settings.sizes.backbone_args() | backbone)
    model = SailModel(core, DeconvUpsampler(stride), NoPrompts(num_prompts=0))
    with torch.device(settings.device):
        model.build(settings.sizes.vocabulary)
    return model.to(settings.type)


def sample(
    model: SailModel, size: tuple[int, int], words: int = 64, vocabulary: int = 32_000, seed: int = 0
) -> EncodedSample:
    """An image of noise, (height, width) pixels, then `words` supervised words, the last one a [SEG] with a mask."""
    rng = np.random.default_rng([seed, *size])
    patch = model.dims.patch_size
    grid = (size[0] // patch, size[1] // patch)
    builder = SequenceBuilder(model.backbone.image_layout.resolve(IMAGE_TOKENS)).image(grid)
    ids = [*rng.integers(WORDS, vocabulary, words - 1).tolist(), VOCABULARY.seg]
    sequence = builder.text(ids, supervised=True).build()
    mask = np.zeros(size, bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : 3 * size[1] // 4] = True
    return EncodedSample(
        sample=Sample(image=None, turns=(Turn("", "", "refer", (0,)),)),
        sequence=sequence,
        patches=rng.integers(0, 256, (grid[0] * grid[1], 3 * patch * patch), np.uint8),
        image_size=size,
        regions=(),
        seg_rows=sequence.rows_of(VOCABULARY.seg),
        masks=(mask,),
        target_weight=1.0,
    )


def questions(
    model: SailModel, size: tuple[int, int], count: int, words: int = 20, vocabulary: int = 32_000
) -> list[EncodedSample]:
    """Questions of `words` words each on one image; each answer is begun with a [SEG], so each has a mask."""
    patch = model.dims.patch_size
    grid = (size[0] // patch, size[1] // patch)
    pixels = np.random.default_rng(0).integers(0, 256, (grid[0] * grid[1], 3 * patch * patch), np.uint8)
    made = []
    for index in range(count):
        ids = np.random.default_rng([1, index]).integers(WORDS, vocabulary, words - 1).tolist()
        builder = SequenceBuilder(model.backbone.image_layout.resolve(IMAGE_TOKENS)).image(grid)
        sequence = builder.text([*ids, VOCABULARY.seg]).build()
        made.append(
            EncodedSample(
                sample=Sample(image=None, turns=(Turn("?"),)),
                sequence=sequence,
                patches=pixels,
                image_size=size,
                regions=(),
                seg_rows=sequence.rows_of(VOCABULARY.seg),
                masks=(),
                target_weight=1.0,
                answer_tokens=1,
            )
        )
    return made


def tokens_of(samples: Sequence[EncodedSample]) -> int:
    """Returns the number of tokens without padding."""
    return sum(len(item) for item in samples)
