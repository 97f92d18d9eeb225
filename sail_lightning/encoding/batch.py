"""What one step of the model reads: several samples packed into one row of tokens, without padding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sail_lightning.interfaces import Regions
from sail_lightning.sample import Sample
from sail_lightning.sequence.attention_plan import AttentionPlan


class Sealed:
    """A batch that Lightning's precision plugins must not look into: they would cast it, and refuse frozen dataclasses.

    Loaders yield it; `SailDataModule.on_before_batch_transfer` opens it.
    """

    def __init__(self, content: Any) -> None:
        self.content = content


@dataclass(frozen=True)
class Counts:
    """What losses are divided by: supervised tokens, masks, and pictures (for distillation)."""

    tokens: float
    masks: float
    images: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tokens + other.tokens, self.masks + other.masks, self.images + other.images)


@dataclass(frozen=True)
class Place:
    """How far a shard of a stream is read: all its samples before `next`, but for those in `waiting`, ascending.

    A sample's number in its shard is counted from zero. Samples wait because others fitted better into the batches.
    """

    next: int = 0
    waiting: tuple[int, ...] = ()

    @property
    def read(self) -> int:
        """How many samples are read."""
        return self.next - len(self.waiting)

    def after(self, numbers: Iterable[int]) -> Place:
        """The place after these samples, none of them read before, are read too."""
        taken = set(numbers)
        end = max([self.next, *(number + 1 for number in taken)])
        left = (number for number in (*self.waiting, *range(self.next, end)) if number not in taken)
        return Place(end, tuple(left))


@dataclass(frozen=True)
class PackedBatch:
    """T tokens of several samples. Index tensors are int64 rows of the packed row.

    `ids` (T,), `positions` (3, T), `vision` (T,) bool, True at vision tokens, `plan`: who may look where.
    `patches` (N, 3*P*P) uint8 belong at `patch_rows` (N,); `grids` are the (rows, columns) of each picture, in order.
    `regions`: the visual prompts.
    `target_rows` (S,) predict `target_ids` (S,), each with a weight `target_weights` (S,) float32.
    `seg_rows` (M,) hold `[SEG]`, grouped by picture; `seg_image` are the pictures that own any, ascending, and
    `masks` their target masks, (n, H, W) bool each at the picture's own size, n summing to M; empty without targets.
    `samples` name the records; `window` holds the counts of the whole accumulation window, where a loader knows them;
    `cursor` is the shard of a stream that the batch was read from, and its place once this batch is read; `faults`
    name the records that were skipped on the way to it.
    """

    ids: Tensor
    positions: Tensor
    vision: Tensor
    plan: AttentionPlan
    patches: Tensor
    patch_rows: Tensor
    grids: tuple[tuple[int, int], ...]
    regions: Regions
    target_rows: Tensor
    target_ids: Tensor
    target_weights: Tensor
    seg_rows: Tensor
    seg_image: tuple[int, ...]
    seg_counts: tuple[int, ...]
    masks: tuple[Tensor, ...]
    samples: tuple[Sample, ...] = ()
    window: Counts | None = None
    cursor: tuple[int, Place] | None = None
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> Counts:
        """This batch's own counts."""
        return Counts(float(len(self.target_rows)), float(len(self.seg_rows)), float(len(self.grids)))

    def to(self, device: torch.device | str, **kwargs: Any) -> PackedBatch:
        """The batch on a device; the attention plan is rebuilt there from its host integers.

        Copies to an accelerator do not wait, unless `non_blocking` says so (Lightning gives it to tensors only).
        """
        device = torch.device(device)
        if device == self.ids.device:
            return self
        kwargs.setdefault("non_blocking", device.type != "cpu")
        moved: dict[str, Any] = {"plan": AttentionPlan.build([list(spans) for spans in self.plan.samples], device)}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor | Regions):
                moved[item.name] = value.to(device, **kwargs)
        moved["masks"] = tuple(mask.to(device, **kwargs) for mask in self.masks)
        return replace(self, **moved)

    def pin_memory(self) -> PackedBatch:
        """The batch in page-locked memory, for copies that overlap with computation; loaders call it on CUDA."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        pinned: dict[str, Any] = {name: one.pin_memory() for name, one in values.items() if isinstance(one, Tensor)}
        parts = [getattr(self.regions, item.name).pin_memory() for item in fields(self.regions)]
        masks = tuple(mask.pin_memory() for mask in self.masks)
        return replace(self, **pinned, regions=Regions(*parts), masks=masks)
