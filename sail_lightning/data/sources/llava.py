"""LLaVA-665K as a data source: conversations with or without an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json
from sail_lightning.errors import SailError
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.sequence.chat_template import without_image_marker


@register
class Llava(IndexedSource):
    """Reads LLaVA's instruction file. A record without an image is a text-only sample (official defect E28: refused).

    Args:
        annotations: The JSON file.
        images: Folder of the images, at the paths that the file gives, such as `coco/train2017/000000000009.jpg`.
    """

    def __init__(self, annotations: str = layout.LLAVA, images: str = layout.LLAVA_IMAGES) -> None:
        super().__init__([annotations])
        self.images = data_path(images)

    def settings(self) -> Any:
        return str(self.images)

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(read_json(self.files[0])):
            record = item if isinstance(item, dict) else {}
            row: Row = {"id": str(record.get("id", f"record {number}")), "conversations": record.get("conversations")}
            if record.get("image"):
                row["image"] = str(self.images / str(record["image"]))
            yield row

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        turns = tuple(Turn(question, answer) for question, answer in conversation(row["conversations"]))
        return Sample(row.get("image"), turns, source=str(self.files[0]), id=row["id"])


def conversation(messages: list[dict[str, str]] | None) -> list[tuple[str, str]]:
    """Returns questions and answers of a list of `{"from": "human" | "gpt", "value": text}`.

    `<image>` is removed. Answers before the first question are dropped, as is a question without an answer. Consecutive
    questions are joined by line breaks (official code: with nothing between them).

    Raises:
        SailError: A message has another role, or no question has an answer.
    """
    pairs: list[tuple[str, str]] = []
    asked: list[str] = []
    begun = False
    for number, message in enumerate(messages or (), 1):
        role, text = message["from"], message["value"]
        if role == "human":
            asked.append(without_image_marker(text))
            begun = True
        elif role != "gpt":
            raise SailError(f"message {number} is from {role!r}; write human or gpt")
        elif begun:
            pairs.append(("\n".join(part for part in asked if part), text.strip()))
            asked = []
    if not pairs:
        raise SailError("no question with an answer; give the record one, or remove it")
    return pairs
