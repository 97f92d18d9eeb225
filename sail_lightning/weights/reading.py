"""Reads checkpoints of any kind to tensors by name. No code in them is run, and optimiser states are ignored.

A file is safetensors, or one that `torch.save` wrote (mmengine, Lightning, a bare state dict). A folder is one of
torch.distributed.checkpoint (FSDP), of DeepSpeed, or of Hugging Face, sharded or not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.weights import deepspeed, pickles, sharded
from sail_lightning.weights.state_dict import truncate_list

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Names of Hugging Face: all weights in one file, or the index of many."""

SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
PARTS = (deepspeed.MODEL, deepspeed.OPTIMIZER, ".distcp", sharded.INDEX)
"""Suffixes of files that hold only a part of the weights, or none."""

WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
"""Prefixes that data-parallel training, torch.compile and Lightning add to every name."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Args:
        tensors: Weights and buffers by name, on the CPU, in the dtype they were saved in. Where the format allows it
            they are mapped into memory: do not overwrite the source while they are in use.
        kind: `safetensors`, `huggingface`, `mmengine`, `lightning`, `torch` (a bare state dict), `deepspeed`, `fsdp`.
        source: File or folder that it was read from.
        hyper_parameters: Hyperparameters of the Lightning module; empty for other kinds.
        dropped: Names of other entries, which are ignored.
    """

    tensors: dict[str, Tensor]
    kind: str
    source: Path
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def read_tensors(path: Path) -> Checkpoint:
    """Reads a checkpoint: a file, or a folder of many.

    Raises:
        SailError: The checkpoint is missing, damaged, incomplete, of an unknown kind, or names something that can run
            commands.
        SailUsageError: The folder holds several checkpoints.
    """
    path = Path(path)
    if path.is_dir():
        kind, tensors, rest = _read_folder(path)
    elif path.exists():
        kind, tensors, rest = _read_file(path)
    else:
        raise SailError(f"no checkpoint {path}; check the path")
    if not tensors:
        raise SailError(f"{path} holds no tensors; is it the right checkpoint?")
    hyper_parameters = rest.get("hyper_parameters")
    if isinstance(hyper_parameters, dict) and _is_plain(hyper_parameters):
        del rest["hyper_parameters"]
    else:  # none, or objects of classes that are not read
        hyper_parameters = {}
    return Checkpoint(_without_wrappers(tensors), kind, path, hyper_parameters, tuple(map(str, rest)))


def _read_folder(path: Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    if sharded.is_sharded(path):
        return "fsdp", *sharded.read(path)
    for single, index in zip(SINGLE, INDEXED, strict=True):
        if (path / single).exists():
            return "huggingface", _read_weights(path / single), {}
        if (path / index).exists():
            return "huggingface", _read_shards(path / index), {}
    if found := deepspeed.locate(path):
        return "deepspeed", *deepspeed.read(found)
    if shard := next((name for name in sorted(item.name for item in path.iterdir()) if SHARD.fullmatch(name)), None):
        raise SailError(f"{path} holds shards such as {shard} but no {INDEXED[shard.endswith('.bin')]}; copy it too")
    looked = f"no {SINGLE[0]}, {SINGLE[1]} or index of theirs, no DeepSpeed and no FSDP checkpoint"
    raise SailError(f"{path} holds no checkpoint: {looked}; name the file or its own folder")


def _read_file(path: Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    indexed = SHARD.fullmatch(path.name) and any((path.parent / index).is_file() for index in INDEXED)
    extra = path.name == sharded.EXTRA and sharded.is_sharded(path.parent)
    if indexed or extra or path.name.endswith(PARTS):
        raise SailError(f"{path} is one part of a checkpoint; name its folder, {path.absolute().parent}")
    if path.suffix == ".safetensors":
        return "safetensors", _read_weights(path), {}
    content = pickles.load(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        return "torch", _bare(content, path), {}
    kind = "torch"
    if "pytorch-lightning_version" in content:
        kind = "lightning"
    elif "meta" in content or "message_hub" in content:
        kind = "mmengine"
    rest = {key: value for key, value in content.items() if key != "state_dict"}
    return kind, pickles.tensors_of(content["state_dict"], path), rest


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a file that holds nothing but tensors by name."""
    if path.suffix != ".safetensors":
        return _bare(pickles.load(path), path)
    pickles.start(path)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise SailError(f"{path} is damaged or no safetensors file ({error}); copy it again") from None
    except OSError as error:
        raise SailError(f"{path} cannot be opened: {error}") from None


def _bare(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and content and not any(isinstance(value, Tensor) for value in content.values()):
        raise SailError(f"{path} has no state_dict but {truncate_list(list(map(str, content)))}; {pickles.FIX}")
    return pickles.tensors_of(content, path)


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Reads all shards of an index, each of which must hold exactly the tensors that the index says."""
    shards: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        shards.setdefault(shard, set()).add(name)
    tensors: dict[str, Tensor] = {}
    for shard, names in sorted(shards.items()):
        path = index.parent / shard
        if not path.is_file():
            raise SailError(f"{path}, which {index.name} names, is missing; copy it again")
        found = _read_weights(path)
        if missing := sorted(names - found.keys()):
            raise SailError(f"{path} lacks {truncate_list(missing)}, which {index.name} says it holds; copy it again")
        if more := sorted(found.keys() - names):
            raise SailError(f"{path} holds {truncate_list(more)}, which {index.name} does not say; copy both again")
        tensors |= found
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Returns the file of each tensor."""
    pickles.start(index)
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SailError(f"{index} is not valid JSON ({error}); copy it again") from None
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise SailError(f"{index} has no weight_map: it is no index of shards; copy it again")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise SailError(f"{index} names {file}, which is no file beside it; copy it again")
    return files


def _is_plain(value: Any) -> bool:
    """Returns whether a value holds no object of a class that was not read."""
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return not (isinstance(value, pickles.UnpickledStub) or value is pickles.UnpickledStub)


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same tensors, without prefixes that wrappers add to every name."""
    while prefix := next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
