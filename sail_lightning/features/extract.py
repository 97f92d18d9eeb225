"""Writes a teacher's features of a source's images to a folder, and resumes a run that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.transform import Encoder
from sail_lightning.features.codec import encode
from sail_lightning.features.images import ImageLocation, LoadedImage, load_images
from sail_lightning.features.store import FeatureWriter, Settings
from sail_lightning.interfaces import Teacher, to_spec
from sail_lightning.model import contract

Tell = Callable[[int, int], None]
OF_TRAINING = ("weight", "every_n_steps", "tasks")
"""Arguments of teachers that do not change their features."""


@dataclass
class Extraction:
    """Result of a run: number of images computed, number found in the folder, and faults of unreadable images."""

    computed: int = 0
    known: int = 0
    faults: list[str] = field(default_factory=list)


def settings_for(teacher: Teacher, encoder: Encoder, stored_as: str, stride: int | None) -> Settings:
    """Returns the settings of a built teacher's features.

    Args:
        teacher: Teacher after `build`.
        encoder: Encoder of the student.
        stored_as: `float16` or `int8`.
        stride: Pixels per feature of the student, which larger feature maps are reduced to; None keeps them.
    """
    spec = to_spec(teacher)
    arguments = {name: value for name, value in spec["init_args"].items() if name not in OF_TRAINING}
    return Settings(
        teacher={**spec, "init_args": arguments},
        channels=teacher.channels,
        tap=teacher.student_features,
        stored_as=stored_as,  # type: ignore[arg-type]
        stride=stride,
        patch_size=encoder.patch_size,
        max_side=encoder.max_side,
        resize=encoder.resize,
    )


def extract(
    source: Source,
    encoder: Encoder,
    teacher: Teacher,
    writer: FeatureWriter,
    wanted: Sequence[ImageLocation],
    device: torch.device | str = "cpu",
    workers: int = 0,
    batch_size: int = 8,
    tell: Tell = lambda done, total: None,
) -> Extraction:
    """Writes the features of images; those that are in the folder already are not read again.

    Args:
        source: Source of the images.
        encoder: Encoder of the student, which decides about the size of images.
        teacher: Teacher after `build`.
        writer: Writer of the folder.
        wanted: Locations of the images (`images.locate_images`).
        device: Device that the teacher computes on.
        workers: Number of processes that read images; 0 reads in this one.
        batch_size: Number of images of one size that the teacher computes at once.
        tell: Called with the number of images that are done and the number of all.
    """
    left = [location for location in wanted if location.name not in writer.names]
    done = Extraction(known=len(wanted) - len(left))
    teacher.to(device)
    for group in _batches(load_images(source, encoder, left, workers), batch_size, writer, done):
        for one, features in zip(group, _features(teacher, group, device, writer.settings.stride), strict=True):
            writer.add(one.key, *encode(features, writer.settings.stored_as), one.location.name)
        done.computed += len(group)
        tell(done.computed + done.known + len(done.faults), len(wanted))
    if done.computed == 0:
        tell(len(wanted), len(wanted))
    return done


def _batches(
    images: Iterator[LoadedImage], size: int, writer: FeatureWriter, done: Extraction
) -> Iterator[list[LoadedImage]]:
    """Yields batches of images of one size; faults and images that are already stored are noted and left out.

    At most four batches of images wait for others of their size.
    """
    waiting: dict[tuple[int, ...], list[LoadedImage]] = {}
    twins: dict[str, list[str]] = {}
    """Names of the locations of each waiting image beyond the first, by its key."""

    def go(shape: tuple[int, ...]) -> Iterator[list[LoadedImage]]:
        group = waiting.pop(shape)
        yield group
        for one in group:  # now it is written
            for name in twins.pop(one.key):
                writer.add_name(name)

    for one in images:
        if one.pixels is None:
            done.faults.append(one.fault)
        elif one.key in writer.keys:
            writer.add_name(one.location.name)
            done.known += 1
        elif one.key in twins:
            twins[one.key].append(one.location.name)
            done.known += 1
        else:
            twins[one.key] = []
            group = waiting.setdefault(one.pixels.shape, [])
            group.append(one)
            if len(group) == size or len(twins) > 4 * size:
                yield from go(max(waiting, key=lambda shape: len(waiting[shape])))
    for shape in list(waiting):
        yield from go(shape)


@torch.no_grad()
def _features(teacher: Teacher, group: Sequence[LoadedImage], device: torch.device | str, stride: int | None) -> Tensor:
    """Returns features (B, C, h, w) of images of one size, at the student's stride if that makes them smaller."""
    pixels = torch.from_numpy(np.stack([one.pixels for one in group if one.pixels is not None]))
    features = contract.features(teacher, pixels.to(device))
    if stride is not None:
        grid = (pixels.shape[-2] // stride, pixels.shape[-1] // stride)
        if grid[0] * grid[1] < features.shape[-2] * features.shape[-1]:
            # The loss resizes in the same way, which then changes nothing.
            features = F.interpolate(features.float(), grid, mode="bilinear", align_corners=False)
    return features
