"""Functions of an answer's text: plain text, token F1, the option that it chooses, yes or no."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase

from sail_lightning.errors import SailError
from sail_lightning.settings.renames import renamed

_MARKUP = re.compile(r"<[|/]?[A-Za-z_]\w*\|?>|\[SEG\]")
_SAYS = r"(?:\b(?:answer|option|choice)(?:\s+is\b\s*[:\-]?|\s*[:\-])|\bchoose\b)\s*"
_LETTER = r"(?:option\s+)?\(?([A-Za-z])\b\)?(\s*[.):,;]|\s*$)?"
_DECLARED = re.compile(_SAYS + _LETTER, re.IGNORECASE)
_AFTER_DECLARATION = re.compile(rf"^.*{_SAYS}", re.IGNORECASE | re.DOTALL)
_MENTIONED = re.compile(r"\b(?:answer|option|choice)\s+\(?([A-Za-z])\b\)?(\s*[.):,;]|\s*$)?", re.IGNORECASE)
_LEADING = re.compile(r"\(?([A-Za-z])(?:\s*[.):,;]|\s+-\s|\s*$)")
_CAPITAL = re.compile(r"[B-HJ-Z]\s")
_BRACKETED = re.compile(r"\(\s*([A-Za-z])\s*\)")
_SQUARE = re.compile(r"\[\s*([A-Za-z])\s*\]")
_NO_TARGET = re.compile(r"\bno[\W_]+targets?\b", re.IGNORECASE)


def strip_markup(text: str) -> str:
    """Returns an answer without `[SEG]` and tags such as `<p>`, `<|endoftext|>`, `<Prompt0>`, with single spaces."""
    return " ".join(_MARKUP.sub(" ", text).split())


def normalise(text: str) -> str:
    """Normalises a text as SQuAD does, but keeps articles: lower case, no markup, no punctuation, single spaces.

    Articles stay because "a" may be the whole answer. `$ + < = > ^ | ~ `` ` count as punctuation, as in SQuAD.
    """
    kept = (
        char for char in strip_markup(text).lower() if char not in "$+<=>^|~`" and unicodedata.category(char)[0] != "P"
    )
    return " ".join("".join(kept).split())


def says_no_target(text: str) -> bool:
    """Whether an answer's text contains "no target" in whole words, with any punctuation between them."""
    return _NO_TARGET.search(strip_markup(text)) is not None


def token_f1(prediction: str, reference: str) -> float:
    """Returns the harmonic mean of token precision and recall after `normalise`, in [0, 1].

    Tokens count as often as they occur. Two empty texts score 1, an empty and a non-empty one 0.
    """
    left, right = Counter(normalise(prediction).split()), Counter(normalise(reference).split())
    size = left.total() + right.total()
    return 2 * (left & right).total() / size if size else 1.0


def parse_choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """Returns the option that an answer chooses, as a capital letter, or None where it chooses none or several.

    The first of these rules that finds an option decides; letters beyond the number of `choices` are not options, `*`
    is skipped, and `[B]` is read as `(B)`:

    1. a letter after "answer is", "answer:", the same of "option" and "choice", or "choose" ("The answer is B.",
       "the answer is: (c)", "Answer: B", "I choose B"); the last, if that is said several times; not the A that begins
       the text of one of the `choices`;
    2. a letter at the start, before `.` `)` `:` `,` `;` ` - ` or the end ("B. A red car", "(b) red", "c");
    3. a letter in parentheses or after "option", "choice" or "answer", if all such are the same ("It is the red one
       (B)", "Option B");
    4. the answer, or what follows a declaration of the first rule, is the text of exactly one of the `choices` after
       `normalise`; a choice may carry its own letter ("B. red");
    5. a capital at the start before a space ("B because ..."), except `A` and `I`, which may be words ("A red car").
    """
    answer = _SQUARE.sub(r"(\1)", strip_markup(text.replace("*", "")))
    letters = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    wanted = {normalise(answer), *filter(None, [normalise(_AFTER_DECLARATION.sub("", answer))])}
    named = [
        letter
        for letter, choice in zip(letters, choices, strict=False)
        if normalise(re.sub(rf"^\s*\(?{letter}[.):]\s*", "", choice)) in wanted
    ]
    # A small letter followed by a word is an article ("the answer is a red car"), not an option; so is a capital A
    # ("Answer: A red car") where that is an option's text.
    articles = "A" if len(named) == 1 else ""
    found = _DECLARED.finditer(answer)
    sure = [m[1].upper() for m in found if m[2] is not None or (m[1].isupper() and m[1] not in articles)]
    declared = [letter for letter in sure if letter in letters]
    if declared:
        return declared[-1]
    if (leading := _LEADING.match(answer)) and leading[1].upper() in letters:
        return leading[1].upper()
    # "any option I see" does not name option I.
    shown = {m[1].upper() for m in _MENTIONED.finditer(answer) if m[2] is not None or m[1] in ascii_uppercase[:8]}
    shown = (shown | {letter.upper() for letter in _BRACKETED.findall(answer)}) & set(letters)
    if len(shown) == 1:
        return shown.pop()
    if named:
        return named[0] if len(named) == 1 else None
    return answer[0] if _CAPITAL.match(answer) and answer[0] in letters else None


def chooses_right(prediction: str, reference: str, choices: Sequence[str] = ()) -> bool:
    """Whether an answer chooses the right option; `reference` names it in any form that `parse_choice` reads.

    Raises:
        SailError: The reference names no option, or a choice list is longer than the alphabet.
    """
    if len(choices) > len(ascii_uppercase):
        raise SailError(f"a multiple-choice question has {len(choices)} options; letters name at most 26")
    right = parse_choice(reference, choices)
    if right is None:
        options = f" among {list(choices)}" if choices else ""
        raise SailError(f"the reference answer {reference!r} names no option{options}; begin it with its letter")
    return parse_choice(prediction, choices) == right


def parse_yes_no(text: str) -> bool | None:
    """Whether an answer says yes, by its first word that is `yes` or `no`; None where neither occurs."""
    return next((word == "yes" for word in normalise(text).split() if word in ("yes", "no")), None)


def parse_yes_no_pope(text: str) -> bool:
    """Whether an answer says yes by POPE's own rule: no word of its first sentence is `No`, `not` or `no`."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


__getattr__ = renamed(
    __name__,
    {
        "ExactMatch": "sail_lightning.evaluate.metrics.captions:ExactMatch",
        "MultipleChoiceAccuracy": "sail_lightning.evaluate.metrics.choices:MultipleChoiceAccuracy",
        "TokenF1": "sail_lightning.evaluate.metrics.captions:TokenF1",
    },
)
