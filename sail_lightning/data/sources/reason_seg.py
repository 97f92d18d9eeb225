"""ReasonSeg as a data source: questions that need reasoning, with hand-drawn regions as answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import image_size
from sail_lightning.registry import register
from sail_lightning.sample import BoolMask, Sample, Turn
from sail_lightning.sequence.chat_template import SEG
from sail_lightning.settings.ranges import PositiveInt

ANSWER = f"It is {SEG}."


@dataclass(frozen=True)
class Outline:
    """A region: its corners (x, y) in whole pixels, and whether it is to be ignored."""

    points: tuple[tuple[int, int], ...]
    ignored: bool


@dataclass(frozen=True)
class DrawnRegions:
    """A mask reference: the target or the ignored regions of an image, after all outlines are drawn.

    Outlines are filled, with lines one pixel thick, from the largest to the smallest. A pixel belongs to the last
    outline that covers it, so targets and ignored regions never overlap.
    """

    outlines: tuple[Outline, ...]
    image: str
    ignored: bool = False

    def __call__(self) -> BoolMask:
        size = image_size(self.image)
        regions = [(_filled(outline, size), outline.ignored) for outline in self.outlines]
        mask = np.zeros(size, bool)
        for region, ignored in sorted(regions, key=lambda one: -int(one[0].sum())):
            mask[region] = ignored == self.ignored
        return mask


@register
class ReasonSeg(IndexedSource):
    """Reads ReasonSeg: a folder of images, each with a JSON file of the same stem.

    A region to ignore is not a target. It is kept apart: `Sample.meta["ignore"]` has one mask reference per mask of
    the sample, or None if nothing is ignored (official code: it became background in training and, through the
    run-length code, target in the benchmark, E16).

    Args:
        split: `train`, `val` or `test`, a folder of its own.
        folder: Folder that holds the splits.
        sentences: Largest number of sentences per conversation, all about the same mask.
        separate: Whether only the first sentence of each image is used, as the benchmark asks.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        folder: str = layout.REASON_SEG,
        sentences: PositiveInt = 3,
        separate: bool = False,
    ) -> None:
        super().__init__([Path(folder) / split])
        self.sentences, self.separate = sentences, separate

    def settings(self) -> Any:
        return str(self.files[0])  # rows begin with it

    def rows(self) -> Iterator[Row]:
        """Yields the names of the files. Their small content is read anew each time, so the index is never outdated."""
        stems = {path.stem: path for path in self.files[0].iterdir() if path.suffix in (".jpg", ".json")}
        for stem, path in sorted(stems.items()):
            yield {"id": stem, "image": str(path.with_suffix(".jpg")), "file": str(path.with_suffix(".json"))}

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        content = read_item(Path(row["file"]))
        outlines = tuple(_outline(shape) for shape in content["shapes"] if shape["label"] != "flag")
        texts = [text.strip() for text in content["text"]]
        if not all(texts) or not texts:
            raise SailError("the list `text` needs at least one sentence, and none that is empty")
        ask = prompt_templates.REASON_LONG if content["is_sentence"] else prompt_templates.REASON_SHORT
        used = texts[:1] if self.separate else sampler.sample(texts, self.sentences)
        turns = tuple(Turn(ask.format(text), ANSWER, "refer", (place,)) for place, text in enumerate(used))
        masks = (DrawnRegions(outlines, row["image"]),) * len(turns)
        some = any(outline.ignored for outline in outlines)
        ignore = [DrawnRegions(outlines, row["image"], ignored=True) if some else None] * len(turns)
        return Sample(row["image"], turns, masks, source=str(self.files[0]), id=row["id"], meta={"ignore": ignore})


def read_item(path: Path) -> dict[str, Any]:
    """Returns one annotation, which is in UTF-8 or, like some of the published ones, in Windows-1252.

    Raises:
        SailError: The file is missing or is not valid JSON.
    """
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        raise SailError(f"no file {path.name}; each image needs a JSON file of its name") from None
    try:
        content: dict[str, Any] = json.loads(_text(written))
    except ValueError as error:  # JSON, or neither of the two encodings
        raise SailError(f"{path.name} is not valid JSON ({error}); copy it again") from None
    return content


def _text(written: bytes) -> str:
    try:
        return written.decode("utf-8")
    except UnicodeDecodeError:
        return written.decode("cp1252")


def _outline(shape: dict[str, Any]) -> Outline:
    points = tuple((int(x), int(y)) for x, y in shape["points"])
    if not points:
        raise SailError(f"a region labelled {shape['label']!r} has no points")
    return Outline(points, "ignore" in shape["label"])


def _filled(outline: Outline, size: tuple[int, int]) -> BoolMask:
    canvas = Image.new("1", (size[1], size[0]))
    draw, points = ImageDraw.Draw(canvas), list(outline.points)
    if len(points) > 2:
        draw.polygon(points, fill=1)
    draw.line([*points, points[0]], fill=1)
    return np.array(canvas, bool)
