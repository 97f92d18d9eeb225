"""When an answer ends: at a stop token, at its length limit, or when it repeats itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

REPETITION_MAX_PERIOD = 24
"""The longest block, in tokens, whose repetition is looked for."""
REPETITION_MIN_COUNT = 5
"""How many copies of a block in a row are a repetition."""
REPETITION_MIN_TOKENS = 20
"""How many tokens those copies have at least, so that "100000" and "......" are no repetition."""
REPETITION_MIN_MASKS = 20
"""How many copies of a block that holds a `[SEG]` are a repetition: a list of masks may well repeat its words."""


@dataclass(frozen=True)
class StopRules:
    """The rules that end an answer.

    Args:
        stop_ids: Tokens that end an answer. They are no part of it.
        seg: Id of the token `[SEG]`.
        max_new_tokens: Limit on the new tokens of an answer, 1 or more.
        stop_on_repetition: Whether an answer that repeats itself is truncated and ended.
    """

    stop_ids: Collection[int]
    seg: int
    max_new_tokens: int
    stop_on_repetition: bool = True

    def append(self, token: int, ids: list[int], new_tokens: int) -> str | None:
        """Appends the next token to the ids of an answer, in place, unless it ends the answer.

        Args:
            token: The token that was chosen.
            ids: The answer so far.
            new_tokens: How many tokens of the answer were generated so far.

        Returns:
            Why the answer has ended: `end`, `length` or `loop` (a repetition, which is then truncated). None where the
            token has to be read and another one follows.
        """
        if token in self.stop_ids:
            return "end"
        if new_tokens == self.max_new_tokens:
            return "length"
        ids.append(token)
        if self.stop_on_repetition and truncate_repetition(ids, self.seg):
            return "loop"
        # A [SEG] is read even if it is the last token allowed, because its mask is made of the state it gives.
        is_last = new_tokens + 1 == self.max_new_tokens
        return "length" if is_last and token != self.seg else None


def truncate_repetition(ids: list[int], seg: int) -> bool:
    """Returns whether the ids end in a repetition; if so, they are truncated, in place, to the first copy."""
    for period in range(1, min(REPETITION_MAX_PERIOD, len(ids) // REPETITION_MIN_COUNT) + 1):
        block = ids[-period:]
        count = max(REPETITION_MIN_COUNT, -(-REPETITION_MIN_TOKENS // period))
        if seg in block:
            count = REPETITION_MIN_MASKS
        if ids[-period * count :] == block * count:
            del ids[-period * (count - 1) :]
            return True
    return False
