"""Checks masks for the metrics, which take them as bool (n, H, W), torch or numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import BoolMask, Sample

Masks = Tensor | NDArray[np.bool_]
"""Masks (n, H, W) bool. n may be 0, and a shape of (0, 0, 0) means no masks of an unknown size."""


def ignored(sample: Sample, targets: Sequence[int]) -> BoolMask | None:
    """Returns the pixels (H, W) bool that do not count for the masks at indices `targets` of a sample, or None.

    `Sample.meta["ignore"]` holds a mask reference, or None, for each mask of the sample.
    """
    references = sample.meta.get("ignore") or [None] * len(sample.masks)
    masks = [load_mask(references[index]) for index in targets if references[index] is not None]
    return np.logical_or.reduce(masks) if masks else None


def as_masks(masks: Masks, name: str) -> Tensor:
    """Returns masks (n, H, W) as a bool tensor on their own device; `name` names them in errors.

    Raises:
        TypeError: They are not bool. Grey values are refused because 255 often means "ignore", not "on".
        ValueError: They are not three-dimensional.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(masks)) if isinstance(masks, np.ndarray) else masks
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, not {tensor.dtype}; compare first, for instance with `> 0`")
    if tensor.ndim != 3:
        raise ValueError(f"{name} must be (n, H, W), not {tuple(tensor.shape)}; for one mask add a leading axis")
    return tensor.detach()


def as_pair(pred: Masks, target: Masks) -> tuple[Tensor, Tensor]:
    """Returns predicted (n, H, W) and true (m, H, W) masks as bool tensors of one size on one device.

    A side without masks takes the size of the other.

    Raises:
        TypeError: Masks are not bool.
        ValueError: Masks are not three-dimensional, or their sizes differ.
    """
    left, right = as_masks(pred, "pred"), as_masks(target, "target")
    if not len(left):
        left = right.new_zeros((0, *right.shape[1:]))
    elif not len(right):
        right = left.new_zeros((0, *left.shape[1:]))
    if left.shape[1:] != right.shape[1:]:
        sizes = f"{tuple(left.shape[1:])} and {tuple(right.shape[1:])}"
        raise ValueError(f"predicted and true masks differ in size (height, width): {sizes}; resize the prediction")
    return left, right.to(left.device)
