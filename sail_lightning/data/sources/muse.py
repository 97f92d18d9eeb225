"""MUSE as a data source: questions with answers that name several objects or parts, each with its mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.images import listed_image, required_image
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json, rows_of
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.sequence.chat_template import SEG
from sail_lightning.settings.ranges import PositiveInt

SLOT = "{seg}"
"""Placeholder for a mask in the file's own answers."""
REPHRASED = 0.9
"""Probability that an object with a `rephrased_name` is called by it."""
ONE_BY_ONE = (f"{{}} is {SEG}", f"{{}} {SEG}", f"the segmentation result of {{}} is {SEG}")
"""Templates for an object in an answer that gives one object after another."""
TOGETHER = (
    "{names}: {masks}.",
    "{names} are {masks}.",
    "The masks of {names} are {masks}.",
    "Sure, {names} are {masks}.",
    "Sure, the masks of {names} are {masks}.",
    "The segmentation results of {names} are {masks}.",
    "Sure, the segmentation results of {names} are {masks}.",
    "Here are the masks of {names}: {masks}.",
    "These are {names}: {masks}.",
    "{masks} show {names}.",
    "{masks} are the masks of {names}.",
)
"""Templates of answers that name all objects and then give all masks, in the same order."""


@register
class Muse(IndexedSource):
    """Reads MUSE. Images without objects or questions are left out.

    The answer is the file's own text with a mask for each `{seg}`, or else is composed from the names of the objects.

    Args:
        annotations: The JSON file.
        train2014: Folder of the images that are named by `file_name`.
        train2017: Folder of the images that are named by a `coco_url` of train2017.
        val2017: Folder of the images that are named by another `coco_url`.
        questions: Largest number of questions per conversation; null is all.
    """

    def __init__(
        self,
        annotations: str = layout.MUSE,
        train2014: str = layout.COCO_TRAIN2014,
        train2017: str = layout.COCO_TRAIN2017,
        val2017: str = layout.COCO_VAL2017,
        questions: PositiveInt | None = None,
    ) -> None:
        super().__init__([annotations])
        self.folders = [data_path(folder) for folder in (train2014, train2017, val2017)]
        self.questions = questions

    def settings(self) -> Any:
        return [str(folder) for folder in self.folders]

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(read_json(self.files[0])):
            yield from rows_of(f"item {number}", partial(self._row, f"item {number}", item))

    def _row(self, id: str, item: Row) -> Iterator[Row]:
        if item.get("ann_list") and item.get("questions"):
            kept = {key: item.get(key) for key in ("height", "width", "questions", "answers", "text_answers")}
            yield {"id": id, "image": self._image(item), **kept}

    def _image(self, item: Row) -> str | None:
        train2014, train2017, val2017 = self.folders
        if item.get("file_name"):
            return listed_image(train2014, item, "file_name")
        if not item.get("coco_url"):
            return None
        return str((train2017 if "train2017" in item["coco_url"] else val2017) / PurePath(item["coco_url"]).name)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        asked, answers, texts = row["questions"], row["answers"], row["text_answers"] or [None] * len(row["questions"])
        if not len(asked) == len(answers) == len(texts):
            raise SailError(f"{len(asked)} questions but {len(answers)} answers and {len(texts)} text answers")
        turns: list[Turn] = []
        masks: list[Segmentation] = []
        for number in sampler.sample(range(len(asked)), self.questions):
            objects, text = answers[number], texts[number]
            answer = _given_answer(text, objects) if text else _composed_answer(objects, sampler)
            targets = tuple(range(len(masks), len(masks) + len(objects)))
            turns.append(Turn(asked[number].strip() + prompt_templates.MASK_PLEASE, answer, "refer", targets))
            size = (row["height"], row["width"])
            masks += [Segmentation(as_parts(one["segmentation"]), size) for one in objects]
        image = required_image(row, "file_name` or `coco_url")
        return Sample(image, tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])


def as_parts(segmentation: Any) -> tuple[Any, ...]:
    """Returns the parts of one object's mask: its polygons, one RLE, or a list of RLEs."""
    if isinstance(segmentation, list) and any(isinstance(part, dict) for part in segmentation):
        return tuple(part if isinstance(part, dict) else [part] for part in segmentation)
    return (segmentation,)


def joined(words: Sequence[str]) -> str:
    """Joins words as in "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _given_answer(text: str, objects: Sequence[Row]) -> str:
    if (slots := text.count(SLOT)) != len(objects):
        raise SailError(f"the answer {text[:40]!r} has {slots} {SLOT}, but its objects are {len(objects)}; fix either")
    return text.replace(SLOT, SEG)


def _composed_answer(objects: Sequence[Row], sampler: Sampler) -> str:
    if not objects:
        raise SailError("a question has neither a text answer nor objects")
    names = []
    for one in objects:
        rephrased = one.get("rephrased_name")
        names.append(rephrased if rephrased and sampler.bernoulli(REPHRASED) else one["category_name"])
    if sampler.bernoulli(0.5):
        pattern = sampler.choice(TOGETHER)
        return pattern.format(names=joined([name.lower() for name in names]), masks=joined([SEG] * len(names)))
    return joined([sampler.choice(ONE_BY_ONE).format(name) for name in names]) + "."
