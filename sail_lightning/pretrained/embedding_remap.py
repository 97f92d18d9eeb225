"""Reorders the rows of vocabulary tables from one tokenizer's order to another's, by the names of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Backbone
from sail_lightning.sequence.tokenizer import SailTokenizer
from sail_lightning.settings.renames import renamed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowMap:
    """The row of another vocabulary table from which each row of a vocabulary table is taken.

    Args:
        source: Row of the other table, (V,) int64; -1 for a token that it does not know.
        rows: Number of rows of the other table.
    """

    source: Tensor
    rows: int

    def __call__(self, table: Tensor) -> Tensor:
        """Returns a table (rows, ...) in the other order as (V, ...); unknown tokens get the mean of its rows."""
        moved = table.index_select(0, self.source.clamp(min=0))
        moved[self.source < 0] = table.float().mean(0).to(table.dtype)
        return moved


def match_vocab(tokens: SailTokenizer, stored: Mapping[str, int], folder: Path) -> RowMap | None:
    """Maps the rows of a folder's vocabulary tables to the order of a tokenizer; None if the order is the same.

    Args:
        tokens: The tokenizer of the model.
        stored: The vocabulary of the folder's tokenizer, token to row.
        folder: The folder, for messages.

    Raises:
        SailError: The folder lacks a token that is not one of the model's special tokens.
    """
    own = tokens.tokenizer.get_vocab()
    if own == stored:
        return None
    lacking = sorted(own.keys() - stored.keys(), key=own.__getitem__)
    if words := [token for token in lacking if token not in tokens.ids]:
        more = f" and {len(words) - 1} other tokens" if len(words) > 1 else ""
        raise SailError(
            f"{folder} has no weights for {words[0]!r}{more} of tokenizer {tokens.source}; use the folder's tokenizer"
        )
    logger.info("%s orders its tokens differently from %s: rows are matched by name", folder, tokens.source)
    if lacking:
        logger.warning("%s lacks tokens, which start at the mean of its rows: %s", folder, " ".join(lacking))
    if dropped := sorted(stored.keys() - own.keys(), key=stored.__getitem__):
        more = f" and {len(dropped) - 20} more" if len(dropped) > 20 else ""
        logger.warning("tokenizer %s lacks tokens of %s: %s%s", tokens.source, folder, " ".join(dropped[:20]), more)
    source = torch.full((len(tokens),), -1)
    for token, row in own.items():
        source[row] = stored.get(token, -1)
    return RowMap(source, max(stored.values()) + 1)


class _Used(TorchFunctionMode):
    """Records the parameters that pass through torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[nn.Parameter] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = (*args, *(kwargs or {}).values())
        self.parameters += [value for value in values if isinstance(value, nn.Parameter)]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def vocab_parameters(backbone: Backbone, hidden_size: int, vocab_size: int) -> list[nn.Parameter]:
    """Returns the weights of a built backbone with one row per token: the embedding table and the language head.

    They are found by what they do, not by name or size alone: they embed a word and compute its logits. (Another matrix
    of the model may happen to have as many rows.)
    """
    like = next(backbone.parameters())
    with _Used() as used:
        backbone.embed_tokens(torch.zeros(1, dtype=torch.int64, device=like.device))
        backbone.logits(torch.zeros(1, hidden_size, dtype=like.dtype, device=like.device))
    return [parameter for parameter in used.parameters if parameter.shape[:1] == (vocab_size,)]


__getattr__ = renamed(__name__, {"match": "match_vocab", "tables": "vocab_parameters"})
