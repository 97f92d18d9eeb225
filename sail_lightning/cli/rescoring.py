"""Scores stored answers again without a model; `test --from` and `compare` share this code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_lightning.cli.folders import output_folder
from sail_lightning.errors import SailError
from sail_lightning.settings.renames import renamed

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt

    from sail_lightning.evaluate import EvalRecord

OPTION = "--from"


@dataclass(frozen=True)
class ScoringOptions:
    """The options of scoring, which are the same for every command that scores answers.

    Args:
        protocol: The definitions of the metrics: the field's (standard), or the official code's. Default: standard;
            compare takes that of the tests.
        no_target: What means "no target" in an answer: an empty mask, or the text. Default: mask; compare takes that
            of the tests.
        combine: How several masks of an answer count (standard: their union; official: the first).
        bootstrap: Number of resamples for the intervals.
        metrics: Your own metrics, NAME=CLASS, such as biou=BoundaryIoU; --plugins names their file. Default: none;
            compare takes those of the tests.
    """

    protocol: Literal["standard", "official"] | None = None
    no_target: Literal["mask", "text"] | None = None
    combine: Literal["union", "first"] | None = None
    bootstrap: NonNegativeInt = 1000
    metrics: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """Returns the options as arguments of `evaluate.score` and `evaluate.compare`."""
        return {
            "protocol": self.protocol or "standard",
            "no_target_from": self.no_target or "mask",
            "combine": self.combine,
            "bootstrap": self.bootstrap,
        }

    def own_metrics(self) -> dict[str, Any]:
        """Returns the user's own metrics by name.

        Raises:
            SailUsageError: A metric cannot be made.
        """
        if not self.metrics:
            return {}
        from sail_lightning import registry
        from sail_lightning.evaluate import own

        registry.discover()
        return own.from_options(self.metrics)


def is_rescoring(words: Sequence[str]) -> bool:
    """Whether the words that follow `test` ask for stored answers to be scored again."""
    return any(word == OPTION or word.startswith(f"{OPTION}=") for word in words)


def option_names() -> list[str]:
    """Returns the options of `test --from` beside its files and `--out`, as they are typed, from the signatures."""
    own = [name for name, one in inspect.signature(rescore).parameters.items() if one.kind is one.KEYWORD_ONLY]
    named = [*(one.name for one in fields(ScoringOptions)), *(name for name in own if name not in ("from_", "out"))]
    return [f"--{name.replace('_', '-')}" for name in [*named, "plugins"]]


def load_records(file: Path) -> Iterator[EvalRecord]:
    """Reads the answers of a file.

    Raises:
        SailError: The file holds no answer, or a line is not an answer.
    """
    from sail_lightning.evaluate import read_records

    found = False
    for record in read_records(file):
        found = True
        yield record
    if not found:
        raise SailError(f"{file} holds no answers")


def rescore(*, from_: list[Path], out: Path, gallery: NonNegativeInt = 8, **scoring: Any) -> None:
    """Scores stored answers again, also those of other programs, and writes the report.

    Args:
        from_: Files of answers, such as per_sample.jsonl of a test.
        out: Folder of the report.
        gallery: Number of best, worst and random answers that are drawn.
    """
    options = ScoringOptions(**scoring)
    folder = output_folder(out)

    from sail_lightning.evaluate import score
    from sail_lightning.evaluate.gallery import named_image
    from sail_lightning.evaluate.report import file_sums, write_report

    reports = score(chain.from_iterable(map(load_records, from_)), **options.arguments(), metrics=options.own_metrics())
    written = write_report(folder, reports, {"from": file_sums(from_)}, named_image, gallery)
    print(written.markdown.read_text(encoding="utf-8"))
    print(f"report: {written.markdown}, {written.json}, {written.per_sample}")


__getattr__ = renamed(__name__, {"asks_for": "is_rescoring", "held_answers": "load_records"})
