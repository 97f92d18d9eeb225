"""Reads torch's pickled files without importing or running anything that they name."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sail_lightning.errors import SailError
from sail_lightning.settings.renames import renamed

DENYLIST = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|shutil|socket|importlib|runpy|ctypes|pickle|_pickle|webbrowser)\..*"
    r"|(io|_io)\.open.*|builtins\.(eval|exec|compile|open|input|breakpoint|__import__|setattr|delattr|globals|vars)"
)
"""Names that no honest checkpoint contains. They would not be run in any case, but the file is refused."""

FIX = "open it where it was written and save its state_dict alone with torch.save"


class UnpickledStub:
    """Placeholder for an object of a class that is neither imported nor run; it ignores all arguments."""

    def __new__(cls, *args: Any, **kwargs: Any) -> UnpickledStub:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stub_class(*args: Any) -> type[UnpickledStub]:
    return UnpickledStub


def _empty_dict(*args: Any) -> dict[Any, Any]:
    return {}


def _empty_list(*args: Any) -> list[Any]:
    return []


# Replacements of names. An attribute may be a nested class, which is then called; containers are filled later.
STAND_INS = {
    "builtins.getattr": _stub_class,
    "collections.defaultdict": _empty_dict,
    "collections.deque": _empty_list,
}


def load(path: Path) -> Any:
    """Returns what `torch.save` wrote: tensors on the CPU, mapped into memory if the file is a zip archive.

    Objects of classes that torch does not know become `UnpickledStub`: their classes are neither imported nor run.

    Raises:
        SailError: The file is missing, damaged or foreign, or names something that can run commands.
    """
    zipped = start(path).startswith(b"PK\x03\x04")
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(str(path))) if zipped else []
        if harmful := next(filter(DENYLIST.fullmatch, names), None):
            raise _refusal(path, harmful)
        stand_ins: list[Any] = [(STAND_INS.get(name, UnpickledStub), name) for name in names]
        with safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on storage types and protocols of old files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and _is_stored(path))
    except SailError:
        raise
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):  # a file that is no archive: its names were not known
            raise _refusal(path, found[1]) from None
        raise SailError(f"{path} is no file of torch.save, or holds what is not read safely; {FIX}") from None
    except Exception as error:  # torch and pickle raise many kinds on broken files
        if "torchscript" in str(error).lower():
            raise SailError(f"{path} is a TorchScript program, which is not run; {FIX}") from None
        raise SailError(f"{path} is damaged or no file of torch.save; copy it again") from None


def _refusal(path: Path, name: str) -> SailError:
    if DENYLIST.fullmatch(name) or DENYLIST.fullmatch(f"builtins.{name}"):  # torch's messages leave `builtins` out
        return SailError(f"{path} is refused: it names {name}, which can run commands; do not use this file")
    return SailError(f"{path} is refused: it names {name}, which is no weight; {FIX}")


def _is_stored(archive: Path) -> bool:
    """Returns whether nothing in an archive is compressed; compressed content cannot be mapped into memory."""
    with zipfile.ZipFile(archive) as content:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in content.infolist())


def start(path: Path) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        SailError: The file is missing, empty, cannot be opened, or is a pointer to a large file.
    """
    try:
        with path.open("rb") as file:
            first = file.read(64)
    except FileNotFoundError:
        raise SailError(f"{path} is missing; copy it again") from None
    except OSError as error:
        raise SailError(f"{path} cannot be opened: {error.strerror}") from None
    if not first:
        raise SailError(f"{path} is empty; copy it again")
    if first.startswith(b"version https://git-lfs"):
        raise SailError(f"{path} is only a pointer to a large file; fetch it with `git lfs pull`")
    return first


def tensors_of(content: Any, where: Path) -> dict[str, Tensor]:
    """Returns a state dict's tensors by name, without the extra state of modules (`_extra_state`).

    Raises:
        SailError: The content is not a mapping, or holds anything else.
    """
    if not isinstance(content, Mapping):
        raise SailError(f"{where} holds no tensors by name; {FIX}")
    tensors = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value.detach()
        elif not str(name).endswith("_extra_state"):
            kind = "an object of a class that is not read" if isinstance(value, UnpickledStub) else type(value).__name__
            raise SailError(f"{where}: {name} is no tensor but {kind}; {FIX}")
    return tensors


__getattr__ = renamed(__name__, {"Inert": "UnpickledStub"})
