"""Chat templates: the text around questions and answers, the same for training, evaluation and inference.

There are two (`golden/README.md`, sections 4 and 5 of the reference): that of SOLO, which the paper's models use, and
that of Qwen, which EVE uses. Neither has a system prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sail_lightning.settings.ranges import before_init
from sail_lightning.settings.renames import renamed

TURN_START, TURN_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SEG, PHRASE_START, PHRASE_END = "[SEG]", "<p>", "</p>"


@dataclass(frozen=True)
class ChatTemplate:
    """The text around questions and answers.

    Attributes:
        question_end: Text after a question.
        answer_end: Token after an answer.
        image_inside: Whether images stand at the start of the first question, with a line break after each, and not
            before it.
        question_start: Text before a question.
    """

    question_end: str
    answer_end: str
    image_inside: bool = False
    question_start: str = f"{TURN_START}user\n"

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of the template, which no question or answer may contain."""
        return (TURN_START, *self.stops)

    @property
    def stops(self) -> tuple[str, ...]:
        """Tokens that end an answer; generation stops at any of them."""
        return (TURN_END, END)

    def question(self, text: str, after_image: bool = False) -> str:
        """A question with the template's text; with `after_image` only the part that follows images inside it."""
        start = "\n" if after_image else self.question_start
        return f"{start}{without_image_marker(text)}{self.question_end}"

    def answer(self, text: str) -> str:
        """An answer with the template's text."""
        return f"{text.strip()}{self.answer_end}"


before_init(ChatTemplate, lambda self, init, bound: None)  # takes the argument picture_inside of version 0.1.0
SOLO_CHAT = ChatTemplate(f"{TURN_END}\n", END)
"""The template of SOLO: no assistant header, and answers end with `<|endoftext|>`."""
QWEN_CHAT = ChatTemplate(f"{TURN_END}\n{TURN_START}assistant\n", TURN_END, image_inside=True)
"""The template of Qwen without a system prompt and without text between turns; images stand in the first question."""

_IMAGE_MARKER = re.compile("<image>\n|\n<image>|<image>")
_MASK_OF_PHRASE = re.compile(
    "(?:{0}((?:(?!{0}|{1}|{2}).)*){1}\\s*)?{2}".format(*map(re.escape, (PHRASE_START, PHRASE_END, SEG))), re.DOTALL
)


def prompt_token(id: int) -> str:
    """The token that names the visual prompt `id` in a text."""
    return f"<Prompt{id}>"


def without_image_marker(text: str) -> str:
    """A question without the marker `<image>` that some data sets put in it, and without surrounding white space."""
    return _IMAGE_MARKER.sub("", text).strip()


def phrases_of(text: str) -> tuple[str, ...]:
    """The phrase of each `[SEG]` of a text, `<p> phrase </p> [SEG]`, on one line; empty for a `[SEG]` without one."""
    return tuple(" ".join((match[1] or "").split()) for match in _MASK_OF_PHRASE.finditer(text))


__getattr__ = renamed(__name__, {"without_picture_mark": "without_image_marker", "Chat": "ChatTemplate"})
