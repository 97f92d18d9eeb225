"""RefCOCO-M as a data source: the val split of RefCOCO with pixel-exact masks and without harmful phrases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.images import listed_image, required_image
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
    """Reads RefCOCO-M. Its official metric is the mean IoU over all phrases, which is `giou` here.

    Moondream publishes the set as Parquet (`moondream/refcoco-m`: 1,190 images, 2,080 masks, 5,598 phrases), a row per
    image: `{"image", "image_id", "file_name", "samples": [{"id", "sentences": [str], "mask": {"size", "counts"}}]}`.
    The layout is taken from its dataset card; the files themselves could not be checked. Images are taken from COCO
    train2014, which has the same images; the column `image` is not read. Rows may also lie in JSON: a list in a file
    `.json`, or a line each in a file `.jsonl`.

    Args:
        annotations: A file, or a folder with files of one of the three kinds. Parquet needs pyarrow:
            `pip install 'sail-lightning[parquet]'`.
        images: Folder of the images.
        objects: Largest number of objects per conversation.
        separate: Whether each record is one question about one phrase, as the benchmark asks.
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
        for item in chain.from_iterable(read_rows(file) for file in self.files):
            row: Row = {"id": str(item.get("image_id", item.get("file_name")))}
            row["image"] = listed_image(self.images, item, "file_name")
            objects = [
                {"ann_id": one.get("id", place), "phrases": one.get("sentences") or [], "mask": one.get("mask")}
                for place, one in enumerate(item.get("samples") or [])
            ]
            if self.separate:
                yield from separated(row, objects)
            elif named := [one for one in objects if one["phrases"]]:
                yield {**row, "objects": named}

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
        image = required_image(row, "file_name")
        return Sample(image, tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])


def row_files(path: Path) -> list[Path]:
    """Returns the files of a folder, all of the first kind that it has; any other path is returned as one file."""
    if not path.is_dir():
        return [path]
    for kind in ("*.parquet", "*.jsonl", "*.json"):
        if files := sorted(path.rglob(kind)):
            return files
    return [path / "validation-00000-of-00002.parquet"]  # opening it reports what is missing


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of one file.

    Raises:
        SailError: The file cannot be read, or needs a package that is not installed.
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
        raise SailError(f"{path} is not a readable Parquet file ({error}); copy it again") from None
