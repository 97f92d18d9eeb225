"""An index of plain records on disk: parsed once, mapped into memory, shared by all workers and processes.

It consists of a file of JSON lines and, for each record, an offset and an image hash of eight bytes each. A worker
holds only the paths (official defects E37, E38: indices grew, and were copied for each worker and each listing of a
data set).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.errors import SailError
from sail_lightning.settings.renames import renamed

Row = dict[str, Any]
ROWS, OFFSETS, IMAGE_HASHES = "rows.jsonl", "offsets.npy", "pictures.npy"
FORMAT = 2


def cache_root() -> Path:
    """The folder of all indices, in `$SAIL_CACHE` or else in `~/.cache/sail_lightning`."""
    return Path(os.environ.get("SAIL_CACHE") or Path.home() / ".cache" / "sail_lightning") / "index"


def image_name(path: str | Path) -> str:
    """The name of an image independent of its folder: the stem of the file, without COCO's `COCO_train2014_`.

    If the stem has no number of six digits or more, the name includes the folder: many folders hold a `0001.png`.
    """
    path = Path(path)
    stem = re.sub(r"^COCO_\w+?_(?=\d{12}$)", "", path.stem)
    return stem if re.search(r"\d{6}", stem) else f"{path.parent.name}/{stem}".lstrip("/")


def image_hash(path: str | Path | None) -> int:
    """A hash of an image's name, between 1 and 2**64 - 1; 0 for None."""
    if path is None:
        return 0
    digest = hashlib.blake2b(image_name(path).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class RecordIndex:
    """Records by index, mapped from disk; it is pickled as the path of its folder.

    Args:
        folder: Folder that `build` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Row:
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        row: Row = json.loads(self._rows[start:end])
        return row

    @cached_property
    def image_hashes(self) -> NDArray[np.uint64]:
        """The `image_hash` of each record, mapped into memory."""
        return np.load(self.folder / IMAGE_HASHES, mmap_mode="r")

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.load(self.folder / OFFSETS, mmap_mode="r")

    @cached_property
    def _rows(self) -> mmap.mmap | bytes:
        with (self.folder / ROWS).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def build(
    folder: Path, rows: Iterable[Row], image_of: Callable[[Row], str | None], name: str = "the data set"
) -> RecordIndex:
    """Writes an index completely or not at all, so that processes that build the same index do not disturb each other.

    Args:
        folder: Folder of the index.
        rows: Plain records.
        image_of: Returns the path of a row's image, or None.
        name: Name of the data set, for messages.

    Raises:
        SailError: A row holds a value that JSON cannot hold, such as bytes or a date.
        OSError: The index cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        offsets: list[int] = [0]
        hashes: list[int] = []
        with (draft / ROWS).open("wb") as file:
            for row in rows:
                line = _line(row, f"record {len(hashes)} of {name}")
                file.write(line)
                offsets.append(offsets[-1] + len(line))
                image = image_of(row)
                hashes.append(
                    image_hash(image if isinstance(image, str) else None)
                )  # reading the record reports another type
        np.save(draft / OFFSETS, np.array(offsets, np.int64))
        np.save(draft / IMAGE_HASHES, np.array(hashes, np.uint64))
        if not folder.exists():
            try:
                draft.rename(folder)
            except OSError:  # another process was first
                if not folder.exists():
                    raise
        return RecordIndex(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _line(row: Row, name: str) -> bytes:
    """A row as a line in ASCII, which keeps lone surrogates; files do hold them, and UTF-8 cannot."""
    try:
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise SailError(
            f"{name} holds a value that JSON cannot hold ({error}); use strings, numbers, lists and objects of these"
        ) from None


def _read(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows; an error in reading their files names the file, so that it is not taken for an error of the index."""
    try:
        yield from rows
    except IsADirectoryError as error:
        raise SailError(f"{error.filename or name} is a folder; name a file in it") from None
    except OSError as error:
        raise SailError(f"{error.filename or name} cannot be read ({error.strerror or error})") from None


def opened(
    kind: str,
    files: Sequence[Path],
    settings: Any,
    rows: Callable[[], Iterator[Row]],
    image_of: Callable[[Row], str | None],
) -> RecordIndex:
    """The index of annotation files, built unless it exists. Files that changed have another index.

    Args:
        kind: Name of the reader.
        files: Files that it reads.
        settings: Other settings that affect the rows, such as the reader's version, as JSON.
        rows: Parses the files.
        image_of: Returns the path of a row's image, or None.

    Raises:
        SailError: A file is missing or cannot be read, or the index cannot be written.
    """
    stamp: list[Any] = [FORMAT, kind, settings]
    for file in files:
        try:
            status = file.stat()
        except OSError:
            raise SailError(f"no annotation file {file}; see docs/data.md for where the files of each set go") from None
        stamp.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    key = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / f"{kind.split('.')[-1]}-{key}"
    if folder.is_dir():
        return RecordIndex(folder)
    name = " or ".join(map(str, files))
    try:
        return build(folder, _read(rows(), name), image_of, name)
    except OSError as error:
        place, reason = error.filename or folder.parent, error.strerror or error
        raise SailError(
            f"the index cannot be written to {place} ({reason}); set SAIL_CACHE to another folder"
        ) from None


__getattr__ = renamed(__name__, {"picture_hash": "image_hash", "picture_name": "image_name"})
