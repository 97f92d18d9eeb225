"""Writes samples as a JSONL file (its format is described in `jsonl`), completely or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePath
from types import TracebackType

from sail_lightning.data.jsonl import as_line, named, to_json
from sail_lightning.data.records import image_name
from sail_lightning.data.webdataset.writer import image_file
from sail_lightning.errors import SailUsageError
from sail_lightning.sample import ImageRef, Sample


class JsonlWriter:
    """A context manager that writes the samples added to it; the file exists once it is left without an exception.

    Args:
        path: Path of the file, which must not exist.
        copy_images: Whether images are copied to the folder `NAME_images` beside the file, each once and under its own
            name. Otherwise the file refers to them where they are.

    Raises:
        SailUsageError: The file or the folder for the images exists.
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
        self._copied: dict[str, str] = {}  # an image's path, or the hash of its content, to its name in the folder
        self._taken: dict[str, int] = {}

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None:
                if self.images is not None:
                    (self._draft / "images").rename(self.images)
                (self._draft / "lines").rename(self.path)  # last: it names the images
        finally:
            shutil.rmtree(self._draft, ignore_errors=True)

    def add(self, sample: Sample) -> None:
        """Writes a sample, decoding its masks.

        Raises:
            SailError: As `to_json` and `image_file` raise it.
            SailUsageError: An image is not a file, and images are not copied.
        """
        record = to_json(sample, ())
        as_line(record)  # a sample that cannot be written leaves no image behind
        record["image"] = named([self._named(image, sample.id) for image in sample.images])
        self._file.write(as_line(record))

    def _named(self, image: ImageRef, id: str) -> str:
        """The path of an image relative to the folder of the file."""
        if self.images is not None:
            return f"{self.images.name}/{self._copy(image, id)}"
        if not isinstance(image, str | Path):
            raise SailUsageError(f"the image of {id} is not a file; add --copy-images to write one")
        # With forward slashes on every system, since the file may be read on another.
        return PurePath(os.path.relpath(Path(image).absolute(), self.path.parent.absolute())).as_posix()

    def _copy(self, image: ImageRef, id: str) -> str:
        known = str(image) if isinstance(image, str | Path) else ""
        if known in self._copied:
            return self._copied[known]
        ending, content = image_file(image)
        stem = Path(known).stem if known else re.sub(r"[^\w.-]+", "_", id) or "image"
        known = known or hashlib.blake2b(content).hexdigest()
        if known not in self._copied:
            name = self._free(f"{_folder(known)}{stem}{ending}")
            target = self._draft / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            self._copied[known] = name
        return self._copied[known]

    def _free(self, name: str) -> str:
        """A name that no other image has: images of the same name are put into folders 2, 3, ... An image keeps its
        file name, by which held-out images are found."""
        self._taken[name] = number = self._taken.get(name, 0) + 1
        return name if number == 1 else f"{number}/{name}"


def _folder(path: str) -> str:
    """The folder of an image with a slash if it is part of the image's name (`image_name`), or an empty string."""
    folder = Path(path).parent.name
    return f"{folder}/" if "/" in image_name(path) and folder != ".." else ""
