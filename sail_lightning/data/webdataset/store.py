"""Shards as bytes: WebDataset's tar files with an index of offsets beside them, in a folder or at any fsspec address.

Of the two formats that are in use, WebDataset's was chosen over litdata's. A shard is a plain tar: `tar`, Python and
every WebDataset reader open it, any store can serve it, and a record in it is a picture file and a JSON file in our own
schema. What tar files lack, random access, the index gives: 32 bytes per record, mapped into memory. So the order of
reading, resuming to the sample, and dealing records to ranks and workers are those of local files, and nothing in
training knows about shards. litdata's chunks are read by litdata alone, through a dataset class that does all this its
own way.

    000000.tar   000000000.json, 000000000.jpg, 000000001.json, ...   one record after another
    000001.tar   ...
    index.npy    of each record: its shard, where it begins and ends, its picture's name as a number
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

INDEX = "index.npy"
ENTRY = np.dtype([("shard", "<u4"), ("json", "<u4"), ("start", "<u8"), ("end", "<u8"), ("picture", "<u8")])
"""Of a record: `start` and `end` in the tar `shard`, headers included, bytes of its JSON text, which comes first, and
`records.picture_hash`."""
BLOCK = tarfile.BLOCKSIZE
ATTEMPTS = 20
"""To read a shard that other processes drop from the cache again and again."""


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"{shard:06d}.tar"


def key_of(record: int) -> str:
    """What the names of a record's members begin with; it has no dot, as WebDataset wants it."""
    return f"{record:09d}"


def padded(size: int) -> int:
    """Bytes that a member's content takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def is_remote(address: str) -> bool:
    """Whether an address is one of fsspec, such as `s3://bucket/folder`, and no path."""
    return "://" in address


def filesystem(address: str, options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        SailUsageError: no such kind of address, or one whose package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address.rstrip("/"), **(options or {}))
    except (ValueError, ImportError) as error:
        raise SailUsageError(f"{address} cannot be opened: {error}") from None


@dataclass(frozen=True)
class ShardStore:
    """Reads shards. Those of a remote address are downloaded whole, when first asked for, into a cache on disk.

    All processes of a machine share the cache. What has not been read for longest makes room for what is new.

    Args:
        address: a folder, or an fsspec address.
        cache_size: most bytes that shards of a remote address take on disk.
        options: of the fsspec file system.
    """

    address: str
    cache_size: int = 16_000_000_000
    options: dict[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "cache_size": self.cache_size, "options": self.options}

    @cached_property
    def index(self) -> NDArray[Any]:
        """`ENTRY` of each record, mapped.

        Raises:
            SailError: it is missing or damaged.
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
            raise SailError(f"{self.place(INDEX)} is damaged ({error}); copy it again") from None
        if index.dtype != ENTRY or index.ndim != 1:
            raise SailError(f"{self.place(INDEX)} is no index of shards; write them with sail-lightning data convert")
        return index

    def place(self, name: str) -> str:
        """The address of a file, for messages."""
        return f"{self.address.rstrip('/')}/{name}" if is_remote(self.address) else str(self.folder / name)

    def member(self, shard: int, start: int, end: int, name: str) -> bytes:
        """The content of a member of a shard, which lies between two offsets.

        Raises:
            SailError: the shard is missing, truncated or damaged.
        """
        content = self._read(shard, start, end)
        place = 0
        while place < len(content):
            try:
                info = tarfile.TarInfo.frombuf(content[place : place + BLOCK], "utf-8", "strict")
            except tarfile.HeaderError:
                break
            data = place + BLOCK
            if info.name == name:
                return content[data : data + info.size]
            place = data + padded(info.size)
        raise SailError(f"{self.place(shard_name(shard))} is damaged: no {name} where the index says; copy it again")

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
            except FileNotFoundError:  # of a remote one: dropped by another process
                if not is_remote(self.address):
                    raise SailError(f"no shard {path}; copy it again") from None
        else:
            raise SailError(f"{self.place(path.name)} is dropped from the cache before it is read; raise cache_size")
        if len(content) < end - start:
            raise SailError(
                f"{self.place(path.name)} is truncated: it has {start + len(content)} bytes, and a record that ends "
                f"at {end}; copy it again"
            )
        return content

    # -- the cache of a remote address --------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """Where the files lie on disk; for a remote address a folder of this version of the set."""
        if not is_remote(self.address):
            return Path(self.address)
        files, root = self._remote
        with self._told(INDEX):
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
        """One process downloads and makes room at a time."""
        from filelock import FileLock

        with FileLock(self.folder / ".lock"):
            yield

    def _keep(self, path: Path) -> None:
        """Sees that a shard is in the cache, and marks it as just read."""
        try:
            os.utime(path)
            return
        except FileNotFoundError:
            pass
        with self._lock():
            if not path.exists():
                self._download(path.name)

    def _download(self, name: str) -> None:
        """Fetches a file, whole or not at all. The lock is held."""
        files, root = self._remote
        for left in self.folder.glob("*.part"):  # by a process that was stopped
            left.unlink()
        part = self.folder / f"{name}.part"
        with self._told(name):
            size = files.info(f"{root}/{name}").get("size")  # some servers do not say
            if name != INDEX:
                self._make_room(size or 0, name)
            files.get_file(f"{root}/{name}", str(part))
        if size is not None and (got := part.stat().st_size) != size:
            part.unlink()
            raise SailError(f"{self.place(name)} came with {got} of its {size} bytes; try again")
        part.replace(self.folder / name)  # on Windows, `rename` refuses a name that is taken

    def _make_room(self, size: int, name: str) -> None:
        if size > self.cache_size:
            raise SailError(f"{self.place(name)} has {size} bytes, more than cache_size {self.cache_size}; raise it")
        kept = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns)
        used = sum(path.stat().st_size for path in kept)
        for path in kept:
            if used + size <= self.cache_size:
                break
            used -= path.stat().st_size
            path.unlink()

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What goes wrong on the way is a fault of this file."""
        try:
            yield
        except FileNotFoundError:
            hint = "shards are written by sail-lightning data convert --shards" if name == INDEX else "copy it again"
            raise SailError(f"no {self.place(name)}; {hint}") from None
        except OSError as error:
            raise SailError(f"{self.place(name)} cannot be read ({error}); try again") from None


@dataclass(frozen=True)
class ShardPicture:
    """A picture in a shard, read when it is called for. `picture` is the hash of the name that its file once had."""

    store: ShardStore
    shard: int
    start: int
    end: int
    name: str
    picture: int = 0

    def __call__(self) -> bytes:
        """The content of a JPEG or PNG file. Raises as `ShardStore.member`."""
        return self.store.member(self.shard, self.start, self.end, self.name)

    def __str__(self) -> str:
        return f"{self.store.place(shard_name(self.shard))}/{self.name}"
