"""The words around a turn: one place, used by training, evaluation and inference alike, byte for byte.

Two layouts (`golden/README.md` sections 4 and 5 of the reference): SOLO's, of the paper's models, and Qwen's, of EVE.
Neither has a system prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TURN_START, TURN_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SEG, PHRASE_START, PHRASE_END = "[SEG]", "<p>", "</p>"


@dataclass(frozen=True)
class Chat:
    """The words around questions and answers.

    A question stands between `question_start` and `question_end`; an answer is followed by the token `answer_end`.
    Pictures come before the first question, or, with `picture_inside`, at its start, a line break after each.
    """

    question_end: str
    answer_end: str
    picture_inside: bool = False
    question_start: str = f"{TURN_START}user\n"

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens that lay out a conversation; a text may not contain them."""
        return (TURN_START, *self.stops)

    @property
    def stops(self) -> tuple[str, ...]:
        """Tokens that end an answer, whichever the model says."""
        return (TURN_END, END)

    def question(self, text: str, after_picture: bool = False) -> str:
        """A question as it stands in the sequence; `after_picture`: what follows pictures inside it."""
        start = "\n" if after_picture else self.question_start
        return f"{start}{without_picture_mark(text)}{self.question_end}"

    def answer(self, text: str) -> str:
        """An answer as it stands in the sequence, its end included."""
        return f"{text.strip()}{self.answer_end}"


SOLO_CHAT = Chat(f"{TURN_END}\n", END)
"""No assistant header, answers end with `<|endoftext|>`."""
QWEN_CHAT = Chat(f"{TURN_END}\n{TURN_START}assistant\n", TURN_END, picture_inside=True)
"""Qwen's, without a system prompt and with nothing between turns; the picture stands inside the first question."""

_PICTURE_MARK = re.compile("<image>\n|\n<image>|<image>")
_MASK_OF_PHRASE = re.compile(
    "(?:{0}((?:(?!{0}|{1}|{2}).)*){1}\\s*)?{2}".format(*map(re.escape, (PHRASE_START, PHRASE_END, SEG))), re.DOTALL
)


def prompt_token(id: int) -> str:
    """The word that names visual prompt `id` in a text."""
    return f"<Prompt{id}>"


def without_picture_mark(text: str) -> str:
    """A question without the literal `<image>` that some data sets put in it, and without space around it."""
    return _PICTURE_MARK.sub("", text).strip()


def phrases_of(text: str) -> tuple[str, ...]:
    """The phrase of each `[SEG]` of a text, `<p> phrase </p> [SEG]`, on one line; an empty string if there is none."""
    return tuple(" ".join((match[1] or "").split()) for match in _MASK_OF_PHRASE.finditer(text))
