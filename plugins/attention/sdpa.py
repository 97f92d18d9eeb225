"""Prefix attention on any device with torch's own kernel: one call per span, no dense mask of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.interfaces import Attention
from sail_lightning.registry import register
from sail_lightning.sequence.attention_plan import AttentionPlan


@register
class SDPAAttention(Attention):
    """The reference: `scaled_dot_product_attention` per span, exact for every layout, on CPU and accelerators.

    An image span, or a text span that opens its sample, needs no mask; a later text span takes a (span, end of span)
    bool mask, shared by all layers of a step.
    """

    def prepare(self, plan: AttentionPlan, device: torch.device) -> None:
        _steps(plan, device)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Computes `Attention.forward`; query and key are cast to the dtype of value, which is also the output's.

        Autocast leaves them in float32 after the rotary embedding, and kernels need one dtype.
        """
        query, key = query.to(value.dtype), key.to(value.dtype)
        if value.is_cuda:
            # With a mask and grouped heads, CUDA falls back to the unfused kernel; the copy is cheaper.
            key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
        outputs: list[Tensor] = []
        steps = _steps(plan, value.device)
        # One split instead of a slice per span: the backward pass of each slice would zero-fill a whole tensor.
        queries = iter(query.split([step.length for sample in steps for step in sample]))
        for sample, keys, values in zip(steps, key.split(plan.lengths), value.split(plan.lengths), strict=True):
            for step in sample:
                output = F.scaled_dot_product_attention(
                    next(queries).transpose(0, 1)[None],
                    (keys if step.end is None else keys[: step.end]).transpose(0, 1)[None],
                    (values if step.end is None else values[: step.end]).transpose(0, 1)[None],
                    attn_mask=step.mask,
                    is_causal=step.causal,
                    scale=scale,
                    enable_gqa=key.shape[1] != query.shape[1],
                )
                outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs) if outputs else query


@dataclass(frozen=True, eq=False)
class Step:
    """The call for one span: `length` queries over the sample's first `end` keys, or all of them (None)."""

    length: int
    end: int | None
    causal: bool
    mask: Tensor | None


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeats each head of a key or value (T, G, E) for the queries of its group: (T, heads, E)."""
    groups = tensor.shape[1]
    if groups == heads:
        return tensor
    return tensor[:, :, None].expand(-1, -1, heads // groups, -1).flatten(1, 2)


def _steps(plan: AttentionPlan, device: torch.device) -> list[list[Step]]:
    """Returns the calls of each sample, made once per plan and device; spans of one size share their mask.

    A mask is causal, (length, end), aligned at the bottom right: the last query attends to all keys.
    """
    name = ("sdpa", device)
    if name not in plan.cache:
        masks: dict[tuple[int, int], Tensor] = {}
        steps: list[list[Step]] = []
        for spans, total in zip(plan.samples, plan.lengths, strict=True):
            steps.append([])
            end = 0
            for span in spans:
                start, end = end, end + span.length
                is_causal = span.kind == "text" and span.length > 1
                size = (span.length, end)
                if is_causal and start > 0 and size not in masks:
                    masks[size] = torch.ones(size, dtype=torch.bool, device=device).tril(start)
                mask = masks[size] if is_causal and start > 0 else None
                steps[-1].append(Step(span.length, None if end == total else end, is_causal and start == 0, mask))
        plan.cache[name] = steps
    kept: list[list[Step]] = plan.cache[name]
    return kept
