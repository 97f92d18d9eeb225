"""The laboratory's vocabulary and tokenizer: one token per word, made from the word lists of the grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sail_lightning.data.synthetic import grammar
from sail_lightning.data.synthetic.scenes import COLOURS, SHAPES, SIZES, TEXTURES

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<vision>",
    "<vpatch>",
    "</vision>",
    "[SEG]",
    "<p>",
    "</p>",
    *(f"<Prompt{number}>" for number in range(15)),
)
"""Tokens that are not words; the first also pads."""
UNKNOWN = "<unk>"
ROLES = ("system", "user", "assistant")
"""Words of the chat template."""
PUNCTUATION = (".", ",", "?", "!", ":")
USUAL = (
    "please can could you i we me it its is are was the a an this that these those there here what which who where "
    "how many much find show segment mark select point out describe tell name give all every each any some no not "
    "and or of in on at to from with without for as by near next between picture image photo scene mask masks object "
    "objects thing things shape shapes colour color size texture big tiny left right top bottom middle above below "
    "under over first second third last other same one two three four five target region orange black grey brown yes"
)
"""Ordinary words that users may type."""
TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")
"""File that `build_tokenizer` makes and that ships with the package."""


def grammar_words() -> Iterator[str]:
    """Yields every word and punctuation mark of the grammar, some more than once."""
    texts = [
        *SIZES,
        *TEXTURES,
        *COLOURS,
        *SHAPES,
        *grammar.PLURALS,
        *grammar.PLURALS.values(),
        *grammar.ONE,
        *grammar.MANY,
        *grammar.DESCRIBE,
        grammar.CHOICE,
        grammar.CAPTION,
        *grammar.REGION,
        grammar.ALIKE.format("colour", ""),
        grammar.ALL_ALIKE.format("shape", ""),
        grammar.BESIDE,
        grammar.NO_TARGET,
        grammar.IT_IS,
        grammar.THEY_ARE,
        *grammar.LETTERS,
        *grammar.RELATIONS,
        *grammar.EXTREMES,
        *grammar.SECONDS,
        grammar.SECOND,
        "the all every and other",
    ]
    for text in texts:
        plain = re.sub(r"\{\}|\[SEG\]", " ", text)
        yield from re.findall(r"\w+|[^\w\s]", plain)


def vocabulary() -> list[str]:
    """Returns all tokens in the order of their ids."""
    words = [*PUNCTUATION, *ROLES, *grammar_words(), *USUAL.split()]
    return list(dict.fromkeys([*SPECIAL, UNKNOWN, *words]))


def build_tokenizer() -> Tokenizer:
    """Returns a word-level tokenizer: lower case, punctuation as tokens; decoding joins it to the word before."""
    tokens = vocabulary()
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


if __name__ == "__main__":
    build_tokenizer().save(str(TOKENIZER_FILE), pretty=True)
