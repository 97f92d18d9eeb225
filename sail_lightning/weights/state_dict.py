"""Tensors by name into weights by name: every one has its place, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sail_lightning.errors import SailError


def fill(own: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Copies `found` into `own`, whose names and shapes it must have.

    Raises:
        SailError: names or shapes that differ; they are named, after `what`.
    """
    if faults := differences(own, found):
        raise SailError(f"{what}: {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """How names and shapes differ, in words; empty where they agree."""
    faults = []
    if missing := sorted(own.keys() - found.keys()):
        faults.append(f"missing {some(missing)}")
    if unexpected := sorted(found.keys() - own.keys()):
        faults.append(f"unexpected {some(unexpected)}")
    if shapes := sorted(key for key in own.keys() & found.keys() if own[key].shape != found[key].shape):
        sizes = [f"{key} {size(found[key])} instead of {size(own[key])}" for key in shapes]
        faults.append(f"other shapes: {some(sizes)}")
    return faults


def size(tensor: Tensor) -> str:
    """A shape as people write it."""
    return " x ".join(map(str, tensor.shape)) or "scalar"


def some(names: list[str], shown: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
