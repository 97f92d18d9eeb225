"""RefCOCO-M: the val split of RefCOCO with masks that are exact to the pixel, and without harmful phrases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.images import picture_of, picture_path
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json
from sail_lightning.data.sources.refcoco import BENCHMARK_QUESTION, as_phrase, separated
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import PositiveInt


@register
class RefCOCOM(IndexedSource):
    """RefCOCO-M. Its own figure is the mean IoU over all phrases, which is `giou` here.

    Moondream publishes the set as Parquet (`moondream/refcoco-m`: 1,190 photos, 2,080 masks, 5,598 phrases), a row per
    photo: `{"image", "image_id", "file_name", "samples": [{"id", "sentences": [str], "mask": {"size", "counts"}}]}`.
    That is what its dataset card says; the files themselves could not be checked. Photos are taken from COCO
    train2014, which has the same ones; the column `image` is not read. Rows may also lie in JSON: a list in a file
    `.json`, or a line each in a file `.jsonl`.

    Args:
        annotations: one file, or a folder with files of one of the three kinds. Parquet needs pyarrow:
            `pip install 'sail-lightning[parquet]'`.
        images: folder of the photos.
        objects: most per conversation.
        separate: one question per record, every phrase once, as the benchmark asks.
    """

    def __init__(
        self,
        annotations: str = f"{layout.REFERRING}/refcoco-m",
        images: str = layout.COCO_TRAIN2014,
        objects: PositiveInt = 5,
        separate: bool = False,
    ) -> None:
        super().__init__(row_files(data_path(annotations).absolute()))  # no longer below $SAIL_DATA
        self.images, self.objects, self.separate = data_path(images), objects, separate

    def settings(self) -> Any:
        return [str(self.images), self.separate]

    def rows(self) -> Iterator[Row]:
        for photo in chain.from_iterable(read_rows(file) for file in self.files):
            row: Row = {"id": str(photo.get("image_id", photo.get("file_name")))}
            row["image"] = picture_path(self.images, photo, "file_name")
            objects = [
                {"ann_id": one.get("id", place), "phrases": one.get("sentences") or [], "mask": one.get("mask")}
                for place, one in enumerate(photo.get("samples") or [])
            ]
            if self.separate:
                yield from separated(row, objects)
            elif spoken := [one for one in objects if one["phrases"]]:
                yield {**row, "objects": spoken}

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        turns, masks = [], []
        for place, item in enumerate(sampler.sample(row["objects"], self.objects)):
            question = BENCHMARK_QUESTION if self.separate else sampler.choice(prompt_templates.SEGMENT)
            phrase, answer = (
                as_phrase(sampler.choice(item["phrases"])),
                sampler.choice(prompt_templates.SEGMENT_ANSWERS),
            )
            turns.append(Turn(question.format(phrase), answer, "refer", (place,)))
            height, width = item["mask"]["size"]
            masks.append(Segmentation((item["mask"],), (height, width)))
        photo = picture_of(row, "file_name")
        return Sample(photo, tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])


def row_files(path: Path) -> list[Path]:
    """The files of a folder, of the first kind that it has; a path that is no folder is one file."""
    if not path.is_dir():
        return [path]
    for kind in ("*.parquet", "*.jsonl", "*.json"):
        if files := sorted(path.rglob(kind)):
            return files
    return [path / "validation-00000-of-00002.parquet"]  # to be told of when it is opened


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file.

    Raises:
        SailError: it cannot be read, or needs a package that is not installed.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".jsonl":
        try:
            yield from (json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip())
        except ValueError as error:  # JSON or UTF-8
            raise SailError(f"{path} is not valid JSON lines ({error}); copy it again") from None
    else:
        yield from read_json(path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SailError(f"reading {path} needs pyarrow: pip install 'sail-lightning[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=100, columns=["image_id", "file_name", "samples"]):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise SailError(f"{path} is no readable Parquet file ({error}); copy it again") from None
