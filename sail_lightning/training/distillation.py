"""Distillation: a loss that pulls the student's features towards those of experts during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.errors import ImageError, SailError, SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.model import contract
from sail_lightning.model.losses import DistillationLoss
from sail_lightning.model.model import FeatureGroup, ModelOutput, unpatchify
from sail_lightning.sample import Sample
from sail_lightning.weights.state_dict import load_strict, truncate_list


class Distillation(nn.ModuleDict):
    """Teachers by name, each with the projection from the student's features to its own.

    The module holds the projections only, which are trained and saved with the student. `teachers` is a plain dict, so
    they are in no checkpoint and no wrapper. Both are made by `make`, when training begins. Projections of a checkpoint
    that is loaded before are kept in `pending_state` until then; those of teachers that are switched off are dropped.

    Args:
        teachers: Teachers by name; None is a teacher that is switched off.

    Raises:
        SailUsageError: A teacher's name cannot be the name of a module.
    """

    def __init__(self, teachers: Mapping[str, Teacher | None]) -> None:
        super().__init__()
        self.teachers = {name: teacher for name, teacher in teachers.items() if teacher is not None}
        self.pending_state: dict[str, Tensor] = {}
        for name in self.teachers:
            if not name or "." in name or hasattr(self, name):
                raise SailUsageError(f"no teacher may be called {name!r}; choose another name, such as expert")
        self.register_load_state_dict_pre_hook(_defer_projection_weights)

    @property
    def made(self) -> bool:
        """Whether every teacher has its projection."""
        return self.teachers.keys() <= self.keys()

    def make(self, dims: Dims, mask_channels: int) -> None:
        """Makes the teachers and their projections, once, and fills projections from `pending_state`.

        Raises:
            SailError: A teacher's files are missing or damaged, or a pending projection has another shape.
            SailUsageError: A teacher has an invalid setting.
        """
        if self.made:
            return
        for name, teacher in self.teachers.items():
            contract.build(teacher, dims)
            projection = nn.Linear(
                dims.hidden_size if teacher.student_features == "vision" else mask_channels, teacher.channels
            )
            found = {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in self.pending_state.items()
                if key.startswith(f"{name}.")
            }
            if found:
                load_strict(
                    projection.state_dict(), found, f"the projection to teacher {name} in the checkpoint does not fit"
                )
            self[name] = projection
        self.pending_state = {}

    def place(self, device: torch.device) -> None:
        """Moves the teachers to a device and freezes them."""
        for teacher in self.teachers.values():
            teacher.to(device).eval().requires_grad_(False)

    def is_inactive(self, name: str, step: int) -> bool:
        """Returns whether a teacher takes no part in an optimiser step, nor in any of its batches."""
        return step % self.teachers[name].every_n_steps != 0

    def required_features(self, step: int) -> set[str]:
        """Returns the student features that the teachers active in a step need."""
        return {teacher.student_features for name, teacher in self.teachers.items() if not self.is_inactive(name, step)}

    def forward(self, output: ModelOutput, batch: PackedBatch, step: int, loss: DistillationLoss) -> dict[str, Tensor]:
        """Returns the weighted losses by teacher, float32 scalars: sums over the images of the batch.

        Raises:
            SailError: A teacher has no features for an image; the message names the record.
        """
        return {
            name: teacher.weight
            * teacher.every_n_steps
            * self._sum(name, output.vision if teacher.student_features == "vision" else output.mask, batch, step, loss)
            for name, teacher in self.teachers.items()
        }

    def _sum(
        self, name: str, groups: Sequence[FeatureGroup], batch: PackedBatch, step: int, loss: DistillationLoss
    ) -> Tensor:
        """Returns the summed loss of a teacher, which sees images as the student does, put together from patches."""
        teacher, projection = self.teachers[name], self[name]
        # Every projection gets a gradient in every step: wrappers for several processes wait for it.
        total = sum(
            (parameter.sum() * 0.0 for parameter in projection.parameters()), batch.patches.new_zeros(()).float()
        )
        if self.is_inactive(name, step):
            return total
        active = active_images(teacher, batch)
        pixels = batch.patches.split([rows * columns for rows, columns in batch.grids]) if batch.grids else ()
        for group in groups:
            members = [index for index, image in enumerate(group.images) if image in active]
            if not members:
                continue
            cells = torch.stack([pixels[group.images[index]] for index in members])
            images = unpatchify(cells, batch.grids[group.images[0]])
            maps = group.maps if len(members) == len(group.images) else group.maps[members]
            with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
                try:
                    target = contract.features(teacher, images)
                except ImageError as error:
                    names = _names(batch, [group.images[members[index]] for index in error.indices])
                    raise SailError(f"{names}: {error}" if names else str(error)) from None
            student = projection(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            total = total + loss(student, target).sum()
        return total


def _defer_projection_weights(module: Distillation, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Moves projections that do not exist yet out of a state before it is loaded; the rest is loaded strictly."""
    own = tuple(f"{prefix}{name}." for name in module)
    left = [key for key in state if key.startswith(prefix) and not key.startswith(own)]
    found = {key.removeprefix(prefix): state.pop(key) for key in left}
    module.pending_state = {} if module.made else found


def active_images(teacher: Teacher, batch: PackedBatch) -> set[int]:
    """Returns the indices of the images of a batch that a teacher teaches."""
    if teacher.tasks is None:
        return set(range(len(batch.grids)))
    owners = enumerate(_owners(batch))
    return {index for index, owner in owners if any(turn.task in teacher.tasks for turn in owner.turns)}


def _owners(batch: PackedBatch) -> list[Sample]:
    """Returns the record to which each image of a batch belongs."""
    return [sample for sample in batch.samples for _ in sample.images]


def _names(batch: PackedBatch, images: Iterable[int]) -> str:
    """Returns the records of some images of a batch, by source and id, for a message; empty if they have no names."""
    owners = _owners(batch)
    named = [" ".join(part for part in (owners[n].source, owners[n].id) if part) for n in images]
    return truncate_list([name for name in dict.fromkeys(named) if name])
