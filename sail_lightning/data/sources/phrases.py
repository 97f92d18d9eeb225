"""Base of sources of your own masks: questions about phrases that refer to masks, and a held-out share of images."""

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
    """Returns a phrase as it is used in a question: on one line, without a full stop."""
    return " ".join(phrase.split()).removesuffix(".").strip()


def objects_of(phrases: Iterable[tuple[str, T]]) -> list[tuple[list[str], list[T]]]:
    """Returns objects to ask about, each with its phrases and masks, in the order of their first phrases.

    Masks that share a phrase are one object under that phrase, their union; phrases that refer to the same masks are
    alternatives.

    Args:
        phrases: Pairs of a phrase and one mask that it refers to.
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
    """Yields one row for each phrase of each object; rows of one image follow each other."""
    number = 0
    for item in row["objects"]:
        for phrase in item["phrases"]:
            yield {**row, "id": f"{row['id']}/{number}", "objects": [{**item, "phrases": [phrase]}]}
            number += 1


class Wording:
    """Makes conversations about phrases.

    Args:
        questions: Question templates with `{}` for the phrase; None uses those of the training recipe, or with
            `separate` that of the benchmarks.
        answers: Answer templates with one `[SEG]`; None uses those of the training recipe.
        objects: Largest number of objects per conversation.
        separate: Whether each record is one question.

    Raises:
        SailUsageError: A question has no `{}`, or an answer has no `[SEG]`.
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
        """Returns a conversation about some of the objects, which have `phrases`, and the object of each turn."""
        chosen = sampler.sample(objects, self.objects)
        turns = []
        for place, item in enumerate(chosen):
            phrase = sampler.choice(item["phrases"])
            question = sampler.choice(self.questions).replace("{}", phrase)
            turns.append(Turn(question, sampler.choice(self.answers), "refer", (place,)))
        return tuple(turns), chosen


class PhraseSource(IndexedSource):
    """Base of sources of your own masks that are asked about by phrases.

    Args:
        files: The annotation files.
        part: Part of the images: `all`, `val` for the held-out share, `train` for the rest.
        val_share: Held-out share of the images, 0 to 1; their names decide which images are held out.
        objects: Largest number of masks per conversation.
        separate: Whether each record is one question about one phrase, for validation and tests.
        questions: Question templates with {} for the phrase; null uses those of the training recipe.
        answers: Answer templates with one [SEG]; null uses those of the training recipe.
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
    """Returns the images that belong to a part, in their order. Only their names decide which ones are held out.

    If `share` lies between 0 and 1, at least one of two or more images is held out, and at least one is not.

    Args:
        names: Images, by anything that `name` turns into a name.
        part: Part of the images that is wanted.
        share: Held-out share, 0 to 1.
        name: Returns the name of an image.
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
