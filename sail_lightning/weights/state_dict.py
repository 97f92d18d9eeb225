"""Tensors by name into weights by name: all names and shapes agree, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.settings.renames import renamed


def load_strict(own: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Copies `found` into `own`; names and shapes must agree.

    Raises:
        SailError: names or shapes that differ; they are named, after `what`.
    """
    if faults := state_dict_diff(own, found):
        raise SailError(f"{what}: {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def state_dict_diff(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """How names and shapes differ, in words; empty if they agree."""
    faults = []
    if missing := sorted(own.keys() - found.keys()):
        faults.append(f"missing {truncate_list(missing)}")
    if unexpected := sorted(found.keys() - own.keys()):
        faults.append(f"unexpected {truncate_list(unexpected)}")
    if shapes := sorted(key for key in own.keys() & found.keys() if own[key].shape != found[key].shape):
        sizes = [f"{key} {size(found[key])} instead of {size(own[key])}" for key in shapes]
        faults.append(f"other shapes: {truncate_list(sizes)}")
    return faults


def size(tensor: Tensor) -> str:
    """The shape of a tensor, such as `3 x 4`; `scalar` if it has no dimensions."""
    return " x ".join(map(str, tensor.shape)) or "scalar"


def truncate_list(names: list[str], shown: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


__getattr__ = renamed(__name__, {"differences": "state_dict_diff", "fill": "load_strict", "some": "truncate_list"})
