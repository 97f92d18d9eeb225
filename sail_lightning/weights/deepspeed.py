"""Reads DeepSpeed's checkpoint folders without DeepSpeed.

Each process writes a `*_model_states.pt` and a `*_optim_states.pt`. Up to ZeRO-2 the first holds all weights. Under
ZeRO-3 every parameter is split into as many pieces as there are processes, all of the same length, the last one padded.
Trained parameters are in the optimiser's files, piece after piece in the order of `param_shapes`, in float32; frozen
ones are in the model's files by name. (Layout: DeepSpeed's own `zero_to_fp32.py`.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.weights import pickles
from sail_lightning.weights.state_dict import size

MODEL, OPTIMIZER = "_model_states.pt", "_optim_states.pt"
WHOLE = f"mp_rank_00{MODEL}"
LAYOUT = ("param_shapes", "buffer_names", "shared_params", "frozen_param_shapes", "frozen_param_fragments")
"""Entries that describe the layout of the weights."""


def locate(folder: Path) -> Path | None:
    """Returns the folder of the files: itself, the one that `latest` names, or the only one below; None without one.

    Raises:
        SailError: `latest` names a missing folder.
        SailUsageError: There are several folders and no `latest`.
    """
    if _is_deepspeed(folder):
        return folder
    latest = folder / "latest"
    if latest.is_file():
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if tag and Path(tag).name == tag and _is_deepspeed(folder / tag):
            return folder / tag
        raise SailError(f"{latest} names {tag or 'nothing'}, where no DeepSpeed checkpoint is; copy the folder again")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and _is_deepspeed(path))
    if len(found) > 1:
        raise SailUsageError(f"{folder} holds {', '.join(path.name for path in found)}; name one of these folders")
    return found[0] if found else None


def _is_deepspeed(folder: Path) -> bool:
    return folder.is_dir() and any(path.name.endswith((MODEL, OPTIMIZER)) for path in folder.iterdir())


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the weights, and everything else that was saved with them.

    Raises:
        SailError: A part is missing, damaged or of another checkpoint, or the model was split in another way.
    """
    names = sorted(path.name for path in folder.glob(f"*{MODEL}"))
    pieces = [name for name in names if re.fullmatch(rf"zero_pp_rank_\d+_mp_rank_00{MODEL}", name)]
    if names == [WHOLE]:
        content = _content(folder / WHOLE)
        tensors = _whole(content, folder / WHOLE)
    elif pieces and pieces == names:
        content, tensors = _rebuilt(folder)
    elif others := [name for name in names if name != WHOLE and name not in pieces]:
        fix = "only data-parallel training is read; merge it with DeepSpeed first"
        raise SailError(f"{folder / others[0]} holds a model that was split by layer or expert: {fix}")
    elif names:
        raise SailError(f"{folder} mixes the files of two checkpoints, {names[0]} and {names[-1]}; copy it again")
    else:
        raise SailError(f"{folder} has no {WHOLE}; copy it again")
    rest = {key: value for key, value in content.items() if key not in ("module", *LAYOUT)}
    return tensors, rest | ({"optimizer": None} if any(folder.glob(f"*{OPTIMIZER}")) else {})


def _content(path: Path) -> dict[str, Any]:
    content = pickles.load(path)
    if not isinstance(content, dict) or not isinstance(content.get("module"), dict):
        raise SailError(f"{path} has no module: it is not a model state of DeepSpeed; copy it again")
    return content


def _whole(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Returns the weights of a file that holds all of them."""
    tensors = pickles.tensors_of(content["module"], path)
    for name, shape in _shapes(content.get("param_shapes"), path).items():
        if name not in tensors:
            raise SailError(f"{path} has no {name}, which was trained; copy it again")
        if tensors[name].shape != shape:
            raise SailError(f"{path}: {name} is {size(tensors[name])} instead of {_times(shape)}; copy it again")
    return tensors


def _rebuilt(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the content that the first process saved, and the weights joined from the pieces of all processes."""
    first = _flat_groups(folder, 0)
    world = first.get("partition_count")
    world = max(world) if isinstance(world, list) and world else world
    if not isinstance(world, int) or world < 1:
        raise SailError(f"{_optimizer_file(folder, 0)} does not say how many processes there were; copy it again")
    contents = [_content(folder / f"zero_pp_rank_{rank}_{WHOLE}") for rank in range(world)]
    content, path = contents[0], folder / f"zero_pp_rank_0_{WHOLE}"
    states = [first, *(_flat_groups(folder, rank) for rank in range(1, world))]
    groups = [_Pieces(state["fp32_flat_groups"], _optimizer_file(folder, rank)) for rank, state in enumerate(states)]

    module = pickles.tensors_of(content["module"], path)
    tensors = {name: module[name] for name in content.get("buffer_names") or () if name in module}
    for name, shape in _shapes(content.get("frozen_param_shapes"), path).items():
        try:
            pieces = [one["frozen_param_fragments"][name].flatten() for one in contents]
        except (AttributeError, KeyError, TypeError):
            raise SailError(f"{folder} lacks a piece of {name}; copy it again") from None
        tensors[name] = _joined(pieces, shape, f"{path}: {name}")
    for name, shape in _shapes(content.get("param_shapes"), path).items():
        length = math.ceil(shape.numel() / world)
        tensors[name] = _joined([group.take(length, name) for group in groups], shape, f"{path}: {name}")
    for group in groups:
        group.finish()
    shared = content.get("shared_params") or {}
    for name, twin in dict(shared).items():
        if twin in tensors:
            tensors[name] = tensors[twin]
    for name, tensor in module.items():
        if name not in tensors and not tensor.numel():
            raise SailError(f"{folder} has no values of {name}, which was left out when it was saved; save it whole")
        tensors.setdefault(name, tensor)
    return content, tensors


def _shapes(groups: Any, path: Path) -> dict[str, torch.Size]:
    """Returns shapes by parameter name, in the order of their pieces, from one mapping or one per parameter group."""
    try:
        groups = [groups or {}] if isinstance(groups, dict | None) else groups
        return {name: torch.Size(shape) for group in groups for name, shape in group.items()}
    except (AttributeError, TypeError):
        raise SailError(f"{path} does not name its parameters' shapes as DeepSpeed does; copy it again") from None


def _optimizer_file(folder: Path, rank: int) -> Path:
    name = f"zero_pp_rank_{rank}_mp_rank_00{OPTIMIZER}"
    return next((path for path in (folder / f"bf16_{name}", folder / name) if path.is_file()), folder / name)


def _flat_groups(folder: Path, rank: int) -> dict[str, Any]:
    path = _optimizer_file(folder, rank)
    content = pickles.load(path)
    state: Any = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    groups = state.get("fp32_flat_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Tensor) for group in groups):
        raise SailError(f"{path} has no fp32_flat_groups: it is not a ZeRO-3 state of DeepSpeed; copy it again")
    return dict(state)


class _Pieces:
    """Pieces of one process, read one after another from a list of flat tensors of any lengths."""

    def __init__(self, groups: Sequence[Tensor], path: Path) -> None:
        self.groups = [group.flatten() for group in groups]
        self.path = path

    def take(self, length: int, name: str) -> Tensor:
        """Returns the next `length` values.

        Raises:
            SailError: Fewer values are left.
        """
        parts = []
        while length and self.groups:
            part = self.groups[0][:length]
            self.groups[0] = self.groups[0][len(part) :]
            if not len(self.groups[0]):
                self.groups.pop(0)
            length -= len(part)
            parts.append(part)
        if length:
            raise SailError(f"{self.path} ends before {name}: it is of another checkpoint; copy the folder again")
        return torch.cat(parts) if parts else torch.empty(0)

    def finish(self) -> None:
        """Raises SailError if values are left."""
        if any(len(group) for group in self.groups):
            raise SailError(f"{self.path} holds more than the parameters: it is of another checkpoint; copy it again")


def _joined(pieces: list[Tensor], shape: torch.Size, what: str) -> Tensor:
    flat = torch.cat(pieces)
    if not 0 <= len(flat) - shape.numel() < len(pieces):
        raise SailError(f"{what} has {len(flat)} values instead of {_times(shape)}; copy the folder again")
    return flat[: shape.numel()].view(shape)


def _times(shape: torch.Size) -> str:
    return size(torch.empty(shape, device="meta"))
