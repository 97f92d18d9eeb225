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
from sail_lightning.settings.renames import renamed


class OpaqueBatch:
    """Hides a batch from Lightning's precision plugins, which would cast its tensors and refuse frozen dataclasses.

    Data loaders yield it; `SailDataModule.on_before_batch_transfer` takes the content out.
    """

    def __init__(self, content: Any) -> None:
        self.content = content


@dataclass(frozen=True)
class Counts:
    """What losses are divided by: the numbers of supervised tokens, of masks, and of images (for distillation)."""

    tokens: float
    masks: float
    images: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tokens + other.tokens, self.masks + other.masks, self.images + other.images)


@dataclass(frozen=True)
class ShardCursor:
    """How far one shard of a stream has been read: all samples before `next` except those in `waiting` (ascending).

    Samples are numbered within their shard from zero. A sample waits when others filled the batches better.
    """

    next: int = 0
    waiting: tuple[int, ...] = ()

    @property
    def read(self) -> int:
        """Number of samples that have been read."""
        return self.next - len(self.waiting)

    def after(self, numbers: Iterable[int]) -> ShardCursor:
        """The cursor once these samples, none of which was read before, are read too."""
        taken = set(numbers)
        end = max([self.next, *(number + 1 for number in taken)])
        left = (number for number in (*self.waiting, *range(self.next, end)) if number not in taken)
        return ShardCursor(end, tuple(left))


@dataclass(frozen=True)
class PackedBatch:
    """T tokens of several samples in one packed row. Index tensors are int64 and count rows of the packed row.

    Attributes:
        ids: Token ids, (T,).
        positions: Positions of the tokens, (3, T): temporal, height, width.
        vision: Whether each token is a vision token, (T,) bool.
        plan: Which tokens each token may attend to.
        patches: Patches of all images, (N, 3*P*P) uint8.
        patch_rows: The row of each patch, (N,).
        grids: The (rows, columns) of patches of each image, in order.
        regions: The visual prompts.
        target_rows: Rows that predict a target, (S,).
        target_ids: The token id that each of them predicts, (S,).
        target_weights: The weight of each target, (S,) float32.
        seg_rows: Rows that hold `[SEG]`, grouped by image, (M,).
        seg_image: Indices of the images that have a `[SEG]`, ascending.
        seg_counts: Number of `[SEG]` of each of these images; they sum to M.
        masks: Target masks of each of these images at its own size, (n, H, W) bool; empty without targets.
        samples: The records, for messages.
        accumulation_counts: Counts of the whole accumulation window; None where the loader does not know them.
        cursor: The shard that the batch was read from, and its cursor after this batch.
        faults: One sentence for each record that was skipped before this batch.
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
    accumulation_counts: Counts | None = None
    cursor: tuple[int, ShardCursor] | None = None
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> Counts:
        """This batch's own counts."""
        return Counts(float(len(self.target_rows)), float(len(self.seg_rows)), float(len(self.grids)))

    def to(self, device: torch.device | str, **kwargs: Any) -> PackedBatch:
        """The batch on a device; the attention plan is rebuilt there from its host integers.

        Copies to an accelerator are asynchronous unless `non_blocking` is False (Lightning passes it to tensors only).
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
        """The batch in page-locked memory, so that copies overlap with computation; data loaders call it on CUDA."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        pinned: dict[str, Any] = {name: one.pin_memory() for name, one in values.items() if isinstance(one, Tensor)}
        parts = [getattr(self.regions, item.name).pin_memory() for item in fields(self.regions)]
        masks = tuple(mask.pin_memory() for mask in self.masks)
        return replace(self, **pinned, regions=Regions(*parts), masks=masks)


__getattr__ = renamed(__name__, {"Place": "ShardCursor", "Sealed": "OpaqueBatch"})
