"""Reads folders of torch.distributed.checkpoint (FSDP) in one process."""

from __future__ import annotations

import enum
import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from sail_lightning.compat.torch import checkpoint_index_classes
from sail_lightning.errors import SailError
from sail_lightning.weights import pickles
from sail_lightning.weights.state_dict import truncate_list

INDEX, EXTRA = ".metadata", "meta.pt"
"""Index of the tensors, and the file that Lightning saves beside them."""

WEIGHTS = ("state_dict", "model")
"""Names of the weights in Lightning's model-parallel and FSDP strategies."""


def is_sharded(folder: Path) -> bool:
    """Returns whether a folder is one of torch.distributed.checkpoint, complete or not."""
    return (folder / INDEX).is_file() or any(folder.glob("*.distcp"))


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the weights, and everything else that was saved with them (None for what is not read).

    Raises:
        SailError: A part is missing, damaged, or names anything but tensors.
    """
    index = _read_index(folder / INDEX)
    names, others = _weights(index)
    tensors = {name: _joined(folder, key, index) for key, name in names.items()}
    extra = pickles.load(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    rest = dict.fromkeys(others) | (extra if isinstance(extra, dict) else {})
    return tensors, rest


def _weights(index: Metadata) -> tuple[dict[str, str], list[str]]:
    """Returns the keys of the weights with their names, and other entries; without a known name all are weights."""
    paths: dict[str, tuple[Any, ...]] = {key: (key,) for key in index.state_dict_metadata}
    if isinstance(index.planner_data, dict):  # keys are paths joined by dots, and names have dots too
        paths |= {key: tuple(path) for key, path in index.planner_data.items() if key in paths}
    heads = {str(path[0]) for path in paths.values() if len(path) > 1}
    head = next((head for head in WEIGHTS if head in heads), None)
    names = {}
    for key, path in paths.items():
        if isinstance(index.state_dict_metadata[key], TensorStorageMetadata) and head in (None, path[0]):
            names[key] = ".".join(map(str, path[1:] if head else path))
    return names, sorted(heads - {head}) if head else []


def _joined(folder: Path, key: str, index: Metadata) -> Tensor:
    """Returns a tensor, joined from its chunks."""
    entry = index.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
        raise SailError(f"{folder / INDEX} does not say where all of {key} is; copy the folder again")
    whole = torch.empty(entry.size, dtype=entry.properties.dtype)
    for chunk in entry.chunks:
        info = (index.storage_data or {}).get(MetadataIndex(key, chunk.offsets))
        if info is None or Path(info.relative_path).name != info.relative_path:
            raise SailError(f"{folder / INDEX} does not say where {key} is; copy the folder again")
        part = _read_chunk(folder / info.relative_path, key, info)
        if part.shape != chunk.sizes:
            raise SailError(f"{folder / info.relative_path} holds another {key}; copy the folder again")
        place = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, part.shape, strict=True))
        whole[place].copy_(part)
    return whole


def _read_chunk(path: Path, key: str, info: Any) -> Tensor:
    """Returns a tensor that `torch.save` wrote into a part of a file."""
    if getattr(info, "transform_descriptors", None):
        raise SailError(f"{path} is compressed ({truncate_list(list(info.transform_descriptors))}); save it without")
    pickles.start(path)
    with path.open("rb") as file:
        file.seek(info.offset)
        content = file.read(info.length)
    if len(content) < info.length:
        raise SailError(f"{path} is truncated before the end of {key}; copy it again")
    try:
        part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # torch and pickle raise many kinds on broken files
        part = None
    if not isinstance(part, Tensor):
        raise SailError(f"{path} is damaged at {key}; copy it again")
    return part.detach()


# -- the index, which is a pickle -------------------------------------------------------------------------------------


def _member(owner: Any, name: str) -> enum.Enum:
    """Returns a member of an enumeration, which some versions of Python pickle as an attribute."""
    if not (isinstance(owner, type) and issubclass(owner, enum.Enum)):
        raise _RefusedError("builtins.getattr")
    return owner[name]


def _layout(name: str) -> torch.layout:
    return torch.strided


_ALLOWED: dict[str, Any] = {
    **checkpoint_index_classes(),
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": _layout,
    "collections.OrderedDict": dict,
    "builtins.getattr": _member,
    # where the checkpoint was written; of no use here
    **{f"{module}.{name}": PurePosixPath for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "Path")},
    **{f"{module}.WindowsPath": PurePosixPath for module in ("pathlib", "pathlib._local")},
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}


class _RefusedError(Exception):
    """Raised for a name that no index contains."""


class _IndexUnpickler(pickle.Unpickler):
    """Reads the classes of an index, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise _RefusedError(full)
        return _ALLOWED[full]


def _read_index(path: Path) -> Metadata:
    pickles.start(path)
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
    except _RefusedError as error:
        fix = "do not use this folder"
        raise SailError(f"{path} is refused: it names {error}, which is no part of an index; {fix}") from None
    except Exception:  # pickle raises many kinds on broken files
        index = None
    if not isinstance(index, Metadata) or not isinstance(getattr(index, "state_dict_metadata", None), dict):
        raise SailError(f"{path} is damaged or not an index of torch.distributed.checkpoint; copy it again")
    return index
