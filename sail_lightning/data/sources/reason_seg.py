"""ReasonSeg: what a question that needs thought asks for, as regions drawn by hand."""

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
    """One region: its corners (x, y) in whole pixels, and whether it is to be ignored."""

    points: tuple[tuple[int, int], ...]
    ignored: bool


@dataclass(frozen=True)
class DrawnRegions:
    """What outlines leave of one kind, target or ignored, when they are drawn on a picture from the largest on.

    A pixel belongs to the last outline that covers it, so the two kinds never overlap. Outlines are filled, and their
    lines, one pixel thick, belong to them.
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
    """ReasonSeg: a folder of photos, each with a JSON file of the same stem.

    A region to ignore is no target. It is kept by itself: `Sample.meta["ignore"]` has one mask reference per mask of
    the sample, or None where nothing is ignored (official code: it became background in training and, through the
    run-length code, target in the benchmark, E16).

    Args:
        split: `train`, `val` or `test`, a folder of its own.
        folder: that holds the splits.
        sentences: most per conversation, all of them about the same mask.
        separate: only the first sentence of each photo, as the benchmark asks.
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
        """The names of the files. What they hold is small, and read anew each time, so the index never outlives it."""
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
    """One annotation, in UTF-8 or, as some of the published ones are, in Windows-1252.

    Raises:
        SailError: it is missing or no JSON.
    """
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        raise SailError(f"no file {path.name}; each photo needs one of its name") from None
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
