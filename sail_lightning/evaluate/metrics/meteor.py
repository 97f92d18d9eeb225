"""METEOR 1.5 (Denkowski and Lavie, 2014) by its own program, which comes with pycocoevalcap and needs Java.

The program matches words (equal, stem, synonym, paraphrase) and prints counts for each caption. The score is a formula
of those counts, and the corpus value the same formula of their sums. The formula is implemented here, so that a
bootstrap does not start Java again; tests compare it with the program's own values. Captions are given as the words of
`words.words`; of several references the best one counts.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.errors import SailError
from sail_lightning.evaluate.metric import Floats, MetricResult
from sail_lightning.evaluate.metrics.captions import CorpusScore
from sail_lightning.registry import register

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""Parameters of the formula for the task `rank` in English, the program's default."""
STAGES = (1.0, 0.6, 0.8, 0.6)
"""Weights of matches of equal words, stems, synonyms and paraphrases."""
COUNTS = 23
"""Number of counts that the program prints per caption."""

Counts = NDArray[np.float64]


@cache
def meteor_program() -> Path | None:
    """Returns the path of the program, or None where it or Java is not installed."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or shutil.which("java") is None:
        return None
    programs = (Path(folder) / "meteor" / "meteor-1.5.jar" for folder in found.submodule_search_locations or ())
    return next((program for program in programs if program.is_file()), None)


def meteor_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Counts:
    """Returns the counts of METEOR's program, (captions, 23), a row per caption; starting it takes ten seconds.

    Args:
        predictions: A list of words per caption.
        references: One or more lists of words per caption.

    Raises:
        SailError: The program is not installed, or fails.
    """
    program = meteor_program()
    if program is None:
        raise SailError("METEOR 1.5 needs Java and pycocoevalcap; install both, or use meteor_lite")
    lines = [
        " ||| ".join(["SCORE", *map(_sentence, sample), _sentence(prediction)])
        for prediction, sample in zip(predictions, references, strict=True)
    ]
    if not lines:
        return np.zeros((0, COUNTS))
    command = ["java", "-jar", "-Xmx2G", str(program), "-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, encoding="utf-8", check=False
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    if done.returncode or len(rows) != len(lines) or any(len(row) != COUNTS for row in rows):
        reason = (done.stderr.strip().splitlines() or ["it printed no counts"])[-1]
        raise SailError(f"METEOR 1.5 failed ({reason}); check that `java -version` runs, or do without pycocoevalcap")
    table = np.array(rows, np.float64)
    # The program leaves the one chunk of an exact answer out of its sums, because it is not a break.
    exact = (table[:, 20] == 1) & (table[:, 21:] == table[:, :2]).all(1)
    table[exact, 20] = 0
    return table


def _sentence(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if "|" not in token)


def meteor_score(counts: Counts) -> Any:
    """Returns METEOR 1.5, (...) in [0, 1], of counts (..., 23) or of their sums.

    The counts are: words of prediction and reference, function words of both; per stage, matched content words of both
    and matched function words of both; chunks; matched words of both.
    """
    length, true_length, function, true_function = np.moveaxis(counts[..., :4], -1, 0)
    stages = counts[..., 4:20].reshape(*counts.shape[:-1], len(STAGES), 4)
    chunks, words_matched, true_words_matched = np.moveaxis(counts[..., 20:], -1, 0)
    content, true_content, functional, true_functional = np.moveaxis(np.tensordot(stages, STAGES, ([-2], [0])), -1, 0)
    precision = _ratio(DELTA * content + (1 - DELTA) * functional, _weight(length, function))
    recall = _ratio(DELTA * true_content + (1 - DELTA) * true_functional, _weight(true_length, true_function))
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    fragments = _ratio(chunks, (words_matched + true_words_matched) / 2)
    return mean * (1 - GAMMA * fragments**BETA)


def _weight(length: Counts, function: Counts) -> Counts:
    return DELTA * (length - function) + (1 - DELTA) * function


def _ratio(part: Counts, whole: Counts) -> Counts:
    return np.divide(part, whole, out=np.zeros_like(part + whole), where=whole != 0)


@dataclass(frozen=True)
class MeteorResult(MetricResult):
    """The result of METEOR 1.5: its formula on the sums of the program's counts per caption, `table` (captions, 23)."""

    table: Counts
    values: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        return {"meteor": np.asarray(meteor_score(drawn @ self.table))}


@register
class Meteor(CorpusScore):
    """METEOR 1.5 of captions, `meteor`, in [0, 1]; its program runs once, when all captions are gathered."""

    def evaluate_entries(self, entries: Sequence[Any]) -> MeteorResult:
        """Returns the result of the program's counts of all captions.

        Raises:
            SailError: Java or pycocoevalcap is missing.
        """
        table = meteor_counts([one[0] for one in entries], [one[1] for one in entries])
        value = float(meteor_score(table.sum(0))) if len(table) else float("nan")
        return MeteorResult(table, {"meteor": value}, [{"meteor": float(score)} for score in meteor_score(table)])
