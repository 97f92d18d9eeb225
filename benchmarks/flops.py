"""Counts the floating-point operations that the single transformer needs: exact mask, supervised logits.

A multiply-add counts two. Norms, activations, rotary positions and the softmax are left out, as usual. A training step
is three forward passes (recomputation is not counted); attention scores likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sail_lightning.model.model import SailModel
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sequence.attention_plan import AttentionPlan


def seen_keys(plan: AttentionPlan) -> int:
    """Returns the number of visible query-key pairs of a batch: the true entries of the dense mask."""
    total = 0
    for spans in plan.samples:
        end = 0
        for span in spans:
            start, end = end, end + span.length
            total += span.length * end if span.kind == "image" else (end * (end + 1) - start * (start + 1)) // 2
    return total


def transformer_forward(model: SailModel, plan: AttentionPlan, patches: int, supervised: int) -> int:
    """Returns the FLOPs of a forward pass of the decoder, the patch embedding and the language head."""
    tokens = sum(plan.lengths)
    weights = sum(linear.weight.numel() for linear in decoder_linears(model))
    ends = patches * model.backbone.get_parameter("vis_embed.weight").numel()
    ends += supervised * model.backbone.get_parameter("lm_head.weight").numel()
    return 2 * tokens * weights + attention_forward(model, plan) + 2 * ends


def attention_forward(model: SailModel, plan: AttentionPlan) -> int:
    """Returns the FLOPs of attention scores and weighted sums of all layers."""
    config: Any = model.backbone.get_submodule("model").config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(4 * seen_keys(plan) * width * config.num_attention_heads * config.num_hidden_layers)


def decoder_linears(model: SailModel) -> list[nn.Linear]:
    """Returns the FLOPs of the matrices that every token is multiplied with."""
    return [part for part in model.backbone.get_submodule("model").modules() if isinstance(part, nn.Linear)]


def mask_head_forward(model: SailModel, grids: Sequence[tuple[int, int]], masks: int) -> int:
    """Returns the FLOPs of a forward pass of the upsampler and the projections, with folded key layer."""
    upsampler = model.upsampler
    if not isinstance(upsampler, DeconvUpsampler):
        raise TypeError("only the paper's upsampler is counted")
    cells = sum(rows * columns for rows, columns in grids)
    channels, doublings = model.dims.feature_channels, len(upsampler.blocks)
    pre = sum(m.weight.numel() for m in upsampler.pre_projector.modules() if isinstance(m, nn.Linear))
    total = 2 * cells * pre
    for block in range(1, doublings + 1):
        pixels = cells * 4**block
        total += 2 * pixels * (2 * channels * channels + 9 * channels)  # transposed, point-wise, depth-wise
    pixels = cells * 4**doublings
    return total + 2 * pixels * (channels * channels) + 2 * masks * channels * pixels // max(1, len(grids))


def training_step(forward: int) -> int:
    """Returns the FLOPs of a forward and backward pass."""
    return 3 * forward
