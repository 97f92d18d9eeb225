"""Training samples of an instance segmentation expert: an image, its masks and their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sail_lightning.data.sources.base import Source
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import load_image, load_mask
from sail_lightning.image.resizing import resize_batch
from sail_lightning.sample import Sample
from sail_lightning.sequence.chat_template import phrases_of

UNNAMED = "object"
"""Class of a mask without a phrase."""
TRIED, ENDLESS = 100, 2**31
"""Largest number of records that are tried in place of one without masks, and range of indices of an endless source."""
InputSize = Callable[[tuple[int, int]], tuple[int, int]]
"""Maps an image's (height, width) to the size that the expert sees."""


@dataclass(frozen=True)
class Instances:
    """An image (3, H, W) uint8, RGB, masks (n, H, W) bool and their classes (n,) int64."""

    pixels: Tensor
    masks: Tensor
    labels: Tensor


def named_masks(sample: Sample, words: int) -> list[tuple[int, str]]:
    """Returns the indices of the masks that a sample's answers name, once each, and their classes.

    Args:
        sample: Sample whose answers hold the phrases of its masks, as in `<p> a red circle </p> [SEG]`.
        words: Number of last words of a phrase that are its class, such as `circle` or `red circle`; 0 is one class for
            all.
    """
    found: dict[int, str] = {}
    for turn in sample.turns:
        phrases = phrases_of(turn.answer)
        names = phrases if len(phrases) == len(turn.targets) else ("",) * len(turn.targets)
        for target, phrase in zip(turn.targets, names, strict=True):
            name = " ".join(phrase.lower().split()[-words:]) if words else ""
            if name or target not in found:
                found[target] = name or UNNAMED
    return list(found.items())


def class_names(source: Source, records: int, words: int) -> list[str]:
    """Returns the classes of the first `records` records in alphabetical order.

    Raises:
        SailError: These records hold no mask.
    """
    count = Counter(name for index in range(records) for _, name in named_masks(source.full_record(index), words))
    if not count:
        raise SailError(f"the first {records} records hold no mask, from which an expert could learn")
    return sorted(count)


class InstanceDataset(Dataset[Instances | None]):
    """Dataset of `count` records of a source, in order, or for training shuffled anew for each pass.

    Args:
        source: Source of the samples, which are read with all objects (`Source.full_record`).
        classes: Names of the classes; masks of other names are left out.
        words: Number of last words of a phrase that are its class.
        input_size: Maps the size of an image to that of the expert's input.
        count: Number of records.
        seed: Seed of the shuffling for training, and of the records that replace those without masks; None keeps the
            order, and records without masks are None.
    """

    def __init__(
        self,
        source: Source,
        classes: Sequence[str],
        words: int,
        input_size: InputSize,
        count: int,
        seed: int | None = None,
    ) -> None:
        self.source, self.words, self.input_size = source, words, input_size
        self.labels = {name: label for label, name in enumerate(classes)}
        self.count, self.seed = count, seed
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Instances | None:
        """Returns a record; None if it has no image or no mask of a known class, which never happens in training.

        Raises:
            SailError: An image or a mask cannot be read, or no record has a known mask.
        """
        found = self._read(self._record(place))
        if found is not None or self.seed is None:
            return found
        rng = np.random.default_rng((self.seed, place))
        for _ in range(TRIED):
            found = self._read(int(rng.integers(self.source.length or ENDLESS)))
            if found is not None:
                return found
        raise SailError(f"{type(self.source).__name__}: {TRIED} records, drawn one after the other, hold no known mask")

    def _read(self, record: int) -> Instances | None:
        sample = self.source.full_record(record)
        named = [(mask, self.labels[name]) for mask, name in named_masks(sample, self.words) if name in self.labels]
        if not named or not sample.images:
            return None
        pixels = torch.from_numpy(load_image(sample.images[0]).transpose(2, 0, 1).copy())
        masks = torch.from_numpy(np.stack([load_mask(sample.masks[mask]) for mask, _ in named]))
        if masks.shape[-2:] != pixels.shape[-2:]:
            raise SailError(f"{sample.source} {sample.id}: its masks and its image have different sizes")
        size = self.input_size((pixels.shape[-2], pixels.shape[-1]))
        seen = F.interpolate(masks[None].float(), size, mode="nearest")[0] > 0.5
        labels = torch.tensor([label for _, label in named])
        there = seen.flatten(1).any(1)  # a small mask may vanish when its image is reduced
        if not there.any():
            return None
        return Instances(resize_batch(pixels[None], size)[0].to(torch.uint8), seen[there], labels[there])

    def _record(self, number: int) -> int:
        length = self.source.length
        if length is None:
            return number
        turn, place = divmod(number, length)
        if self.seed is None:
            return place
        if self._order is None or self._order[0] != turn:
            self._order = turn, self.source.order(np.random.default_rng((self.seed, turn)))
        return int(self._order[1][place])


@dataclass(frozen=True)
class InstanceBatch:
    """Batch of images (B, 3, H, W) uint8, padded with black on the right and below, and for each image its masks
    (n, H, W) bool and classes (n,) int64."""

    pixels: Tensor
    masks: list[Tensor]
    labels: list[Tensor]


def collate(found: Sequence[Instances | None]) -> InstanceBatch | None:
    """Returns instances as one batch; None if there are none."""
    batch = [one for one in found if one is not None]
    if not batch:
        return None
    height, width = (max(one.pixels.shape[side] for one in batch) for side in (1, 2))

    def padded(maps: Tensor) -> Tensor:
        return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]))

    return InstanceBatch(
        torch.stack([padded(one.pixels) for one in batch]),
        [padded(one.masks) for one in batch],
        [one.labels for one in batch],
    )
