"""PerBench as a data source: region captions, multiple choice about a region, segmentation by words and regions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any, Literal

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json
from sail_lightning.data.sources.sam_prompts import rle_size
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Mask, Sample, Turn
from sail_lightning.sequence.chat_template import SEG, prompt_token
from sail_lightning.settings.ranges import PositiveInt

Task = Literal["caption", "choice", "vres"]
FILES: dict[Task, str] = {
    "caption": "STBench_Detailed_Caption.json",
    "choice": "STBench_MCQ.json",
    "vres": "STBench_VRES.json",
}
"""File names, which carry the benchmark's first name, as its published readers expect."""
_LISTS = {"caption": "object_annotations", "choice": "mcqs"}
ABOUT = "Please answer the question according to the {region}. {question}"
SELECT = "Select a correct choice."
"""Follows the question without a space, as the published benchmark asks it."""
_OPTION = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-Z])[.):]\s*(?=\S)")


@register
class PerBench(IndexedSource):
    """Reads one task of PerBench, one question per record.

    `caption` and `choice` ask about one region, `<Prompt0>`. In `vres` the tags of a record's masks occur in question
    and answer. Those of the question are prompts; tag number K of the record is `<PromptK>`. Those of the answer are
    targets, in the order in which they first appear. A tag in both is both (official defect E18: it was not a target,
    and only the first target was scored).

    Args:
        task: Name of one of the three files.
        annotations: The JSON file; null is the task's in `perbench`.
        images: Folder of the images.
        num_prompts: Number of prompt ids, which run from 0 to num_prompts - 1.
        words: Template of the question of `caption` and `choice`, for models with a small vocabulary: `{region}` is the
            prompt, `{question}` the record's own question; null asks as published.
    """

    def __init__(
        self,
        task: Task = "caption",
        annotations: str | None = None,
        images: str = f"{layout.PERBENCH}/images",
        num_prompts: PositiveInt = 15,
        words: str | None = None,
    ) -> None:
        super().__init__([annotations or f"{layout.PERBENCH}/{FILES[task]}"])
        self.task, self.images, self.num_prompts = task, data_path(images), num_prompts
        self.words = words or (
            ABOUT + SELECT
            if task == "choice"
            else prompt_templates.DESCRIBE[0].format("{region}") + prompt_templates.DESCRIBE_IN_FULL
        )

    def settings(self) -> Any:
        return [self.task, str(self.images)]

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(read_json(self.files[0])):
            record = item if isinstance(item, dict) else {}
            name = str(record.get("image_name", "record"))
            row: Row = {"id": f"{name}/{number}", "image": str(self.images / name)}
            if self.task == "vres":
                yield {**record, **row}
                continue
            asked = record.get(_LISTS[self.task])
            for place, one in enumerate(asked if isinstance(asked, list) else [{}]):
                yield {**(one if isinstance(one, dict) else {}), **row, "id": f"{name}/{number}.{place}"}

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        source = str(self.files[0])
        if self.task == "vres":
            turn, prompts, masks = self._referring(row)
            return Sample(row["image"], (turn,), masks, prompts, source, row["id"])
        if self.task == "choice":
            encoded = row["object"]
            turn = Turn(self._asked(row["question"]), row["answer"], "choice", choices=options(row["question"]))
        else:
            encoded = row["segmentation"]
            turn = Turn(self._asked(), row["caption"], "describe")
        return Sample(row["image"], (turn,), prompts=(Mask(_mask(encoded), 0),), source=source, id=row["id"])

    def _asked(self, question: str = "") -> str:
        return self.words.replace("{region}", prompt_token(0)).replace("{question}", question)

    def _referring(self, row: Row) -> tuple[Turn, tuple[Mask, ...], tuple[Segmentation, ...]]:
        """Returns the question with its prompts, and the targets of its answer."""
        encoded = row["segmentations"]
        tags = list(encoded)
        asked, wanted = named(row["question"], tags), named(row["answer"], tags)
        if not wanted:
            raise SailError(f"the answer names none of the masks {', '.join(tags)}, so there is nothing to segment")
        ids = {tag: tags.index(tag) for tag in asked}
        for tag, id in ids.items():
            if id >= self.num_prompts:
                raise SailError(
                    f"{tag} of the question is mask number {id} of the record, but prompts are numbered 0 to "
                    f"{self.num_prompts - 1}; name fewer masks, or raise num_prompts"
                )
        question = _replaced(row["question"], {tag: prompt_token(id) for tag, id in ids.items()})
        names = {tag: prompt_token(ids[tag]) if tag in ids else tag for tag in wanted}
        answer = _replaced(row["answer"], names, first=SEG)
        turn = Turn(question, answer, "vres", tuple(range(len(wanted))))
        prompts = tuple(Mask(_mask(encoded[tag]), id) for tag, id in ids.items())
        return turn, prompts, tuple(_mask(encoded[tag]) for tag in wanted)


def named(text: str, tags: list[str]) -> list[str]:
    """Returns the tags in a text in order of first appearance; whole words only, so `obj1` is not in `obj10`."""
    found = _pattern(tags).finditer(text) if tags else ()
    return list(dict.fromkeys(match[1] or match[2] for match in found))


def _replaced(text: str, names: dict[str, str], first: str | None = None) -> str:
    """Returns a text with its tags replaced by names; `first` replaces the first appearance of each tag."""
    seen: set[str] = set()

    def name(match: re.Match[str]) -> str:
        tag = match[1] or match[2]
        if first is None or tag in seen:
            return names[tag]
        seen.add(tag)
        return first

    return _pattern(list(names)).sub(name, text) if names else text


def _pattern(tags: list[str]) -> re.Pattern[str]:
    """Returns a pattern that finds tags, bare or in angle brackets, and prefers the longest."""
    either = "|".join(re.escape(tag) for tag in sorted(tags, key=len, reverse=True))
    return re.compile(rf"<({either})>|(?<!\w)({either})(?!\w)")


def options(question: str) -> tuple[str, ...]:
    """Returns the options of a question, as in `A. red B. blue`, `(A) red` or `A: red`; none if fewer than two."""
    found = list(_OPTION.finditer(question))
    start = next((at for at, match in enumerate(found) if match[1] == "A"), len(found))
    listed: list[re.Match[str]] = []
    for match in found[start:]:
        if ascii_uppercase[len(listed) :].startswith(match[1]):
            listed.append(match)
    ends = [match.start() for match in listed[1:]] + [len(question)]
    texts = tuple(question[match.end() : end].strip(" \t\n,;") for match, end in zip(listed, ends, strict=False))
    return texts if len(texts) > 1 and all(texts) else ()


def _mask(encoded: Any) -> Segmentation:
    return Segmentation((encoded,), rle_size(encoded))
