"""A teacher whose features were computed before training, and lie on disk."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail_lightning.errors import PictureError
from sail_lightning.features.store import FeatureStore, picture_key
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers.frozen import ScheduledTeacher, Tap
from sail_lightning.registry import register


@register
class CachedTeacher(ScheduledTeacher):
    """Features that `sail-lightning features` wrote, by picture: the same lesson, without the expert.

    A picture is known by its pixels as the student sees them, so the cache fits the patch size and the longest side
    that it was made with, wherever the picture comes from.

    Args:
        folder: that the command wrote.
        tap: the student features it teaches, `vision` tokens or upsampled `mask` features; None: those that the cached
            teacher teaches.
        kwargs: arguments of `ScheduledTeacher`.
    """

    def __init__(self, folder: str, tap: Tap | None = None, **kwargs: Any) -> None:
        super().__init__(tap or "vision", **kwargs)
        self.folder = folder
        self._own_tap = tap

    def build(self, dims: Dims) -> Dims:
        """Opens the cache, and learns its `channels`.

        Raises:
            SailError: no such cache, or a damaged one.
        """
        self.store = FeatureStore(Path(self.folder).expanduser())
        settings = self.store.settings
        self.channels = settings.channels
        self.tap = self._own_tap or settings.tap
        return dims

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w) in float32.

        Raises:
            PictureError: a picture that is not in the cache.
        """
        pixels = images.cpu().numpy()
        stored = list(_readers().map(lambda one: self.store.read(picture_key(one)), pixels))
        if missing := [place for place, entry in enumerate(stored) if entry is None]:
            height, width = images.shape[-2:]
            raise PictureError(
                f"CachedTeacher: a picture of {width} x {height} pixels is not among the {len(self.store)} in "
                f"{self.folder}, {self.store.settings.seen}; run sail-lightning features again, with this config",
                missing,
            )
        return torch.stack([entry.decoded(images.device) for entry in stored if entry is not None])


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Hashing and reading leave Python's lock to others: pictures of a batch are looked up side by side."""
    return ThreadPoolExecutor(8, thread_name_prefix="features")
