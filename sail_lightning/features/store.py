"""A folder of features: shards in safetensors, each whole or not there, and features.json, which says what they are.

A picture is named by its pixels as the student sees them (`picture_key`), which training has at hand whatever file,
archive or generator they came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.features.codec import Entry, Error, StoredAs
from sail_lightning.settings.renames import current_node

SUMMARY = "features.json"
SHARD = "features-{:05d}.safetensors"
UNFINISHED, LOCK = ".unfinished-", ".lock"
SCALE = ".scale"
FORMAT = 1


def picture_key(pixels: NDArray[np.uint8]) -> str:
    """What names a picture (3, height, width) uint8: a hash of its size and pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Settings:
    """What the features of a folder are: runs that add to it must agree.

    `teacher` is its class and arguments; `channels` of its features, for the student's `tap`; `stored_as` how they lie
    there; `stride` the pixels per feature that they were resized to, None where they were not; `patch_size`, `max_side`
    and `resize` how the student sees pictures.
    """

    teacher: dict[str, Any]
    channels: int
    tap: Literal["vision", "mask"]
    stored_as: StoredAs
    stride: int | None
    patch_size: int
    max_side: int
    resize: str

    @property
    def seen(self) -> str:
        """How its pictures are seen, for messages."""
        return f"seen with patches of {self.patch_size} and a longest side of {self.max_side} pixels"


@dataclass(frozen=True)
class Summary:
    """What a folder holds: pictures, their bytes, and the error of the way they are stored."""

    pictures: int
    bytes: int
    error: Error

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.pictures + other.pictures, self.bytes + other.bytes, self.error + other.error)

    @property
    def bytes_per_picture(self) -> float:
        return self.bytes / max(1, self.pictures)

    def to_dict(self) -> dict[str, Any]:
        """For features.json."""
        return {
            "pictures": self.pictures,
            "bytes": self.bytes,
            "bytes_per_picture": round(self.bytes_per_picture),
            "largest_error": self.error.largest,
            "relative_error": self.error.relative,
        }


@dataclass
class _Shard:
    """An open file: its pictures, which records of the source they answer, and the error."""

    path: Path
    file: Any
    keys: list[str]
    names: list[str]
    error: Error


class FeatureStore:
    """Features by picture, mapped into memory. Copies made for other processes open the files anew.

    Args:
        folder: that `FeatureWriter` wrote.

    Raises:
        SailError: no such folder, or a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_settings(folder)
        self._shards = [_open(path) for path in _files(folder)]
        self._where = {key: shard for shard in self._shards for key in shard.keys}

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.folder,)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def read(self, key: str) -> Entry | None:
        """The features of a picture, None if they are not there."""
        shard = self._where.get(key)
        if shard is None:
            return None
        scaled = self.settings.stored_as == "int8"
        return Entry(shard.file.get_tensor(key), shard.file.get_tensor(key + SCALE) if scaled else None)


@dataclass
class FeatureWriter:
    """Adds features to a folder, in shards; goes on where an earlier run ended. A context: the last shard is written at
    its end, also where that is a fault or an interrupt.

    Args:
        folder: made if missing.
        settings: what the features are.
        shard_size: bytes at which a shard is written.

    Raises:
        SailUsageError: the folder holds features of other settings, or no features but something else, or another
            process writes to it.
    """

    folder: Path
    settings: Settings
    shard_size: int = 256 * 2**20
    keys: set[str] = field(default_factory=set, init=False)
    """Pictures that are there."""
    names: set[str] = field(default_factory=set, init=False)
    """What else is known to be there: see `add`."""

    def __post_init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._names: list[str] = []
        self._error, self._bytes = Error(), 0
        self.written = Summary(0, 0, Error())
        self._hold()
        try:
            self._check()
            self._read()
        except BaseException:
            self._let_go()
            raise

    def _hold(self) -> None:
        """Makes the folder, and sees to it that no other process writes there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SailUsageError(f"{self.folder} cannot be made ({error.strerror}); name another folder") from None
        foreign = (path for path in self.folder.iterdir() if not path.name.startswith((UNFINISHED, LOCK)))
        if not (self.folder / SUMMARY).exists() and any(foreign):
            raise SailUsageError(f"{self.folder} is not empty, and holds no {SUMMARY}; name another folder")
        self._lock = FileLock(self.folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SailUsageError(
                f"another process writes features to {self.folder}; wait for it, or name another folder"
            ) from None

    def _let_go(self) -> None:
        with suppress(OSError):  # Windows removes no open file
            (self.folder / LOCK).unlink(missing_ok=True)  # before another can hold it
        self._lock.release()

    def _check(self) -> None:
        for stale in self.folder.glob(f"{UNFINISHED}*"):  # of a run that was killed
            stale.unlink()
        if not (self.folder / SUMMARY).exists():
            self._write_summary()
            return
        own, there = json.loads(json.dumps(asdict(self.settings))), asdict(read_settings(self.folder))
        for name, value in own.items():
            if value != there[name]:
                raise SailUsageError(
                    f"{self.folder} holds features of another {name} ({there[name]}, not {value}); name another folder"
                )

    def _read(self) -> None:
        shards = _files(self.folder)
        # One of them may have been removed, as damaged: the others keep their names.
        self._number = max((int(path.stem.rpartition("-")[2]) for path in shards), default=-1) + 1
        for shard in map(_open, shards):
            self.keys.update(shard.keys)
            self.names.update(shard.names)
            self.written += Summary(len(shard.keys), shard.path.stat().st_size, shard.error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._let_go()

    def add(self, key: str, entry: Entry, error: Error, name: str) -> None:
        """Adds a picture; `name` says which one of the source it is, so that a later run need not read it again."""
        self.keys.add(key)
        self._tensors[key] = entry.values.contiguous()
        if entry.scale is not None:
            self._tensors[key + SCALE] = entry.scale
        self._error += error
        self._bytes += entry.size
        self.again(name)
        if self._bytes >= self.shard_size:
            self.flush()

    def again(self, name: str) -> None:
        """Notes that a picture of the source is one that is there already."""
        self.names.add(name)
        self._names.append(name)

    def flush(self) -> None:
        """Writes what was added since the last shard."""
        if not self._names:
            return
        note = {"names": self._names, "error": asdict(self._error)}
        unfinished, path = self._unfinished(), self.folder / SHARD.format(self._number)
        save_file(self._tensors, unfinished, metadata={"sail_features": json.dumps(note)})
        shutil.copymode(self.folder / SUMMARY, unfinished)  # the library writes for the owner alone
        os.replace(unfinished, path)
        pictures = sum(not key.endswith(SCALE) for key in self._tensors)
        self.written += Summary(pictures, path.stat().st_size, self._error)
        self._tensors, self._names, self._error, self._bytes = {}, [], Error(), 0
        self._number += 1
        self._write_summary()

    def _write_summary(self) -> None:
        content = {"format": FORMAT, "settings": asdict(self.settings), "summary": self.written.to_dict()}
        unfinished = self._unfinished()
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self.folder / SUMMARY)

    def _unfinished(self) -> Path:
        return self.folder / f"{UNFINISHED}{os.getpid()}"


def read_settings(folder: Path) -> Settings:
    """What the features of a folder are.

    Raises:
        SailError: no features there, or a damaged features.json.
    """
    path = folder / SUMMARY
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = dict(content["settings"])
        settings["teacher"] = current_node(settings["teacher"], None, registry.find)  # may hold old argument names
        return Settings(**settings)
    except FileNotFoundError:
        raise SailError(f"{folder} has no {SUMMARY}; write it with sail-lightning features --out {folder}") from None
    except (ValueError, KeyError, TypeError):
        raise SailError(f"{path} is damaged; copy it again, or write it anew with sail-lightning features") from None


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.glob("features-*.safetensors") if path.stem.removeprefix("features-").isdigit()
    )


def _open(path: Path) -> _Shard:
    try:
        file = safe_open(path, "pt")
        note = json.loads(file.metadata()["sail_features"])
        keys = [key for key in file.keys() if not key.endswith(SCALE)]  # noqa: SIM118 - no mapping
        return _Shard(path, file, keys, note["names"], Error(**note["error"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise SailError(f"{path} is damaged; remove it and run sail-lightning features again") from None
