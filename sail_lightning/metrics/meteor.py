"""METEOR 1.5 (Denkowski and Lavie, 2014) by its own program, which comes with pycocoevalcap and needs Java.

The program matches words (equal, stem, synonym, paraphrase) and prints, per caption, counts; the score is a formula of
those counts, and the corpus figure the same formula of their sums. The formula is here, so that a bootstrap does not
start Java again; that it gives the program's own figures is tested. Captions are given as the words of
`metrics.words.words`; of several references the best one counts.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.metrics.lines import Lines
from sail_lightning.metrics.sums import scalar
from sail_lightning.metrics.words import words

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""Parameters of the task `rank` for English, the program's default."""
STAGES = (1.0, 0.6, 0.8, 0.6)
"""Weights of matches of equal words, stems, synonyms and paraphrases."""
COUNTS = 23
"""Numbers that the program prints per caption."""

Counts = NDArray[np.float64]


@cache
def meteor_program() -> Path | None:
    """The program's file, or None where it or Java is missing."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or shutil.which("java") is None:
        return None
    programs = (Path(folder) / "meteor" / "meteor-1.5.jar" for folder in found.submodule_search_locations or ())
    return next((program for program in programs if program.is_file()), None)


def meteor_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Counts:
    """What the program counts, a row per caption (captions, 23); starting it takes ten seconds.

    Args:
        predictions: a list of words per caption.
        references: one or more lists of words per caption.

    Raises:
        SailError: no program, or it fails.
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
    # The program leaves an exact answer's one chunk out of its sums: it is no break.
    exact = (table[:, 20] == 1) & (table[:, 21:] == table[:, :2]).all(1)
    table[exact, 20] = 0
    return table


def _sentence(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if "|" not in token)


def meteor_score(counts: Counts) -> Any:
    """METEOR 1.5 of counts (..., 23), or of their sums: (...), 0 to 1.

    The numbers are: words of prediction and reference, function words of both; per stage, matched content words of both
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


class Meteor(Lines):
    """METEOR 1.5 of captions; Java counts once, when all ranks' captions are gathered."""

    higher_is_better = True

    def update(self, prediction: str, references: str | Sequence[str]) -> None:
        """Adds one caption with its references.

        Raises:
            SailError: no reference.
        """
        true = [references] if isinstance(references, str) else list(references)
        if not true:
            raise SailError("a caption has no reference; give one or more")
        self.write([words(prediction), [words(reference) for reference in true]])

    def compute(self) -> dict[str, Tensor]:
        """`meteor` in [0, 1], NaN without captions.

        Raises:
            SailError: Java or pycocoevalcap is missing.
        """
        lines = self.read()
        table = meteor_counts([line[0] for line in lines], [line[1] for line in lines])
        return {"meteor": scalar(float(meteor_score(table.sum(0))) if len(table) else float("nan"))}
