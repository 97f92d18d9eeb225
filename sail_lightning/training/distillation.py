"""Distillation: while it trains, features of the student are drawn to those of experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.errors import PictureError, SailError, SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.model import contract
from sail_lightning.model.losses import DistillationLoss
from sail_lightning.model.model import FeatureGroup, ModelOutput, put_together
from sail_lightning.sample import Sample
from sail_lightning.weights.state_dict import fill, some


class Distillation(nn.ModuleDict):
    """Teachers by name, and of each the projection that leads from the student's features to its own.

    The module holds projections only, which are trained and saved with the student. `teachers` is a plain dict: they
    are in no checkpoint and no wrapper. Both are made by `make`, where training begins. Projections of a checkpoint
    that is loaded before have no place yet, and wait; those of teachers that are switched off are left out.

    Args:
        teachers: by name; None is one that is switched off.

    Raises:
        SailUsageError: a teacher's name cannot be that of a module.
    """

    def __init__(self, teachers: Mapping[str, Teacher | None]) -> None:
        super().__init__()
        self.teachers = {name: teacher for name, teacher in teachers.items() if teacher is not None}
        self.waiting: dict[str, Tensor] = {}
        for name in self.teachers:
            if not name or "." in name or hasattr(self, name):
                raise SailUsageError(f"no teacher may be called {name!r}; choose another name, such as expert")
        self.register_load_state_dict_pre_hook(_set_aside)

    @property
    def made(self) -> bool:
        """Whether every teacher has its projection."""
        return self.teachers.keys() <= self.keys()

    def make(self, dims: Dims, mask_channels: int) -> None:
        """Makes the teachers and their projections, once; projections that wait take their places.

        Raises:
            SailError: a teacher's files are missing or damaged, or such a projection has another shape.
            SailUsageError: a teacher has a setting that cannot be.
        """
        if self.made:
            return
        for name, teacher in self.teachers.items():
            contract.build(teacher, dims)
            projection = nn.Linear(dims.hidden_size if teacher.tap == "vision" else mask_channels, teacher.channels)
            found = {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in self.waiting.items()
                if key.startswith(f"{name}.")
            }
            if found:
                fill(projection.state_dict(), found, f"the projection to teacher {name} in the checkpoint does not fit")
            self[name] = projection
        self.waiting = {}

    def place(self, device: torch.device) -> None:
        """Moves the teachers, and sees to it that they do not learn."""
        for teacher in self.teachers.values():
            teacher.to(device).eval().requires_grad_(False)

    def rests(self, name: str, step: int) -> bool:
        """Whether a teacher is left out of an optimiser step, and of all its batches."""
        return step % self.teachers[name].every != 0

    def taps(self, step: int) -> set[str]:
        """The student's features that are taught in a step."""
        return {teacher.tap for name, teacher in self.teachers.items() if not self.rests(name, step)}

    def forward(self, output: ModelOutput, batch: PackedBatch, step: int, loss: DistillationLoss) -> dict[str, Tensor]:
        """Weighted losses by teacher, float32 scalars: sums over the pictures of the batch.

        Raises:
            SailError: a teacher cannot say anything about a picture; names the record.
        """
        return {
            name: teacher.weight
            * teacher.every
            * self._sum(name, output.vision if teacher.tap == "vision" else output.mask, batch, step, loss)
            for name, teacher in self.teachers.items()
        }

    def _sum(
        self, name: str, groups: Sequence[FeatureGroup], batch: PackedBatch, step: int, loss: DistillationLoss
    ) -> Tensor:
        """Teachers see a picture as the student does, put together again from its patches."""
        teacher, projection = self.teachers[name], self[name]
        # Every projection has a gradient in every step, which wrappers of several processes wait for.
        total = sum(
            (parameter.sum() * 0.0 for parameter in projection.parameters()), batch.patches.new_zeros(()).float()
        )
        if self.rests(name, step):
            return total
        taught = _taught(teacher, batch)
        pixels = batch.patches.split([rows * columns for rows, columns in batch.grids]) if batch.grids else ()
        for group in groups:
            places = [place for place, image in enumerate(group.images) if image in taught]
            if not places:
                continue
            cells = torch.stack([pixels[group.images[place]] for place in places])
            pictures = put_together(cells, batch.grids[group.images[0]])
            maps = group.maps if len(places) == len(group.images) else group.maps[places]
            with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
                try:
                    target = contract.features(teacher, pictures)
                except PictureError as error:
                    told = _names(batch, [group.images[places[place]] for place in error.places])
                    raise SailError(f"{told}: {error}" if told else str(error)) from None
            student = projection(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            total = total + loss(student, target).sum()
        return total


def _set_aside(module: Distillation, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before any strategy loads weights: takes projections out that have no place. All else is loaded strictly."""
    own = tuple(f"{prefix}{name}." for name in module)
    left = [key for key in state if key.startswith(prefix) and not key.startswith(own)]
    found = {key.removeprefix(prefix): state.pop(key) for key in left}
    module.waiting = {} if module.made else found


def _taught(teacher: Teacher, batch: PackedBatch) -> set[int]:
    """Which pictures of a batch a teacher has something to say about."""
    if teacher.tasks is None:
        return set(range(len(batch.grids)))
    owners = enumerate(_owners(batch))
    return {number for number, owner in owners if any(turn.task in teacher.tasks for turn in owner.turns)}


def _owners(batch: PackedBatch) -> list[Sample]:
    """The record that each picture of a batch belongs to."""
    return [sample for sample in batch.samples for _ in sample.images]


def _names(batch: PackedBatch, pictures: Iterable[int]) -> str:
    """The records of some pictures of a batch, by source and id, in a message; empty if they have no names."""
    owners = _owners(batch)
    named = [" ".join(part for part in (owners[n].source, owners[n].id) if part) for n in pictures]
    return some([name for name in dict.fromkeys(named) if name])
