"""The words around a turn: one place, used by training, evaluation and inference alike, byte for byte.

The official layout (`golden/README.md` section 4): the picture, then per turn `<|im_start|>user\\n{text}<|im_end|>\\n`
and the answer followed by `<|endoftext|>`. There is no system prompt and no assistant header.
"""

from __future__ import annotations

import re

IMAGE_START, IMAGE_PATCH, IMAGE_END = "<vision>", "<vpatch>", "</vision>"
TURN_START, TURN_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SEG, PHRASE_START, PHRASE_END = "[SEG]", "<p>", "</p>"
LAYOUT_TOKENS = (END, TURN_START, TURN_END, IMAGE_START, IMAGE_PATCH, IMAGE_END)
"""Tokens that lay out a sequence; a text may not contain them."""

_MASK_OF_PHRASE = re.compile(
    "(?:{0}((?:(?!{0}|{1}|{2}).)*){1}\\s*)?{2}".format(*map(re.escape, (PHRASE_START, PHRASE_END, SEG))), re.DOTALL
)


def prompt_token(id: int) -> str:
    """The word that names visual prompt `id` in a text."""
    return f"<Prompt{id}>"


def user_turn(text: str) -> str:
    """A question as it stands in the sequence."""
    return f"{TURN_START}user\n{text.strip()}{TURN_END}\n"


def answer(text: str) -> str:
    """An answer as it stands in the sequence, its end included."""
    return f"{text.strip()}{END}"


def phrases_of(text: str) -> tuple[str, ...]:
    """The phrase of each `[SEG]` of a text, `<p> phrase </p> [SEG]`, on one line; an empty string if there is none."""
    return tuple(" ".join((match[1] or "").split()) for match in _MASK_OF_PHRASE.finditer(text))
