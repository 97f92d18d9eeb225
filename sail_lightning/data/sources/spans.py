"""Finds phrases in a caption, and marks each of them with a mask: `<p> phrase </p> [SEG]`.

The official code writes the marks into the caption from the last span to the first. Nested spans then split words or
swap masks (E11), and phrases that are not found are marked before the last letter (E10). Here spans are sorted,
overlapping ones are left out together with their masks, and the caption is written in one pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sail_lightning.sequence.chat_template import PHRASE_END, PHRASE_START, SEG
from sail_lightning.settings.renames import renamed

Span = tuple[int, int]


@dataclass(frozen=True)
class Grounding:
    """A phrase, its half-open range of characters in the caption (None if missing), and the parts of its mask."""

    phrase: str
    span: Span | None
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Grounded:
    """A caption and the groundings in it, with their `spans` (first, last) in order and without overlap.

    `faults` has one sentence for each grounding that was left out, with the fix.
    """

    caption: str
    groundings: tuple[Grounding, ...]
    spans: tuple[Span, ...]
    faults: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Caption with one `[SEG]` per grounding, in order."""
        written, end = [], 0
        for first, last in self.spans:
            written += [self.caption[end:first], f"{PHRASE_START} {self.caption[first:last]} {PHRASE_END} {SEG}"]
            end = last
        return "".join([*written, self.caption[end:]])


def grounded(caption: str, groundings: Iterable[Grounding]) -> Grounded:
    """Sorts the groundings of a caption and keeps those that do not overlap.

    The first of overlapping spans is kept, and the longest of those with the same start. Space at the ends of a span
    does not belong to it.
    """
    faults: list[str] = []
    placed: list[tuple[Span, Grounding]] = []
    for grounding in groundings:
        if grounding.span is None:
            faults.append(f"phrase {grounding.phrase!r} is not in the caption, so its mask is left out; fix either")
        elif (span := trimmed(caption, grounding.span)) is None:
            first, last = grounding.span
            faults.append(f"span [{first}, {last}) lies outside the caption, so its mask is left out; fix the span")
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
    """Returns a span without space at its ends; None if it is outside the caption or empty."""
    first, last = span
    if not 0 <= first < last <= len(caption):
        return None
    words = caption[first:last]
    first += len(words) - len(words.lstrip())
    last -= len(words) - len(words.rstrip())
    return (first, last) if first < last else None


def found(caption: str, phrases: Sequence[str]) -> list[Span | None]:
    """Returns the spans of phrases in a caption, as whole words and ignoring case; None for a phrase that is missing.

    Longer phrases are placed first, each at its first free occurrence. A phrase without a free occurrence gets its
    first one and overlaps there.
    """
    spans: list[Span | None] = [None] * len(phrases)
    taken: list[Span] = []
    for place in sorted(range(len(phrases)), key=lambda place: -len(phrases[place])):
        matches = occurrences(caption, phrases[place])
        free = [span for span in matches if all(span[1] <= a or b <= span[0] for a, b in taken)]
        if free:
            taken.append(free[0])
        spans[place] = next(iter(free or matches), None)
    return spans


def occurrences(caption: str, phrase: str) -> list[Span]:
    """Returns all spans of a phrase in a caption, as whole words, ignoring case and the amount of space."""
    words = [re.escape(word) for word in phrase.split()]
    if not words:
        return []
    pattern = r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, caption, re.IGNORECASE)]


__getattr__ = renamed(__name__, {"places": "occurrences"})
