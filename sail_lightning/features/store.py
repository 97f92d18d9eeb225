"""A folder of features: safetensors shards, written atomically, and features.json, which describes them.

An image is identified by its pixels as the student sees them (`image_key`), which training knows whatever file, archive
or generator they came from.
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
from sail_lightning.settings.renames import current_node, renamed

SUMMARY = "features.json"
SHARD = "features-{:05d}.safetensors"
UNFINISHED, LOCK = ".unfinished-", ".lock"
SCALE = ".scale"
FORMAT = 1


def image_key(pixels: NDArray[np.uint8]) -> str:
    """Returns the key of an image (3, height, width) uint8: a hash of its size and pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Settings:
    """Settings of the features of a folder, which runs that add to it must share.

    Attributes:
        teacher: Class and arguments of the teacher.
        channels: Number of channels of the features.
        tap: Student features that they teach.
        stored_as: Stored form, `float16` or `int8`.
        stride: Pixels per feature that they were resized to; None if they were not.
        patch_size: Patch size of the student in pixels.
        max_side: Longest side of images for the student in pixels.
        resize: Rule by which the student resizes images.
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
        """Size of its images, for messages."""
        return f"seen with patches of {self.patch_size} and a longest side of {self.max_side} pixels"


@dataclass(frozen=True)
class Summary:
    """Content of a folder: number of images, size in bytes, and error of the stored form."""

    images: int
    bytes: int
    error: Error

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.images + other.images, self.bytes + other.bytes, self.error + other.error)

    @property
    def bytes_per_image(self) -> float:
        return self.bytes / max(1, self.images)

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary for features.json."""
        return {
            "images": self.images,
            "bytes": self.bytes,
            "bytes_per_image": round(self.bytes_per_image),
            "largest_error": self.error.largest,
            "relative_error": self.error.relative,
        }


WORDS = {"tap": "student_features", "stored_as": "dtype"}
"""Settings whose arguments have another name, which messages give."""


@dataclass
class _Shard:
    """An open shard: keys of its images, names of their locations in the source, and the error."""

    path: Path
    file: Any
    keys: list[str]
    names: list[str]
    error: Error


class FeatureStore:
    """Reads features by image key, mapped into memory. A copy in another process opens the files anew.

    Args:
        folder: Folder that `FeatureWriter` wrote.

    Raises:
        SailError: The folder does not exist, or a file is damaged.
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
        """Returns the features of an image; None if it is not in the folder."""
        shard = self._where.get(key)
        if shard is None:
            return None
        scaled = self.settings.stored_as == "int8"
        return Entry(shard.file.get_tensor(key), shard.file.get_tensor(key + SCALE) if scaled else None)


@dataclass
class FeatureWriter:
    """Adds features to a folder in shards, after those of earlier runs. Used as a context, it writes the last shard at
    its end, also after an error or an interrupt.

    Args:
        folder: Folder of the features; made if missing.
        settings: Settings of the features.
        shard_size: Size in bytes at which a shard is written.

    Raises:
        SailUsageError: The folder holds features of other settings, or other files but no features, or another
            process writes to it.
    """

    folder: Path
    settings: Settings
    shard_size: int = 256 * 2**20
    keys: set[str] = field(default_factory=set, init=False)
    """Keys of the images in the folder."""
    names: set[str] = field(default_factory=set, init=False)
    """Names of the locations of these images in the source."""

    def __post_init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._names: list[str] = []
        self._error, self._bytes = Error(), 0
        self.written = Summary(0, 0, Error())
        self._acquire()
        try:
            self._check()
            self._read()
        except BaseException:
            self._release()
            raise

    def _acquire(self) -> None:
        """Makes the folder, and locks it against other writers."""
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

    def _release(self) -> None:
        with suppress(OSError):  # Windows removes no open file
            (self.folder / LOCK).unlink(missing_ok=True)  # before another can hold it
        self._lock.release()

    def _check(self) -> None:
        for stale in self.folder.glob(f"{UNFINISHED}*"):  # left by a run that was killed
            stale.unlink()
        if not (self.folder / SUMMARY).exists():
            self._write_summary()
            return
        own, there = json.loads(json.dumps(asdict(self.settings))), asdict(read_settings(self.folder))
        for name, value in own.items():
            if value != there[name]:
                raise SailUsageError(
                    f"{self.folder} holds features with other settings ({WORDS.get(name, name)} is {there[name]}, not "
                    f"{value}); name another folder"
                )

    def _read(self) -> None:
        shards = _files(self.folder)
        # A damaged one may have been removed; the others keep their names.
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
            self._release()

    def add(self, key: str, entry: Entry, error: Error, name: str) -> None:
        """Adds an image; `name` identifies it in the source, so that a later run does not read it again."""
        self.keys.add(key)
        self._tensors[key] = entry.values.contiguous()
        if entry.scale is not None:
            self._tensors[key + SCALE] = entry.scale
        self._error += error
        self._bytes += entry.size
        self.add_name(name)
        if self._bytes >= self.shard_size:
            self.flush()

    def add_name(self, name: str) -> None:
        """Notes another name of an image that is already in the folder."""
        self.names.add(name)
        self._names.append(name)

    def flush(self) -> None:
        """Writes the images that were added since the last shard."""
        if not self._names:
            return
        note = {"names": self._names, "error": asdict(self._error)}
        unfinished, path = self._unfinished(), self.folder / SHARD.format(self._number)
        save_file(self._tensors, unfinished, metadata={"sail_features": json.dumps(note)})
        shutil.copymode(self.folder / SUMMARY, unfinished)  # the library writes for the owner alone
        os.replace(unfinished, path)
        images = sum(not key.endswith(SCALE) for key in self._tensors)
        self.written += Summary(images, path.stat().st_size, self._error)
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
    """Returns the settings of the features of a folder.

    Raises:
        SailError: The folder has no features, or its features.json is damaged.
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


__getattr__ = renamed(__name__, {"picture_key": "image_key"})
