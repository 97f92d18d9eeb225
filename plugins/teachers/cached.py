"""A teacher whose features were computed before training and are read from disk."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail_lightning.errors import ImageError
from sail_lightning.features.store import FeatureStore, image_key
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers.frozen import ScheduledTeacher, StudentFeatures
from sail_lightning.registry import register


@register
class CachedTeacher(ScheduledTeacher):
    """The features that `sail-lightning features` wrote, by image: the same targets, without running the expert.

    An image is identified by its pixels as the student sees them, so a cache serves one patch size and one longest
    side, whichever source the image comes from.

    Args:
        folder: folder that the command wrote.
        student_features: student features that it teaches, `vision` tokens or upsampled `mask` features; None is those
            that the cached teacher teaches.
        kwargs: arguments of `ScheduledTeacher`.
    """

    def __init__(self, folder: str, student_features: StudentFeatures | None = None, **kwargs: Any) -> None:
        super().__init__(student_features or "vision", **kwargs)
        self.folder = folder
        self._given_features = student_features

    def build(self, dims: Dims) -> Dims:
        """Opens the cache, and reads its `channels`.

        Raises:
            SailError: no such cache, or a damaged one.
        """
        self.store = FeatureStore(Path(self.folder).expanduser())
        settings = self.store.settings
        self.channels = settings.channels
        self.student_features = self._given_features or settings.tap
        return dims

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w) in float32.

        Raises:
            ImageError: an image is not in the cache.
        """
        pixels = images.cpu().numpy()
        stored = list(_readers().map(lambda one: self.store.read(image_key(one)), pixels))
        if missing := [index for index, entry in enumerate(stored) if entry is None]:
            height, width = images.shape[-2:]
            raise ImageError(
                f"CachedTeacher: an image of {width} x {height} pixels is not among the {len(self.store)} in "
                f"{self.folder}, {self.store.settings.seen}; run sail-lightning features again, with this config",
                missing,
            )
        return torch.stack([entry.decoded(images.device) for entry in stored if entry is not None])


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Returns the threads that look up the images of a batch: hashing and reading release Python's lock."""
    return ThreadPoolExecutor(8, thread_name_prefix="features")
