"""Splits captions into words, close to the Penn Treebank tokenizer of the COCO caption evaluation.

Words are in lower case. Clitics are words of their own (`it 's`, `do n't`); hyphenated words, numbers (`1,000.5`,
`1/2`) and abbreviations (`u.s.`, `mr.`) stay whole; parentheses become `-lrb-` and `-rrb-`. The punctuation that the
COCO evaluation removes is removed: quotes and `. ? ! , : ; - -- ...`.
"""

from __future__ import annotations

import re

from sail_lightning.evaluate.metrics.text import strip_markup

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--"})
_TITLES = "mr|mrs|ms|dr|st|jr|sr|vs|etc|prof|inc|co|corp|ltd|no|sgt"
_ABBREVIATION = rf"(?:[a-z]\.){{2,}}|ph\.d\.|(?:{_TITLES}|[a-z])\.(?=\s+\w)|etc\.(?!\w)"
_CLITIC = r"(?:s|m|d|re|ve|ll)\b"
_WORD = re.compile(
    rf"""
    (?:{_ABBREVIATION})
    | https?://\S+
    | \d+(?:[.,/:]\d+)+                            # 1,000.5  3/4  10:30
    | \w+(?=n't\b) | n't\b                         # do n't
    | '{_CLITIC} | 'n' | 't(?=is\b|was\b) | y'(?=all\b) | '\d\ds?\b
    | can(?=not\b) | gon(?=na\b) | got(?=ta\b) | wan(?=na\b) | lem(?=me\b) | gim(?=me\b)
    | \w+(?:[-&/.@]\w+|(?<=[a-z])'(?!{_CLITIC})\w+(?<!n't))*
    | \.\.+ | -- | [!?]{{2,}} | \S
    """,
    re.VERBOSE,
)
_DROPPED = frozenset(("'", '"', "`", "``", "''", ".", "?", "!", ",", ":", "-", "--", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def words(text: str) -> list[str]:
    """Returns the words of a caption, without markup such as `<p>` and `[SEG]`."""
    plain = strip_markup(text).translate(_QUOTES).lower()
    found = (_BRACKETS.get(token, token) for token in _WORD.findall(plain))
    return [token for token in found if token not in _DROPPED and not re.fullmatch(r"\.\.+", token)]
