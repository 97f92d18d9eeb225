"""Measures the gain of a feature cache: time per image of the live and the cached teacher, and bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sail_lightning.interfaces import Teacher


@dataclass(frozen=True)
class Measured:
    """Seconds per image, live and cached: the median over images of the fastest repeat, with one image at a time."""

    live: float
    cached: float
    bytes_per_image: float
    largest_difference: float

    @property
    def speedup(self) -> float:
        return self.live / self.cached

    def to_text(self) -> str:
        """Returns the result on one line."""
        return (
            f"live {1000 * self.live:.2f} ms, cached {1000 * self.cached:.2f} ms an image: {self.speedup:.1f} times "
            f"faster; {self.bytes_per_image / 1e6:.3f} MB an image; largest difference "
            f"{self.largest_difference:.2g}"
        )


@torch.no_grad()
def measure(
    live: Teacher,
    cached: Teacher,
    images: Sequence[NDArray[np.uint8]],
    bytes_per_image: float,
    device: torch.device | str = "cpu",
    repeats: int = 3,
) -> Measured:
    """Times both teachers in turns, and compares their features, resized to the coarser grid of the cache.

    Args:
        live: Teacher that computes features.
        cached: Teacher that reads them.
        images: Images (3, height, width) uint8 that the cache holds.
        bytes_per_image: Size on disk in bytes, which is reported.
        device: Device of both teachers.
        repeats: Number of measurements per image.
    """
    times: dict[str, list[float]] = {"live": [], "cached": []}
    largest = 0.0
    for pixels in images:
        batch = torch.from_numpy(pixels)[None].to(device)
        best = {"live": float("inf"), "cached": float("inf")}
        for _ in range(repeats):
            found = {}
            for name, teacher in (("live", live), ("cached", cached)):
                start = time.perf_counter()
                found[name] = teacher(batch)
                if batch.device.type == "cuda":
                    torch.cuda.synchronize()
                best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            times[name].append(seconds)
        known = found["live"].float()
        if known.shape != found["cached"].shape:  # stored on the student's grid
            known = F.interpolate(known, found["cached"].shape[-2:], mode="bilinear", align_corners=False)
        largest = max(largest, float((known - found["cached"].float()).abs().max()))
    return Measured(median(times["live"]), median(times["cached"]), bytes_per_image, largest)
