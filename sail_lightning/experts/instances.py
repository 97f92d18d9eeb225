"""Samples as an expert of instance segmentation learns them: a picture, the masks in it, and what each one shows."""

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
from sail_lightning.plugins.teachers.frozen import resized
from sail_lightning.sample import Sample
from sail_lightning.sequence.chat_template import phrases_of

UNNAMED = "object"
"""The class of a mask without a phrase."""
TRIED, ENDLESS = 100, 2**31
"""Records that are drawn in place of one without masks, at most; numbers that are drawn of a source without end."""
InputSize = Callable[[tuple[int, int]], tuple[int, int]]
"""From a picture's (height, width) to the one that the expert sees."""


@dataclass(frozen=True)
class Instances:
    """A picture (3, H, W) uint8, RGB, masks (n, H, W) bool and their classes (n,) int64."""

    pixels: Tensor
    masks: Tensor
    labels: Tensor


def named_masks(sample: Sample, words: int) -> list[tuple[int, str]]:
    """The masks that a sample's answers name, once each, and the class of each.

    Args:
        sample: with the phrases of its masks in its answers, `<p> a red circle </p> [SEG]`.
        words: so many last words of a phrase are its class: `circle`, or `red circle`; 0 for one class of all.
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
    """The classes of the first `records` records, in alphabetical order.

    Raises:
        SailError: they hold no mask.
    """
    count = Counter(name for index in range(records) for _, name in named_masks(source.whole(index), words))
    if not count:
        raise SailError(f"the first {records} records hold no mask, from which an expert could learn")
    return sorted(count)


class InstanceDataset(Dataset[Instances | None]):
    """So many records of a source, in order; or, for training, shuffled anew for each pass over a finite one.

    Args:
        source: of the samples, all objects of which are taken (`Source.whole`).
        classes: their names; what is called otherwise is left out.
        words: of a phrase that are its class.
        input_size: of the expert.
        count: how many.
        seed: for training: of the shuffling, and of what is drawn in place of records without masks, the same ones each
            time; None keeps the order, and such records are None.
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
        self.places = {name: place for place, name in enumerate(classes)}
        self.count, self.seed = count, seed
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Instances | None:
        """None where a record has no picture, or no mask of a known class; never in training.

        Raises:
            SailError: a picture or a mask that cannot be read, which it names; or no record that can be taken.
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
        sample = self.source.whole(record)
        named = [(mask, self.places[name]) for mask, name in named_masks(sample, self.words) if name in self.places]
        if not named or not sample.images:
            return None
        pixels = torch.from_numpy(load_image(sample.images[0]).transpose(2, 0, 1).copy())
        masks = torch.from_numpy(np.stack([load_mask(sample.masks[mask]) for mask, _ in named]))
        if masks.shape[-2:] != pixels.shape[-2:]:
            raise SailError(f"{sample.source} {sample.id}: masks of another size than the picture")
        size = self.input_size((pixels.shape[-2], pixels.shape[-1]))
        seen = F.interpolate(masks[None].float(), size, mode="nearest")[0] > 0.5
        labels = torch.tensor([label for _, label in named])
        there = seen.flatten(1).any(1)  # a small one may vanish where pictures are made smaller
        if not there.any():
            return None
        return Instances(resized(pixels[None], size)[0].to(torch.uint8), seen[there], labels[there])

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
    """Pictures (B, 3, H, W) uint8, smaller ones with black to the right and below; masks (n, H, W) bool and classes
    (n,) int64 of each."""

    pixels: Tensor
    masks: list[Tensor]
    labels: list[Tensor]


def collate(found: Sequence[Instances | None]) -> InstanceBatch | None:
    """Instances as one batch; None where there are none."""
    batch = [one for one in found if one is not None]
    if not batch:
        return None
    height, width = (max(one.pixels.shape[side] for one in batch) for side in (1, 2))

    def filled(maps: Tensor) -> Tensor:
        return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]))

    return InstanceBatch(
        torch.stack([filled(one.pixels) for one in batch]),
        [filled(one.masks) for one in batch],
        [one.labels for one in batch],
    )
