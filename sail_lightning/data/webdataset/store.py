"""WebDataset shards as bytes: tar files with an index of offsets beside them, in a folder or at any fsspec address.

A shard is a plain tar file: `tar`, Python and every WebDataset reader open it, and any store can serve it. A record in
it is an image file and a JSON file in our own format. The index adds random access, which tar files lack: 32 bytes per
record, mapped into memory. So shuffling, resuming at a sample, and distributing records to ranks and workers work as
for local files, and nothing in training knows about shards. litdata's chunks were not chosen because only litdata reads
them, with a data set class that does all of this in its own way.

    000000.tar   000000000.json, 000000000.jpg, 000000001.json, ...   one record after another
    000001.tar   ...
    index.npy    of each record: its shard, where it begins and ends, the hash of its image's name
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.records import cache_root
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.settings.renames import renamed

INDEX = "index.npy"
ENTRY = np.dtype([("shard", "<u4"), ("json", "<u4"), ("start", "<u8"), ("end", "<u8"), ("picture", "<u8")])
"""Type of an index entry: `start` and `end` of the record in the tar file `shard`, headers included, the number of
bytes of its JSON text, which comes first, and its `records.image_hash`."""
BLOCK = tarfile.BLOCKSIZE
ATTEMPTS = 20
"""Number of attempts to read a shard that other processes keep removing from the cache."""


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"{shard:06d}.tar"


def key_of(record: int) -> str:
    """The key of a record, with which the names of its members begin; it has no dot, as WebDataset requires."""
    return f"{record:09d}"


def padded(size: int) -> int:
    """Number of bytes that a member's content takes in a tar file."""
    return -(-size // BLOCK) * BLOCK


def is_remote(address: str) -> bool:
    """Whether an address is an fsspec address, such as `s3://bucket/folder`, and not a path."""
    return "://" in address


def filesystem(address: str, options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        SailUsageError: The protocol of the address is unknown, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address.rstrip("/"), **(options or {}))
    except (ValueError, ImportError) as error:
        raise SailUsageError(f"{address} cannot be opened: {error}") from None


@dataclass(frozen=True)
class ShardStore:
    """Reads shards. A shard at a remote address is downloaded to a cache on disk when it is first read.

    All processes of a machine share the cache. The least recently read shards are removed to make room.

    Args:
        address: A folder, or an fsspec address.
        cache_size: Largest number of bytes on disk for the shards of a remote address.
        options: Options of the fsspec file system.
    """

    address: str
    cache_size: int = 16_000_000_000
    options: dict[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "cache_size": self.cache_size, "options": self.options}

    @cached_property
    def index(self) -> NDArray[Any]:
        """The `ENTRY` of each record, mapped into memory.

        Raises:
            SailError: The index is missing or damaged.
        """
        path = self.folder / INDEX
        if is_remote(self.address):
            with self._lock():
                if not path.exists():
                    self._download(INDEX)
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise SailError(f"no {path}; shards are written by sail-lightning data convert --shards") from None
        except (ValueError, EOFError) as error:
            raise SailError(f"{self.address_of(INDEX)} is damaged ({error}); copy it again") from None
        if index.dtype != ENTRY or index.ndim != 1:
            raise SailError(
                f"{self.address_of(INDEX)} is not an index of shards; write them with sail-lightning data convert"
            )
        return index

    def address_of(self, name: str) -> str:
        """The address of a file, for messages."""
        return f"{self.address.rstrip('/')}/{name}" if is_remote(self.address) else str(self.folder / name)

    def member(self, shard: int, start: int, end: int, name: str) -> bytes:
        """The content of a member of a shard between two offsets.

        Raises:
            SailError: The shard is missing, truncated or damaged.
        """
        content = self._read(shard, start, end)
        offset = 0
        while offset < len(content):
            try:
                info = tarfile.TarInfo.frombuf(content[offset : offset + BLOCK], "utf-8", "strict")
            except tarfile.HeaderError:
                break
            data = offset + BLOCK
            if info.name == name:
                return content[data : data + info.size]
            offset = data + padded(info.size)
        raise SailError(
            f"{self.address_of(shard_name(shard))} is damaged: no {name} where the index says; copy it again"
        )

    def _read(self, shard: int, start: int, end: int) -> bytes:
        path = self.folder / shard_name(shard)
        for _ in range(ATTEMPTS):
            try:
                if is_remote(self.address):
                    self._keep(path)
                with path.open("rb") as file:
                    file.seek(start)
                    content = file.read(end - start)
                break
            except FileNotFoundError:  # a remote shard: removed by another process
                if not is_remote(self.address):
                    raise SailError(f"no shard {path}; copy it again") from None
        else:
            raise SailError(
                f"{self.address_of(path.name)} is removed from the cache before it is read; raise cache_size"
            )
        if len(content) < end - start:
            raise SailError(
                f"{self.address_of(path.name)} is truncated: it has {start + len(content)} bytes, and a record ends "
                f"at {end}; copy it again"
            )
        return content

    # -- the cache of a remote address --------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """The folder of the files; for a remote address a cache folder for this version of the data set."""
        if not is_remote(self.address):
            return Path(self.address)
        files, root = self._remote
        with self._named_errors(INDEX):
            version = files.ukey(f"{root}/{INDEX}")
        key = hashlib.sha256(f"{self.address.rstrip('/')} {version}".encode()).hexdigest()[:16]
        folder = cache_root().parent / "shards" / f"{root.rpartition('/')[2]}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        return filesystem(self.address, self.options)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """A lock under which one process at a time downloads and makes room."""
        from filelock import FileLock

        with FileLock(self.folder / ".lock"):
            yield

    def _keep(self, path: Path) -> None:
        """Makes sure that a shard is in the cache, and marks it as just read."""
        try:
            os.utime(path)
            return
        except FileNotFoundError:
            pass
        with self._lock():
            if not path.exists():
                self._download(path.name)

    def _download(self, name: str) -> None:
        """Downloads a file completely or not at all; the caller holds the lock."""
        files, root = self._remote
        for left in self.folder.glob("*.part"):  # from a process that was stopped
            left.unlink()
        part = self.folder / f"{name}.part"
        with self._named_errors(name):
            size = files.info(f"{root}/{name}").get("size")  # some servers do not say
            if name != INDEX:
                self._make_room(size or 0, name)
            files.get_file(f"{root}/{name}", str(part))
        if size is not None and (got := part.stat().st_size) != size:
            part.unlink()
            raise SailError(f"{self.address_of(name)} came with {got} of its {size} bytes; try again")
        part.replace(self.folder / name)  # on Windows, `rename` refuses a name that is taken

    def _make_room(self, size: int, name: str) -> None:
        if size > self.cache_size:
            raise SailError(
                f"{self.address_of(name)} has {size} bytes, more than cache_size {self.cache_size}; raise it"
            )
        kept = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns)
        used = sum(path.stat().st_size for path in kept)
        for path in kept:
            if used + size <= self.cache_size:
                break
            used -= path.stat().st_size
            path.unlink()

    @contextmanager
    def _named_errors(self, name: str) -> Iterator[None]:
        """Turns errors of the file system into a SailError that names the file."""
        try:
            yield
        except FileNotFoundError:
            hint = "shards are written by sail-lightning data convert --shards" if name == INDEX else "copy it again"
            raise SailError(f"no {self.address_of(name)}; {hint}") from None
        except OSError as error:
            raise SailError(f"{self.address_of(name)} cannot be read ({error}); try again") from None


@dataclass(frozen=True)
class ShardImage:
    """An image in a shard, read on demand. `key` is the `records.image_hash` of its original file."""

    store: ShardStore
    shard: int
    start: int
    end: int
    name: str
    key: int = 0

    def __call__(self) -> bytes:
        """The content of a JPEG or PNG file. Raises the same errors as `ShardStore.member`."""
        return self.store.member(self.shard, self.start, self.end, self.name)

    def __str__(self) -> str:
        return f"{self.store.address_of(shard_name(self.shard))}/{self.name}"


__getattr__ = renamed(__name__, {"ShardPicture": "ShardImage"})
