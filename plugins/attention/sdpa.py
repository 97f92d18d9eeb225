"""Prefix attention on any device with torch's own kernel: one call per span, no dense mask of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.interfaces import Attention
from sail_lightning.plan import AttentionPlan
from sail_lightning.registry import register


@register
class SDPAAttention(Attention):
    """The reference: `scaled_dot_product_attention` per span, exact for every layout, on CPU and accelerators.

    An image span, or a text span that opens its sample, needs no mask; a later text span takes a (span, end of span)
    bool mask, shared by all layers of a step.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """As `Attention.forward`; query and key are cast to the dtype of value, which is also the output's.

        (Autocast leaves them in float32 after the rotary embedding, and kernels want one dtype.)
        """
        query, key = query.to(value.dtype), key.to(value.dtype)
        if value.is_cuda:
            # With a mask and grouped heads, CUDA falls back to the unfused kernel; the copy is cheaper.
            key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
        outputs: list[Tensor] = []
        # One split instead of a slice per span: the backward pass of each slice would zero-fill a whole tensor.
        queries = iter(query.split([span.length for spans in plan.samples for span in spans]))
        for spans, keys, values in zip(plan.samples, key.split(plan.lengths), value.split(plan.lengths), strict=True):
            end = 0
            for span in spans:
                start, end = end, end + span.length
                mask = None
                if span.kind == "text" and start > 0 and span.length > 1:
                    mask = _suffix_mask(plan, span.length, end, query.device)
                whole = end == keys.shape[0]
                output = F.scaled_dot_product_attention(
                    next(queries).transpose(0, 1)[None],
                    (keys if whole else keys[:end]).transpose(0, 1)[None],
                    (values if whole else values[:end]).transpose(0, 1)[None],
                    attn_mask=mask,
                    is_causal=span.kind == "text" and start == 0 and span.length > 1,
                    scale=scale,
                    enable_gqa=key.shape[1] != query.shape[1],
                )
                outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs) if outputs else query


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Key or value (T, G, E) to (T, heads, E): each head repeated for the heads / G queries of its group."""
    groups = tensor.shape[1]
    if groups == heads:
        return tensor
    return tensor[:, :, None].expand(-1, -1, heads // groups, -1).flatten(1, 2)


def _suffix_mask(plan: AttentionPlan, length: int, end: int, device: torch.device) -> Tensor:
    """Causal mask (length, end), aligned at the bottom right: the last query sees all keys. Kept on the plan."""
    key = ("suffix mask", length, end, device)
    if key not in plan.cache:
        plan.cache[key] = torch.ones(length, end, dtype=torch.bool, device=device).tril(end - length)
    mask: Tensor = plan.cache[key]
    return mask
