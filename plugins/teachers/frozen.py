"""Teachers that are networks: frozen weights in their own dtype, and images preprocessed as for the expert."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sail_lightning.image.resizing import resize_batch
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.sample import Task
from sail_lightning.settings.ranges import NonNegativeFloat, PositiveInt, refuse_empty
from sail_lightning.settings.renames import renamed

DType = Literal["float32", "bfloat16", "float16"]
StudentFeatures = Literal["vision", "mask"]


class ScheduledTeacher(Teacher):
    """The arguments that all teachers share: what they teach, with what weight, how often and for which tasks.

    Args:
        student_features: student features that it teaches, `vision` tokens or upsampled `mask` features.
        weight: loss weight.
        every_n_steps: it teaches in every n-th optimiser step, with n times the weight.
        tasks: it teaches images of samples with a question of one of these tasks; None is all.
    """

    def __init__(
        self,
        student_features: StudentFeatures = "vision",
        weight: NonNegativeFloat = 1.0,
        every_n_steps: PositiveInt = 1,
        tasks: list[Task] | None = None,
    ) -> None:
        super().__init__()
        refuse_empty(self, tasks=tasks)
        self.student_features, self.weight, self.every_n_steps, self.tasks = (
            student_features,
            weight,
            every_n_steps,
            tasks,
        )


class FrozenTeacher(ScheduledTeacher):
    """A frozen network whose features are distilled.

    A subclass makes its network in `load`, which also sets `channels` and returns the statistics of pixels in [0, 1]
    that the network was trained with. `look` computes the features.

    Args:
        student_features: student features that it teaches, `vision` tokens or upsampled `mask` features.
        dtype: dtype that it computes in.
        kwargs: arguments of `ScheduledTeacher`.
    """

    network: Any
    mean: Tensor
    std: Tensor
    at_once = 8
    """Largest number of images in one pass: a batch may hold many small ones, each enlarged to the expert's size."""

    def __init__(
        self, student_features: StudentFeatures = "vision", *, dtype: DType = "float32", **kwargs: Any
    ) -> None:
        super().__init__(student_features, **kwargs)
        self.dtype = dtype

    def build(self, dims: Dims) -> Dims:
        """Makes the network, frozen, and sets `channels`.

        Raises:
            SailError: what `load` raises.
        """
        with _real_weights():
            mean, std = self.load()
            # Pixels arrive in 0 .. 255.
            self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.network.to(getattr(torch, self.dtype))
        self.requires_grad_(False)
        self.eval()
        return dims

    @abstractmethod
    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes `self.network` in float32 on the CPU and sets `self.channels`.

        Returns:
            mean and standard deviation, by channel, of pixels in [0, 1].
        """

    @abstractmethod
    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (height, width) that an image of (height, width) is resized to."""

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """Maps normalised pixels (B, 3, height, width), in the network's dtype, to features (B, channels, h, w)."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w)."""
        size = self.input_size((images.shape[-2], images.shape[-1]))
        dtype = next(self.network.parameters()).dtype
        found = [
            self.look(((resize_batch(some, size) - self.mean) / self.std).to(dtype))
            for some in images.split(self.at_once)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def train(self, mode: bool = True) -> Any:
        """Stays in evaluation mode, whatever mode the model is in."""
        return super().train(False)


@contextlib.contextmanager
def _real_weights() -> Iterator[None]:
    """Makes weights on the CPU in float32, whatever device and dtype are current: a teacher is not filled later."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


__getattr__ = renamed(__name__, {"resized": "sail_lightning.image.resizing:resize_batch"})
