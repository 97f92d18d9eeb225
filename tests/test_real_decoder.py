"""SmolLM2 as the core, where its folder is at hand: `SAIL_SMOLLM2`, made by `examples/prepare_smollm2.py`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sail_lightning import PixelSAIL
from sail_lightning.encoding.collate import pack
from sail_lightning.plugins.backbones import SailDecoder
from sail_lightning.plugins.prompt_encoders import NoPrompts
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Sample, Turn
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

FOLDER = Path(os.environ.get("SAIL_SMOLLM2", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="SAIL_SMOLLM2 names no folder of SmolLM2"),
]


@pytest.fixture(scope="module")
def model() -> PixelSAIL:
    model = PixelSAIL(
        SailDecoder(pretrained=str(FOLDER), patch_size=16),
        DeconvUpsampler(stride=4, channels=64),
        NoPrompts(0),
        tokenizer=str(FOLDER),
        mask_channels=32,
        max_side=128,
    )
    model.configure_model()
    return model


@torch.no_grad()
def test_text_alone_is_read_exactly_as_before(model: PixelSAIL) -> None:
    reference = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    backbone = model.eval().model.backbone
    ids = torch.tensor(model.tokens.tokenizer.encode("The capital of France is Paris, and the bus is orange."))
    plan = AttentionPlan.build([[Span("text", len(ids))]])
    positions, vision = torch.arange(len(ids)).expand(3, -1), torch.zeros(len(ids), dtype=torch.bool)
    wanted = reference(ids[None]).logits[0]
    found = backbone.logits(backbone(backbone.embed_tokens(ids), positions, plan, vision))
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=1e-5)


def test_a_few_steps_lower_the_loss(model: PixelSAIL) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:90] = True
    sample = Sample(picture, (Turn("Please segment the bus.", "It is [SEG].", "refer", (0,)),), (mask,))
    batch = pack([model.encoder.encode(sample)])
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-4)
    losses = []
    for _ in range(5):
        sums, _ = model.losses(batch)
        loss = torch.stack(list(sums.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
