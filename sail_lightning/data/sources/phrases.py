"""What sources of your own masks share: phrases that mean masks of a picture, asked about, and a share held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.data.sources.refcoco import BENCHMARK_QUESTION
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailUsageError
from sail_lightning.sample import Turn
from sail_lightning.settings.ranges import PositiveInt, UnitInterval, refuse_empty

Part = Literal["all", "train", "val"]
T = TypeVar("T")


def clean(phrase: str) -> str:
    """A phrase as it stands in a question: on one line, no full stop."""
    return " ".join(phrase.split()).removesuffix(".").strip()


def objects_of(phrases: Iterable[tuple[str, T]]) -> list[tuple[list[str], list[T]]]:
    """What can be asked about, from pairs of a phrase and one mask that it means.

    Masks with a phrase in common are one object under that phrase, their union; phrases that mean the same masks are
    alternatives. The order is that of the first phrases.
    """
    masks: dict[str, list[T]] = {}
    for phrase, mask in phrases:
        own = masks.setdefault(phrase, [])
        if mask not in own:
            own.append(mask)
    objects: list[tuple[list[str], list[T]]] = []
    for phrase, meant in masks.items():
        known = next((names for names, other in objects if other == meant), None)
        if known is None:
            objects.append(([phrase], meant))
        else:
            known.append(phrase)
    return objects


def separated(row: Row) -> Iterator[Row]:
    """One row for each phrase of each object; those of one picture follow each other."""
    number = 0
    for item in row["objects"]:
        for phrase in item["phrases"]:
            yield {**row, "id": f"{row['id']}/{number}", "objects": [{**item, "phrases": [phrase]}]}
            number += 1


class Wording:
    """How phrases are asked about.

    Args:
        questions: with `{}` for the phrase; None is those of the training recipe, for `separate` the benchmarks'.
        answers: with one `[SEG]`; None is those of the training recipe.
        objects: most per conversation.
        separate: one question per record.

    Raises:
        SailUsageError: a question without `{}`, or an answer without `[SEG]`.
    """

    def __init__(
        self, questions: Sequence[str] | None, answers: Sequence[str] | None, objects: int, separate: bool
    ) -> None:
        usual = (BENCHMARK_QUESTION,) if separate else prompt_templates.SEGMENT
        self.questions = tuple(questions or usual)
        self.answers = tuple(answers or prompt_templates.SEGMENT_ANSWERS)
        self.objects = objects
        if bad := [text for text in self.questions if text.count("{}") != 1]:
            raise SailUsageError(f"a question needs one {{}} where the phrase goes, which {bad[0]!r} lacks")
        if bad := [text for text in self.answers if text.count("[SEG]") != 1]:
            raise SailUsageError(f"an answer needs one [SEG] where the mask goes, which {bad[0]!r} lacks")

    def turns(self, objects: Sequence[Row], sampler: Sampler) -> tuple[tuple[Turn, ...], list[Row]]:
        """A conversation about some objects, each with its `phrases`, and the object of each turn."""
        chosen = sampler.sample(objects, self.objects)
        turns = []
        for place, item in enumerate(chosen):
            phrase = sampler.choice(item["phrases"])
            question = sampler.choice(self.questions).replace("{}", phrase)
            turns.append(Turn(question, sampler.choice(self.answers), "refer", (place,)))
        return tuple(turns), chosen


class PhraseSource(IndexedSource):
    """A source of your own masks, which phrases ask about.

    Args:
        files: the annotation files.
        part: which pictures: `all`, `val` for a share that is held out, `train` for the rest.
        val_share: that share; which pictures it holds is decided by their names.
        objects: most masks per conversation.
        separate: one question per record, every phrase once: for validation and tests.
        questions: to draw from, with {} for the phrase; null is those of the training recipe.
        answers: to draw from, with one [SEG]; null is those of the training recipe.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        part: Part = "all",
        val_share: UnitInterval = 0.1,
        objects: PositiveInt = 5,
        separate: bool = False,
        questions: list[str] | None = None,
        answers: list[str] | None = None,
    ) -> None:
        super().__init__(files)
        refuse_empty(self, questions=questions, answers=answers)
        self.wording = Wording(questions, answers, objects, separate)
        self.part, self.val_share, self.separate = part, val_share, separate


def kept(names: Iterable[T], part: Part, share: float, name: Callable[[T], str] = str) -> list[T]:
    """Those pictures that belong to a part, in their order. Which are held out depends on their names alone.

    Of two or more pictures at least one is held out, and one is not, if `share` lies between 0 and 1.
    """
    every = list(names)
    if part == "all":
        return every
    ranked = sorted(every, key=lambda one: hashlib.blake2b(name(one).encode(errors="surrogatepass")).digest())
    count = round(share * len(every))
    if 0 < share < 1:
        count = min(max(count, 1), len(every) - 1)
    held = {name(one) for one in ranked[: max(count, 0)]}
    return [one for one in every if (name(one) in held) == (part == "val")]
