"""Resizing of image batches as published vision models do it: antialiased, and to the input size of Mask2Former."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

MASK2FORMER_ASPECT = 1333 / 800
"""Largest longer side that Mask2Former's image processor allows, in units of the wanted shorter side."""
MASK2FORMER_DIVISOR = 32
"""Number of pixels that Mask2Former's image processor rounds both sides up to a multiple of."""


def resize_batch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images bilinearly with antialiasing, along rows first and then along columns.

    Values are rounded to whole numbers after each of the two steps, as PIL and the image processors of published models
    do; single values may differ from theirs by one level.

    Args:
        images: Images (B, 3, height, width) with values in 0 .. 255, uint8 or float.
        size: Wanted (height, width); images of that size are returned as they are.

    Returns:
        Images (B, 3, *size), float32 in 0 .. 255.
    """
    pixels = images.float()
    for part in ((images.shape[-2], size[1]), size):
        if pixels.shape[-2:] != part:
            pixels = F.interpolate(pixels, part, mode="bilinear", align_corners=False, antialias=True)
            pixels = pixels.round().clamp(0, 255)
    return pixels


def mask2former_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns the (height, width) that Mask2Former's own image processor resizes an image to.

    The shorter side becomes `side`, or less where the longer one would exceed its limit; then both are rounded up.

    Args:
        size: The image's (height, width) in pixels.
        side: Wanted shorter side in pixels.
    """
    shorter, longer = min(size), max(size)
    wanted, most = side, side * MASK2FORMER_ASPECT
    exact = float(wanted)
    if longer / shorter * wanted > round(most):
        exact = round(most) * shorter / longer
        wanted = round(exact)
    other = longer if shorter == wanted else int(exact * longer / shorter)
    height, width = (wanted, other) if size[0] <= size[1] else (other, wanted)
    return _rounded_up(height), _rounded_up(width)


def _rounded_up(side: int) -> int:
    return math.ceil(side / MASK2FORMER_DIVISOR) * MASK2FORMER_DIVISOR
