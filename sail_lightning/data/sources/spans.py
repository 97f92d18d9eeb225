"""Phrases in a caption, and the caption that names a mask after each of them: `<p> phrase </p> [SEG]`.

The official code wrote the marks into the caption from the last span to the first. Spans that lie in each other tore
words apart or swapped masks (E11), and phrases that it did not find were marked before the last letter (E10). Here
spans are sorted, those in the way are left out together with their masks, and the caption is written in one pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sail_lightning.sequence.chat_template import PHRASE_END, PHRASE_START, SEG

Span = tuple[int, int]


@dataclass(frozen=True)
class Grounding:
    """A phrase, the half-open range of characters where it stands, and what its mask is made of."""

    phrase: str
    span: Span | None
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Grounded:
    """A caption and the groundings that stand in it: `spans` (first, last) in order, none over another.

    `faults` tell of the groundings that were left out, one sentence each, with the mend.
    """

    caption: str
    groundings: tuple[Grounding, ...]
    spans: tuple[Span, ...]
    faults: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The caption with one `[SEG]` per grounding, in order."""
        written, end = [], 0
        for first, last in self.spans:
            written += [self.caption[end:first], f"{PHRASE_START} {self.caption[first:last]} {PHRASE_END} {SEG}"]
            end = last
        return "".join([*written, self.caption[end:]])


def grounded(caption: str, groundings: Iterable[Grounding]) -> Grounded:
    """Sorts the groundings of a caption and keeps those that can stand in it.

    Of spans that overlap, the first is kept, and of those that begin alike, the longest, so the outer one of two. Space
    at the ends of a span does not belong to it.
    """
    faults: list[str] = []
    placed: list[tuple[Span, Grounding]] = []
    for grounding in groundings:
        if grounding.span is None:
            faults.append(f"phrase {grounding.phrase!r} is not in the caption, so its mask is left out; mend either")
        elif (span := trimmed(caption, grounding.span)) is None:
            first, last = grounding.span
            faults.append(f"span [{first}, {last}) lies outside the caption, so its mask is left out; mend the span")
        else:
            placed.append((span, grounding))
    kept: list[tuple[Span, Grounding]] = []
    for span, grounding in sorted(placed, key=lambda one: (one[0][0], -one[0][1])):
        if kept and span[0] < kept[-1][0][1]:
            phrases = f"phrase {grounding.phrase!r} overlaps {kept[-1][1].phrase!r}"
            faults.append(f"{phrases}, so its mask is left out; give it words of its own")
        else:
            kept.append((span, grounding))
    return Grounded(caption, tuple(one for _, one in kept), tuple(span for span, _ in kept), tuple(faults))


def trimmed(caption: str, span: Span) -> Span | None:
    """A span without the space at its ends; None if it reaches out of the caption, or nothing is left of it."""
    first, last = span
    if not 0 <= first < last <= len(caption):
        return None
    words = caption[first:last]
    first += len(words) - len(words.lstrip())
    last -= len(words) - len(words.rstrip())
    return (first, last) if first < last else None


def found(caption: str, phrases: Sequence[str]) -> list[Span | None]:
    """Where phrases stand in a caption, each as whole words and whatever their case; None for one that does not.

    Longer phrases choose first, and each takes the first place that is free; if none is, it gets its first place, to
    overlap there.
    """
    spans: list[Span | None] = [None] * len(phrases)
    taken: list[Span] = []
    for place in sorted(range(len(phrases)), key=lambda place: -len(phrases[place])):
        matches = places(caption, phrases[place])
        free = [span for span in matches if all(span[1] <= a or b <= span[0] for a, b in taken)]
        if free:
            taken.append(free[0])
        spans[place] = next(iter(free or matches), None)
    return spans


def places(caption: str, phrase: str) -> list[Span]:
    """All places of a phrase in a caption as whole words, whatever the case and the space between the words."""
    words = [re.escape(word) for word in phrase.split()]
    if not words:
        return []
    pattern = r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, caption, re.IGNORECASE)]
