"""Prefix attention on CUDA with torch's own block-sparse kernel: one call per layer, no library other than torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Attention
from sail_lightning.registry import register
from sail_lightning.sequence.attention_plan import AttentionPlan

BLOCK = 128
"""Rows and columns of a block, which is computed fully, in part, or not at all."""


@register
class FlexAttention(Attention):
    """`flex_attention` over the packed row, compiled on CUDA; blocks that no query attends to are skipped.

    Grouped heads are supported. On the CPU it serves for checks only: not compiled, dense, without gradients.
    """

    def prepare(self, plan: AttentionPlan, device: torch.device) -> None:
        _block_mask(plan, device)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Computes `Attention.forward`; query and key are cast to the dtype of value, which is also the output's.

        Raises:
            SailUsageError: gradients are needed on the CPU.
        """
        if value.device.type == "cpu":
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
                raise SailUsageError("FlexAttention has no gradients on the CPU; choose `attention: SDPAAttention`")
            query, key, value = query.detach(), key.detach(), value.detach()  # torch checks requires_grad only
        if len(query) == 0:
            return query.to(value.dtype)
        query, key, value = (tensor.to(value.dtype).transpose(0, 1)[None] for tensor in (query, key, value))
        # Inside a compiled layer the call is compiled with it.
        fuse = value.is_cuda and not torch.compiler.is_compiling()
        kernel: Any = _compiled() if fuse else flex_attention
        output = kernel(
            query,
            key,
            value,
            block_mask=_block_mask(plan, value.device),
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return output[0].transpose(0, 1)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """Returns the kernel, compiled once for all lengths."""
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(plan: AttentionPlan, device: torch.device) -> BlockMask:
    """Returns the plan's mask for `flex_attention`, made once per plan and device, without a dense mask.

    Every query attends to one run of keys, first <= key < last, and so do the queries of a block together: a sample's
    last query attends to its end, where the next sample's keys begin.
    """
    name = ("flex", device)
    if name not in plan.cache:
        first, last = visible_runs(plan)
        edges = torch.arange(0, len(first), BLOCK)
        # Rows that pad the last block attend to nothing.
        opens = F.pad(first, (0, -len(first) % BLOCK), value=len(first)).view(-1, BLOCK)
        closes = F.pad(last, (0, -len(last) % BLOCK)).view(-1, BLOCK)
        seen = (opens.amin(1, keepdim=True) < edges + BLOCK) & (closes.amax(1, keepdim=True) > edges)
        wholly = (opens.amax(1, keepdim=True) <= edges) & (closes.amin(1, keepdim=True) >= edges + BLOCK)
        first, last = first.to(device), last.to(device)

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (first[query] <= key) & (key < last[query])

        plan.cache[name] = BlockMask.from_kv_blocks(
            *_listed(seen & ~wholly, device),
            *_listed(wholly, device),
            BLOCK_SIZE=BLOCK,
            mask_mod=rule,
            seq_lengths=(len(first), len(first)),
        )
    mask: BlockMask = plan.cache[name]
    return mask


def visible_runs(plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """Returns the keys that each query attends to: first (T,) and one past the last (T,), int32, on the CPU."""
    first: list[Tensor] = []
    last: list[Tensor] = []
    base = 0
    for spans, total in zip(plan.samples, plan.lengths, strict=True):
        first.append(torch.full((total,), base, dtype=torch.int32))
        end = base
        for span in spans:
            start, end = end, end + span.length
            if span.kind == "image":
                last.append(torch.full((span.length,), end, dtype=torch.int32))
            else:
                last.append(torch.arange(start + 1, end + 1, dtype=torch.int32))
        base += total
    return torch.cat(first), torch.cat(last)


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Converts blocks (R, C) bool to counts (1, 1, R) and columns (1, 1, R, C), the used ones first; int32."""
    columns = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None].to(device), columns.int()[None, None].to(device)
