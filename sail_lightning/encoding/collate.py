"""Packs encoded samples into batches of at most a token budget, without padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.interfaces import Regions
from sail_lightning.sequence.attention_plan import AttentionPlan

SizedT = TypeVar("SizedT", bound=Sized)


def pack(samples: Sequence[EncodedSample]) -> PackedBatch:
    """Joins samples to one batch: row indices count the tokens before a sample too, and image indices the images."""
    starts = np.cumsum([0, *(len(item) for item in samples)])[:-1]
    images_before = np.cumsum([0, *(len(item.sequence.grids) for item in samples)])[:-1]
    seg_owners = [(item, int(first)) for item, first in zip(samples, images_before, strict=True) if len(item.seg_rows)]
    owning = [(item, first) for item, first in seg_owners if item.sequence.grids]
    weights = [np.full(len(item.sequence.target_rows), item.target_weight, np.float32) for item in samples]
    return PackedBatch(
        ids=_join([item.sequence.ids for item in samples]),
        positions=torch.from_numpy(np.concatenate([item.sequence.positions for item in samples], axis=1)),
        vision=torch.from_numpy(np.concatenate([item.sequence.vision for item in samples])),
        plan=AttentionPlan.build([list(item.sequence.spans) for item in samples]),
        patches=torch.from_numpy(np.concatenate([item.patches for item in samples])),
        patch_rows=_rows([item.sequence.patch_rows for item in samples], starts),
        grids=tuple(grid for item in samples for grid in item.sequence.grids),
        regions=_regions(samples, starts),
        target_rows=_rows([item.sequence.target_rows for item in samples], starts),
        target_ids=_join([item.sequence.target_ids for item in samples]),
        target_weights=torch.from_numpy(np.concatenate(weights)),
        seg_rows=_rows([item.seg_rows if item.sequence.grids else item.seg_rows[:0] for item in samples], starts),
        seg_image=tuple(first for _, first in owning),
        seg_counts=tuple(len(item.seg_rows) for item, _ in owning),
        masks=tuple(torch.from_numpy(np.stack(item.masks)) for item, _ in owning if item.masks),
        samples=tuple(item.sample for item in samples),
    )


def pack_stream(samples: Iterable[SizedT], token_budget: int, packing_buffer_size: int = 1) -> Iterator[list[SizedT]]:
    """Groups a stream into packs of at most `token_budget` tokens; a longer sample makes a pack of its own.

    A buffer holds `packing_buffer_size` samples. A pack begins with the oldest of them, so that none waits for more
    packs than the buffer has places. Then it takes the longest sample that still fits (the oldest of equals), each
    replaced by the next sample of the stream, until none fits. A buffer of 1 keeps the stream in order.
    """
    stream = iter(samples)
    buffered = list(islice(stream, packing_buffer_size))
    while buffered:
        group: list[SizedT] = []
        room = token_budget
        chosen: int | None = 0
        while chosen is not None:
            group.append(buffered.pop(chosen))
            room -= len(group[-1])
            buffered.extend(islice(stream, 1))
            fitting = (index for index, item in enumerate(buffered) if len(item) <= room)
            chosen = max(fitting, key=lambda index: len(buffered[index]), default=None)  # the first of equals
        yield group


def _regions(samples: Sequence[EncodedSample], starts: np.ndarray) -> Regions:
    regions = [(region, start) for item, start in zip(samples, starts, strict=True) for region in item.regions]
    patch_counts = [len(region.patch_rows) for region, _ in regions]
    mention_counts = [len(region.mention_rows) for region, _ in regions]
    index = np.arange(len(regions))
    return Regions(
        token_ids=torch.tensor([region.token_id for region, _ in regions], dtype=torch.int64),
        patch_rows=_join([region.patch_rows + start for region, start in regions]),
        patch_region=torch.from_numpy(np.repeat(index, patch_counts).astype(np.int64)),
        mention_rows=_join([region.mention_rows + start for region, start in regions]),
        mention_region=torch.from_numpy(np.repeat(index, mention_counts).astype(np.int64)),
        boxes=torch.tensor([region.box for region, _ in regions], dtype=torch.float32).reshape(-1, 4),
    )


def _rows(rows: Sequence[np.ndarray], starts: np.ndarray) -> Tensor:
    return _join([item + start for item, start in zip(rows, starts, strict=True)])


def _join(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64, copy=False))
