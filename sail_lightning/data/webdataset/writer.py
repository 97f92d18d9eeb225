"""Writes samples as shards (their format is described in `store`), completely or not at all."""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from sail_lightning.data.jsonl import as_line, to_json
from sail_lightning.data.records import image_hash
from sail_lightning.data.webdataset.store import (
    BLOCK,
    ENTRY,
    INDEX,
    ShardImage,
    filesystem,
    is_remote,
    key_of,
    padded,
    shard_name,
)
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import load_image
from sail_lightning.sample import ImageRef, Sample
from sail_lightning.settings.renames import renamed

KEPT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
"""Formats of image files that are stored unchanged, and their endings."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def as_bytes(size: str) -> int:
    """The number of bytes of a size such as `512MB`, `2 GB` or `1000`.

    Raises:
        SailUsageError: The text has another form.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", size, re.IGNORECASE)
    if not match or not (number := int(float(match[1]) * UNITS[match[2].upper()])):
        raise SailUsageError(f"a size is written such as 512MB or 2GB, not {size}")
    return number


def image_file(image: ImageRef) -> tuple[str, bytes]:
    """The ending and content of an image file: a JPEG or PNG unchanged, anything else as a PNG of its pixels.

    Raises:
        SailError: As `load_image` raises it.
    """
    content = image() if callable(image) else image
    if not isinstance(content, np.ndarray):
        try:
            content = content if isinstance(content, bytes) else Path(content).read_bytes()
            with Image.open(BytesIO(content)) as opened:
                if (ending := KEPT.get(opened.format or "")) is not None:
                    return ending, content
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # `load_image` reports it
            pass
    file = BytesIO()
    Image.fromarray(load_image(image)).save(file, "PNG")
    return ".png", file.getvalue()


class ShardWriter:
    """A context manager that writes the samples added to it; the shards exist once it is left without an exception.

    Args:
        address: A folder that does not exist or is empty, or an fsspec address without an index.
        shard_size: Largest number of bytes of a shard; a larger record makes a shard of its own.

    Raises:
        SailUsageError: There is something at the address.
    """

    def __init__(self, address: str, shard_size: int = 512_000_000) -> None:
        self.address, self.shard_size = address, shard_size
        self.entries: list[tuple[int, ...]] = []
        self._files: Any = None
        self._names: list[str] = []
        self._tar: tarfile.TarFile | None = None
        self._offset = 0
        if is_remote(address):
            self._files, self._root = filesystem(address)
            if self._files.exists(f"{self._root}/{INDEX}"):
                raise SailUsageError(f"{address} has an {INDEX} already; name another place or remove what is there")
            self._draft = Path(tempfile.mkdtemp(prefix="sail-shards-"))
            return
        self._folder = Path(address)
        if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise SailUsageError(f"{address} exists already; name another folder or remove it")
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._draft = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}-", dir=self._folder.parent))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        done = False
        try:
            if kind is None:
                self._finish()
                done = True
        finally:
            if self._tar is not None:
                with suppress(OSError):  # such as a full disk: the draft is removed anyway
                    self._tar.close()
            if not done and self._files is not None:
                for name in self._names:
                    with suppress(OSError):
                        self._files.rm_file(f"{self._root}/{name}")
            shutil.rmtree(self._draft, ignore_errors=True)

    def add(self, sample: Sample) -> None:
        """Writes a sample, decoding its masks.

        Raises:
            SailError: As `to_json` and `image_file` raise it.
        """
        key = key_of(len(self.entries))
        files = [image_file(image) for image in sample.images]
        names = [f"{key}{f'.{index}' if index else ''}{ending}" for index, (ending, _) in enumerate(files)]
        text = as_line(to_json(sample, names))
        members = [(f"{key}.json", text), *((name, content) for name, (_, content) in zip(names, files, strict=True))]
        size = sum(BLOCK + padded(len(content)) for _, content in members)
        if self._tar is None or (self._offset and _tar_size(self._offset + size) > self.shard_size):
            self._next_shard()
        assert self._tar is not None
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            self._tar.addfile(info, BytesIO(content))
        start, self._offset = self._offset, self._offset + size
        image_key = _key(next(iter(sample.images), None))
        self.entries.append((len(self._names), len(text), start, self._offset, image_key))

    def _next_shard(self) -> None:
        self._close_shard()
        name = shard_name(len(self._names))
        # In tar's older format no header is longer than one block.
        self._tar = tarfile.open(self._draft / name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed later
        self._offset = 0

    def _close_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            self._store(shard_name(len(self._names)))

    def _store(self, name: str) -> None:
        """Stores a complete file of the draft at the address."""
        self._names.append(name)
        if self._files is not None:
            try:
                self._files.makedirs(self._root, exist_ok=True)
                self._files.put_file(str(self._draft / name), f"{self._root}/{name}")
            except OSError as error:
                raise SailError(f"{self.address}/{name} cannot be written ({error})") from None
            (self._draft / name).unlink()

    def _finish(self) -> None:
        self._close_shard()
        np.save(self._draft / INDEX, np.array(self.entries, ENTRY))
        if self._files is not None:
            self._store(INDEX)  # last: without it there is no data set
            return
        self._draft.chmod(0o755)  # temporary folders are private
        self._draft.rename(self._folder)


def _tar_size(content: int) -> int:
    """Size of a tar file with `content` bytes of members, two empty blocks at the end, and padding."""
    return -(-(content + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _key(image: ImageRef | None) -> int:
    """The number that identifies an image: `records.image_hash`, as in `Source.image_keys`; 0 if it has no file."""
    if isinstance(image, ShardImage):
        return image.key
    return image_hash(image) if isinstance(image, str | Path) else 0


__getattr__ = renamed(__name__, {"picture_file": "image_file"})
