"""Weights on disk: one safetensors file or several, each known by its sha256, written and read piece by piece."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sail_lightning.errors import SailError, SailUsageError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of weight files, those of Hugging Face."""


def split(state: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_size: int | str) -> StateDictSplit:
    """Which tensors go to which file, in order, when floating point is stored as `dtype` (None keeps each its own).

    Raises:
        SailUsageError: a size that cannot be read.
    """
    sizes = {
        key: torch.empty(value.shape, dtype=stored_dtype(value, dtype), device="meta") for key, value in state.items()
    }
    try:
        found = split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)
    except (ValueError, TypeError):
        found = None
    if found is None or (isinstance(max_shard_size, int) and max_shard_size < 1):
        raise SailUsageError(
            f"max_shard_size is a size such as 5GB or 500MB, or a number of bytes, not {max_shard_size}"
        )
    return found


def stored_dtype(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type a tensor is stored in; only floating point changes."""
    return dtype if dtype is not None and value.is_floating_point() else value.dtype


def write(state: Mapping[str, Tensor], names: Iterable[str], path: Path, dtype: torch.dtype | None) -> None:
    """Writes one file; no more than its tensors are copied at a time."""
    tensors = {name: state[name].detach().to(stored_dtype(state[name], dtype)).cpu().contiguous() for name in names}
    save_file(tensors, path, metadata={"format": "pt"})


def write_index(shards: StateDictSplit, path: Path) -> None:
    """The index of several files, as other tools of Hugging Face read it."""
    content = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def weight_files(folder: Path) -> list[Path]:
    """All weight files and indexes in a folder, by name."""
    return sorted(path for path in folder.iterdir() if SHARD.fullmatch(path.name) or path.name == INDEX)


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path, sums: Mapping[str, str]) -> list[Path]:
    """The files that `sums` names with their sha256, all there and as they were saved.

    Raises:
        SailError: one is missing, cut short or changed; it is named.
    """
    paths = [folder / name for name in sums]
    for path in paths:
        if not path.is_file():
            raise SailError(f"{folder} has no {path.name}; copy it again")
        if digest(path) != sums[path.name]:
            raise SailError(f"{path} is damaged or was changed: it is not the file that was saved; copy it again")
    return paths


def find(folder: Path) -> list[Path]:
    """The weight files that a folder without sums should have: the one, or those that the index names.

    Raises:
        SailError: the index is damaged.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() or not index.is_file():
        return [single]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SailError(f"{index} is damaged; copy it again") from None
    if foreign := [name for name in names if not (isinstance(name, str) and SHARD.fullmatch(name))]:
        raise SailError(f"{index} names {foreign[0]}, which is no weight file beside it; copy it again")
    return [folder / name for name in sorted(names)]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open file, not read yet."""

    name: str
    path: Path
    file: Any

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.file.get_slice(self.name).get_shape())

    def read(self) -> Tensor:
        """Its values, on the CPU."""
        value: Tensor = self.file.get_tensor(self.name)
        return value


@contextmanager
def opened(paths: Iterable[Path]) -> Iterator[dict[str, StoredTensor]]:
    """All tensors of some files by name, in the order they lie there.

    Raises:
        SailError: a file is missing or damaged, or two hold the same name.
    """
    stored: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, "pt"))
            except FileNotFoundError:
                raise SailError(f"{path.parent} has no {path.name}; copy it again") from None
            except (SafetensorError, OSError) as error:
                raise SailError(f"{path} is damaged ({error}); copy it again") from None
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name in stored:
                    raise SailError(f"{path} and {stored[name].path.name} both hold {name}; copy the folder again")
                stored[name] = StoredTensor(name, path, file)
        yield stored
