"""How a decoder reads an image: wholly or looking back only, by rows and columns or in one row of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sail import BACKBONE, packed, picture, records, tiny
from torch import Tensor

from sail_lightning.conversion import official
from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Attention
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.backbones import EncoderBackbone, SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Box
from sail_lightning.sequence.attention_plan import AttentionPlan

SWITCHES = [
    {},
    {"bidirectional": False},
    {"grid_positions": False},
    {"bidirectional": False, "grid_positions": False},
    {"bidirectional": False, "class_token": True},
]


class OracleAttention(Attention):
    """Attention under one dense mask, in float64."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        ratio = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(ratio, 1) for tensor in (key, value))
        sample = torch.repeat_interleave(torch.arange(len(plan.lengths)), torch.tensor(plan.lengths))
        mask = sample[:, None] == sample[None]
        mask = mask.tril() if self.causal else mask & plan.dense_mask()
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), value)


def hidden(model: PixelSAIL) -> Tensor:
    with torch.no_grad():
        return model.model(packed(model, records())).hidden


@pytest.mark.parametrize("switches", SWITCHES)
def test_hidden_states_are_those_of_dense_attention(switches: dict[str, Any]) -> None:
    causal = not switches.get("bidirectional", True)
    ours = tiny(backbone=SailQwen(**BACKBONE, **switches)).double()
    theirs = tiny(backbone=SailQwen(**BACKBONE, **switches, attention=OracleAttention(causal))).double()
    torch.testing.assert_close(hidden(ours), hidden(theirs), atol=1e-10, rtol=1e-10)


def test_a_causal_image_is_read_in_one_call_like_words() -> None:
    model = tiny(backbone=SailQwen(**BACKBONE, bidirectional=False))
    plan = packed(model, records()).plan
    assert [call.causal for call in plan.calls] == [True]
    assert all(span.kind == "text" for sample in plan.samples for span in sample)
    lower = torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril() for n in plan.lengths))
    assert torch.equal(plan.dense_mask(), lower)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_first_patch_knows_of_the_last_only_if_the_image_is_read_wholly(bidirectional: bool) -> None:
    model = tiny(backbone=SailQwen(**BACKBONE, bidirectional=bidirectional))
    batch = packed(model, records()[:1])
    changed = batch.patches.clone()
    changed[-1] = 255 - changed[-1]
    with torch.no_grad():
        before = model.model(batch).hidden[batch.patch_rows[0]]
        batch.patches.copy_(changed)
        after = model.model(batch).hidden[batch.patch_rows[0]]
    assert torch.equal(before, after) is not bidirectional


def test_positions_in_one_row_count_tokens() -> None:
    model = tiny(backbone=SailQwen(**BACKBONE, grid_positions=False))
    batch = packed(model, records()[:1])
    assert torch.equal(batch.positions, torch.arange(len(batch)).expand(3, -1))
    grid = packed(tiny(), records()[:1]).positions
    assert not torch.equal(grid, batch.positions)


@pytest.mark.parametrize("switches", SWITCHES)
def test_questions_together_are_answered_as_alone(switches: dict[str, Any]) -> None:
    model = tiny(backbone=SailQwen(**BACKBONE, **switches)).eval()
    image = picture(24, 40)
    asked = [
        (image, "please segment <Prompt0>.", [Box(1, 2, 15, 14)]),
        (image, "find the red circle.", []),
        (picture(16, 16), "find it.", []),
        (image, "where is the blue square?", []),
    ]
    together = model.predict_batch(asked, 5, "it is [SEG]")
    alone = [model.predict(*one, max_new_tokens=5, answer_prefix="it is [SEG]") for one in asked]
    assert [one.text for one in together] == [one.text for one in alone]
    assert all(np.array_equal(one.masks, other.masks) for one, other in zip(together, alone, strict=True))


def test_a_model_folder_remembers_the_switches(tmp_path: Path) -> None:
    model = tiny(backbone=SailQwen(**BACKBONE, bidirectional=False, grid_positions=False))
    again = PixelSAIL.from_pretrained(model.save_pretrained(tmp_path / "folder"))
    layout = again.model.backbone.image_layout
    assert (layout.bidirectional, layout.grid_positions) == (False, False)
    assert torch.equal(hidden(model), hidden(again))


def test_the_modular_baseline_has_the_same_switches() -> None:
    layout = EncoderBackbone(encoder="test_vit", bidirectional=False, grid_positions=False, **BACKBONE).image_layout
    assert (layout.bidirectional, layout.grid_positions) == (False, False)


def test_a_layout_that_a_subclass_chose_is_not_undone() -> None:
    class Causal(SailQwen):
        image_layout = SailQwen(bidirectional=False).image_layout

    assert Causal().image_layout.bidirectional is False


@pytest.mark.parametrize("switch", ["bidirectional", "grid_positions"])
def test_the_official_code_has_no_such_switch(switch: str) -> None:
    backbone = SailQwen(**BACKBONE, **{switch: False})
    model = PixelSAIL(backbone, DeconvUpsampler(stride=2), PromptInjection(2))
    with pytest.raises(SailUsageError, match="the official code reads images wholly and by rows and columns"):
        official.to_official(model)
