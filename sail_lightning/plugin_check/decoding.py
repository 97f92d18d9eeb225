"""Reads sequences through a KV cache, a few tokens at a time, to compare with a single pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sail_lightning.generation.kv_cache import SlottedKVCache, group_rows, visibility_mask
from sail_lightning.interfaces import Backbone
from sail_lightning.sequence.attention_plan import AttentionPlan, Span


@torch.no_grad()
def read_in_turns(
    backbone: Backbone,
    rows: Sequence[Tensor],
    positions: Sequence[Tensor],
    vision: Sequence[Tensor],
    given: Sequence[int],
) -> list[Tensor]:
    """Returns states (L, D) of causal sequences of embeddings (L, D) at positions (3, L), each in a row of a cache.

    The first `given` tokens of each are read in one packed row, then 3, 1, 2, 3, ... tokens, and then one by one.
    """
    device = rows[0].device
    total = [len(row) for row in rows]
    cache = SlottedKVCache(len(rows), max(total))
    slots = [row * cache.capacity + torch.arange(end, device=device) for row, end in enumerate(given)]
    cache.set_write_slots(torch.cat(slots))
    first = backbone(
        torch.cat([row[:end] for row, end in zip(rows, given, strict=True)]),
        torch.cat([place[:, :end] for place, end in zip(positions, given, strict=True)], 1),
        AttentionPlan.build([[Span("text", end)] for end in given], device),
        torch.cat([seen[:end] for seen, end in zip(vision, given, strict=True)]),
        cache,
    )
    states = [[part] for part in first.split(list(given))]
    read = list(given)
    wanted = [(3, 1, 2)[row % 3] for row in range(len(rows))]
    while read != total:
        counts = [min(want, end - start) for want, end, start in zip(wanted, total, read, strict=True)]
        cuts = [slice(start, start + count) for start, count in zip(read, counts, strict=True)]
        ends = torch.cat([torch.arange(cut.start, cut.stop, device=device) + 1 for cut in cuts])
        row = torch.arange(len(rows), device=device).repeat_interleave(torch.tensor(counts, device=device))
        groups = group_rows(counts, device)
        none = torch.zeros_like(ends)
        masks = visibility_mask(none, none, ends, cache.capacity).split([group.tokens for group in groups])
        views = [group.view(mask) for group, mask in zip(groups, masks, strict=True)]
        cache.set_write_slots(row * cache.capacity + ends - 1, views)
        hidden = backbone.decode(
            torch.cat([own[cut] for own, cut in zip(rows, cuts, strict=True)]),
            torch.cat([place[:, cut] for place, cut in zip(positions, cuts, strict=True)], 1),
            cache,
        )
        for own, part in zip(states, hidden.split(counts), strict=True):
            own.append(part)
        read = [start + count for start, count in zip(read, counts, strict=True)]
        wanted = [1] * len(rows)
    return [torch.cat(own) for own in states]
