"""Fills a folder with a teacher's features of a source's pictures, and goes on where an earlier run was stopped."""

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
from sail_lightning.features.images import Place, Read, read
from sail_lightning.features.store import FeatureWriter, Settings
from sail_lightning.interfaces import Teacher, to_spec
from sail_lightning.model import contract

Tell = Callable[[int, int], None]
OF_TRAINING = ("weight", "every_n_steps", "tasks")
"""Arguments of teachers that do not change their features."""


@dataclass
class Extraction:
    """What a run did: pictures computed now, those that were there before, and faults of those that cannot be read."""

    computed: int = 0
    known: int = 0
    faults: list[str] = field(default_factory=list)


def settings_for(teacher: Teacher, encoder: Encoder, stored_as: str, stride: int | None) -> Settings:
    """What the features of a built teacher will be."""
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
    wanted: Sequence[Place],
    device: torch.device | str = "cpu",
    workers: int = 0,
    batch_size: int = 8,
    tell: Tell = lambda done, total: None,
) -> Extraction:
    """Writes the features of the pictures at these places; those that are there are not read again.

    Args:
        source: of the pictures.
        encoder: of the student: pictures are resized as it does.
        teacher: built.
        writer: of the folder.
        wanted: where pictures are (`pictures.places`).
        device: that the teacher computes on.
        workers: processes that read pictures.
        batch_size: pictures of one size that the teacher sees at once.
        tell: called with the numbers of pictures that are done and of all.
    """
    left = [place for place in wanted if place.name not in writer.names]
    done = Extraction(known=len(wanted) - len(left))
    teacher.to(device)
    for group in _batches(read(source, encoder, left, workers), batch_size, writer, done):
        for one, features in zip(group, _features(teacher, group, device, writer.settings.stride), strict=True):
            writer.add(one.key, *encode(features, writer.settings.stored_as), one.place.name)
        done.computed += len(group)
        tell(done.computed + done.known + len(done.faults), len(wanted))
    if done.computed == 0:
        tell(len(wanted), len(wanted))
    return done


def _batches(pictures: Iterator[Read], size: int, writer: FeatureWriter, done: Extraction) -> Iterator[list[Read]]:
    """Pictures of one size together; faults, and pictures that are there already, are noted and left out.

    At most four batches' worth of pictures wait for others of their size.
    """
    waiting: dict[tuple[int, ...], list[Read]] = {}
    twins: dict[str, list[str]] = {}
    """Of the pictures that wait: places where the same ones are."""

    def go(shape: tuple[int, ...]) -> Iterator[list[Read]]:
        group = waiting.pop(shape)
        yield group
        for one in group:  # now it is written
            for name in twins.pop(one.key):
                writer.again(name)

    for one in pictures:
        if one.pixels is None:
            done.faults.append(one.fault)
        elif one.key in writer.keys:
            writer.again(one.place.name)
            done.known += 1
        elif one.key in twins:
            twins[one.key].append(one.place.name)
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
def _features(teacher: Teacher, group: Sequence[Read], device: torch.device | str, stride: int | None) -> Tensor:
    """Features (B, C, h, w) of pictures of one size, at the student's stride where that leaves fewer of them."""
    pixels = torch.from_numpy(np.stack([one.pixels for one in group if one.pixels is not None]))
    features = contract.features(teacher, pixels.to(device))
    if stride is not None:
        grid = (pixels.shape[-2] // stride, pixels.shape[-1] // stride)
        if grid[0] * grid[1] < features.shape[-2] * features.shape[-1]:
            # As the loss would: resized there again, it stays what it is.
            features = F.interpolate(features.float(), grid, mode="bilinear", align_corners=False)
    return features
