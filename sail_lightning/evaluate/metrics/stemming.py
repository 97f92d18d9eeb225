"""Porter's stemmer (M. F. Porter, An algorithm for suffix stripping, Program 14(3), 1980), as published."""

from __future__ import annotations

import re
from functools import lru_cache


def _table(text: str) -> dict[str, str]:
    """Parses text such as `ational:ate ness:` into a mapping of endings to their replacements."""
    return {ending: new for ending, _, new in (pair.partition(":") for pair in text.split())}


_STEP_2 = _table(
    "ational:ate tional:tion enci:ence anci:ance izer:ize abli:able alli:al entli:ent eli:e ousli:ous ization:ize "
    "ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble"
)
_STEP_3 = _table("icate:ic ative: alize:al iciti:ic ical:ic ful: ness:")
_STEP_4 = _table("al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize")


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Returns the stem of a lower-case word; a word of one or two letters, or with other characters than a-z, is
    returned unchanged."""
    if len(word) < 3 or not re.fullmatch("[a-z]+", word):
        return word
    word = _step_1(word)
    word = _replaced(word, _STEP_2, 1)
    word = _replaced(word, _STEP_3, 1)
    word = _replaced(word, _STEP_4, 2)
    return _step_5(word)


def _shape(part: str) -> str:
    """Returns `c` for each consonant and `v` for each vowel; a `y` after a consonant is a vowel."""
    shape = ""
    for letter in part:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(part: str) -> int:
    """Returns how often consonants follow vowels: the m of [C](VC)^m[V]."""
    return len(re.findall("v+c+", _shape(part)))


def _short_end(part: str) -> bool:
    """Whether a word ends in consonant, vowel, consonant, where the last is not w, x or y."""
    return _shape(part).endswith("cvc") and part[-1] not in "wxy"


def _step_1(word: str) -> str:
    """Removes plurals, -ed and -ing, and turns a final y into i."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    elif (ending := re.search("(?:ed|ing)$", word)) and "v" in _shape(word[: ending.start()]):
        word = word[: ending.start()]
        if word.endswith(("at", "bl", "iz")):
            word += "e"
        elif _shape(word).endswith("cc") and word[-1] == word[-2] and word[-1] not in "lsz":
            word = word[:-1]
        elif _measure(word) == 1 and _short_end(word):
            word += "e"
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    return word


def _replaced(word: str, endings: dict[str, str], measure: int) -> str:
    """Replaces the longest matching ending, if the part before it has at least this measure."""
    ending = max((suffix for suffix in endings if word.endswith(suffix)), key=len, default=None)
    if ending is None:
        return word
    rest = word[: -len(ending)]
    if _measure(rest) < measure or (ending == "ion" and not rest.endswith(("s", "t"))):
        return word
    return rest + endings[ending]


def _step_5(word: str) -> str:
    """Removes a final e, and one l of a final double l."""
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short_end(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word
