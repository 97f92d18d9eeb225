"""The rules by which answers are judged; they are settings of an evaluation, not of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate.metrics.text import token_f1

ProtocolName = Literal["standard", "official"]
"""Protocol of an evaluation: `standard` follows the definitions, `official` the official code, faults included."""
Combine = Literal["union", "first"]
"""How several masks of an answer are judged: by their `union`, or only the `first` (the official RefCOCO script)."""
NoTargetFrom = Literal["mask", "text"]
"""How "no target" is read from an answer: from an empty `mask` (or no mask at all), or from its `text`."""
Similarity = Callable[[str, str], float]
"""A function of a predicted and a true phrase that returns their similarity in [0, 1]."""


@dataclass(frozen=True)
class Rules:
    """The rules by which answers are judged.

    Args:
        protocol: `standard` follows the definitions, `official` the official code, faults included.
        no_target_from: Whether "no target" is read from the `mask` or from the `text` where masks are judged; the
            official protocol reads masks only.
        combine: Whether the `union` of an answer's masks counts, or only the `first`; None leaves it to the protocol
            (standard: union, official: first). Visual-text referring pairs masks in order instead.
        similarity: Returns the similarity of two phrases of grounded captions, in [0, 1]; called once for each pair.
        meteor: Whether captions are also judged by METEOR's own program, where it is installed; it takes seconds.

    Raises:
        SailUsageError: A setting does not exist, or contradicts the protocol.
    """

    protocol: ProtocolName = "standard"
    no_target_from: NoTargetFrom = "mask"
    combine: Combine | None = None
    similarity: Similarity = field(default=token_f1)
    meteor: bool = True

    def __post_init__(self) -> None:
        for name, known in (
            ("protocol", get_args(ProtocolName)),
            ("no_target_from", get_args(NoTargetFrom)),
            ("combine", (None, *get_args(Combine))),
        ):
            if (value := getattr(self, name)) not in known:
                names = " or ".join(str(one) for one in known if one)
                raise SailUsageError(f"{name} must be {names}, not {value!r}")
        if self.official and (self.no_target_from == "text" or self.combine == "union"):
            setting = "no_target_from=text" if self.no_target_from == "text" else "combine=union"
            raise SailUsageError(
                f"the official protocol does not go with {setting}; leave it out, or use the standard one"
            )
        object.__setattr__(self, "combine", self.combine or ("first" if self.official else "union"))

    @property
    def official(self) -> bool:
        """Whether the official code's rules apply."""
        return self.protocol == "official"

    def cached_similarity(self) -> Similarity:
        """Returns the similarity of phrases with a cache, so that each pair is computed once."""
        return lru_cache(maxsize=None)(self.similarity)

    def to_json(self) -> dict[str, Any]:
        """Returns the rules as a report states them, as values that JSON holds."""
        return {
            "protocol": self.protocol,
            "no_target_from": self.no_target_from,
            "combine": self.combine,
            "similarity": getattr(self.similarity, "__name__", type(self.similarity).__name__),
        }
