"""An index of plain records on disk: parsed once, mapped into memory, shared by all workers and processes.

A million records are a file of JSON lines, eight bytes of offset each, and eight bytes that name their picture. A
worker holds the paths and nothing else (official defects E37, E38: indices that grew, and were copied for each worker
and for each time that a data set was listed).
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

Row = dict[str, Any]
ROWS, OFFSETS, PICTURES = "rows.jsonl", "offsets.npy", "pictures.npy"
FORMAT = 2


def cache_root() -> Path:
    """Where indices are kept: `$SAIL_CACHE`, or `~/.cache/sail_lightning`."""
    return Path(os.environ.get("SAIL_CACHE") or Path.home() / ".cache" / "sail_lightning") / "index"


def picture_name(path: str | Path) -> str:
    """What names a picture wherever its file lies: the stem, without COCO's `COCO_train2014_`.

    Where the stem has no number of six digits or more, its folder belongs to it: many folders hold a `0001.png`.
    """
    path = Path(path)
    stem = re.sub(r"^COCO_\w+?_(?=\d{12}$)", "", path.stem)
    return stem if re.search(r"\d{6}", stem) else f"{path.parent.name}/{stem}".lstrip("/")


def picture_hash(path: str | Path | None) -> int:
    """A picture's name as a number below 2**64; 0 for none."""
    if path is None:
        return 0
    digest = hashlib.blake2b(picture_name(path).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class RecordIndex:
    """Records by number. Pickled as the path of its folder.

    Args:
        folder: that `build` wrote.
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
    def pictures(self) -> NDArray[np.uint64]:
        """`picture_hash` of each record, mapped."""
        return np.load(self.folder / PICTURES, mmap_mode="r")

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
    folder: Path, rows: Iterable[Row], picture: Callable[[Row], str | None], name: str = "the data set"
) -> RecordIndex:
    """Writes an index, whole or not at all: processes that build the same one do not see each other's half.

    Args:
        folder: where it goes.
        rows: plain records.
        picture: the picture's path in a row.
        name: of what the rows come from, for messages.

    Raises:
        SailError: a row that holds what JSON cannot, such as bytes or a date.
        OSError: the index cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        offsets: list[int] = [0]
        pictures: list[int] = []
        with (draft / ROWS).open("wb") as file:
            for row in rows:
                line = _line(row, f"record {len(pictures)} of {name}")
                file.write(line)
                offsets.append(offsets[-1] + len(line))
                image = picture(row)
                pictures.append(picture_hash(image if isinstance(image, str) else None))  # else the record tells of it
        np.save(draft / OFFSETS, np.array(offsets, np.int64))
        np.save(draft / PICTURES, np.array(pictures, np.uint64))
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
    """A row as a line. In ASCII: half a surrogate pair, which files do hold, is no UTF-8 but comes back as it was."""
    try:
        return json.dumps(row, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise SailError(
            f"{name} holds what JSON cannot ({error}); write texts, numbers, lists and objects of these"
        ) from None


def _read(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """Rows; what goes wrong with the files that they are read from is not taken for a fault of the index."""
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
    picture: Callable[[Row], str | None],
) -> RecordIndex:
    """The index of annotation files, built if it is not kept yet. Files that changed are another index.

    Args:
        kind: of the reader; with its version, should what it writes change.
        files: that it reads.
        settings: what else decides about the rows, as JSON.
        rows: parses the files.
        picture: the picture's path in a row.

    Raises:
        SailError: a file that is missing or cannot be read, or an index that cannot be written.
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
        return build(folder, _read(rows(), name), picture, name)
    except OSError as error:
        place, reason = error.filename or folder.parent, error.strerror or error
        raise SailError(
            f"the index cannot be written to {place} ({reason}); set SAIL_CACHE to another folder"
        ) from None
