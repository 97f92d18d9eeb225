"""Writes samples as a JSONL file (`jsonl` describes it), whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePath
from types import TracebackType

from sail_lightning.data.jsonl import as_line, named, pictures_of, to_json
from sail_lightning.data.records import picture_name
from sail_lightning.data.webdataset.writer import picture_file
from sail_lightning.errors import SailUsageError
from sail_lightning.sample import ImageRef, Sample


class JsonlWriter:
    """A context in which samples are added; the file is there when it is left without an exception.

    Args:
        path: of the file, which does not exist yet.
        copy_images: put the pictures into a folder beside it, `NAME_images`, each once and under its own name. Else
            the file names them where they lie.

    Raises:
        SailUsageError: the file, or the folder for the pictures, exists.
    """

    def __init__(self, path: str | Path, copy_images: bool = False) -> None:
        self.path = Path(path)
        self.images = self.path.with_name(f"{self.path.stem}_images") if copy_images else None
        for target in (self.path, self.images):
            if target is not None and target.exists():
                raise SailUsageError(f"{target} exists already; name another file or remove it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
        self._file = (self._draft / "lines").open("wb")
        (self._draft / "images").mkdir()
        self._copied: dict[str, str] = {}  # a picture's path, or the hash of its content, and its name in the folder
        self._taken: dict[str, int] = {}

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                if self.images is not None:
                    (self._draft / "images").rename(self.images)
                (self._draft / "lines").rename(self.path)  # last: it names the pictures
        finally:
            shutil.rmtree(self._draft, ignore_errors=True)

    def add(self, sample: Sample) -> None:
        """Writes a sample, decoding its masks.

        Raises:
            SailError: as `to_json` and `picture_file`.
            SailUsageError: a picture that is no file, and is not to be copied.
        """
        record = to_json(sample, ())
        as_line(record)  # a sample that cannot be written leaves no picture behind
        record["image"] = named([self._named(image, sample.id) for image in pictures_of(sample)])
        self._file.write(as_line(record))

    def _named(self, image: ImageRef, id: str) -> str:
        """A picture as the file names it: relative to the folder of the file."""
        if self.images is not None:
            return f"{self.images.name}/{self._copy(image, id)}"
        if not isinstance(image, str | Path):
            raise SailUsageError(f"the picture of {id} is no file; add --copy-images to write one")
        # Forward slashes, also where the system writes others: the file is read elsewhere too.
        return PurePath(os.path.relpath(Path(image).absolute(), self.path.parent.absolute())).as_posix()

    def _copy(self, image: ImageRef, id: str) -> str:
        known = str(image) if isinstance(image, str | Path) else ""
        if known in self._copied:
            return self._copied[known]
        ending, content = picture_file(image)
        stem = Path(known).stem if known else re.sub(r"[^\w.-]+", "_", id) or "picture"
        known = known or hashlib.blake2b(content).hexdigest()
        if known not in self._copied:
            name = self._free(f"{_folder(known)}{stem}{ending}")
            target = self._draft / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            self._copied[known] = name
        return self._copied[known]

    def _free(self, name: str) -> str:
        """A name that no other picture has: those of one name lie in folders 2, 3, ... A picture keeps its own name,
        by which held-out pictures are found."""
        self._taken[name] = number = self._taken.get(name, 0) + 1
        return name if number == 1 else f"{number}/{name}"


def _folder(path: str) -> str:
    """The folder of a picture's own, with a slash, where it belongs to what names the picture; empty else."""
    folder = Path(path).parent.name
    return f"{folder}/" if "/" in picture_name(path) and folder != ".." else ""
