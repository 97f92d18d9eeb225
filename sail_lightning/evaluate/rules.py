"""By which rules answers are judged: settings of an evaluation, not of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate.metrics.text import token_f1

ProtocolName = Literal["standard", "official"]
"""`standard` by the definitions; `official` as the official code does, faults included."""
Combine = Literal["union", "first"]
"""What an answer with several masks predicts: their union, or only the first (the official RefCOCO script)."""
NoTargetFrom = Literal["mask", "text"]
"""What answers "no target": an empty mask (also no mask at all), or the text."""
Similarity = Callable[[str, str], float]
"""Of a predicted and a true phrase, to [0, 1]."""


@dataclass(frozen=True)
class Rules:
    """How answers are judged.

    Args:
        protocol: `standard`, or `official` as the official code does, faults included.
        no_target_from: what says "no target" where masks are judged, the `mask` or the `text`; the official protocol
            reads masks only.
        combine: several masks of an answer are their `union`, or only the `first` counts; None: what the protocol says
            (standard: union, official: first). Visual-text referring pairs masks in order instead.
        similarity: of phrases of grounded captions, to [0, 1]; each pair is asked for once.
        meteor: whether captions are also put to METEOR's own program, where it is installed; it takes seconds.

    Raises:
        SailUsageError: a setting that does not exist, or does not go with the protocol.
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
        """The similarity of phrases, each pair asked for once."""
        return lru_cache(maxsize=None)(self.similarity)

    def to_json(self) -> dict[str, Any]:
        """What a report says about them."""
        return {
            "protocol": self.protocol,
            "no_target_from": self.no_target_from,
            "combine": self.combine,
            "similarity": getattr(self.similarity, "__name__", type(self.similarity).__name__),
        }
