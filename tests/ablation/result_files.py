"""Files of runs as a study leaves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sail_lightning.ablation.cost import Cost
from sail_lightning.ablation.runs import Result
from sail_lightning.ablation.study import Study, parse_study
from sail_lightning.generation.prediction import encode_rle

ROW = 10
"""Pixels of an image, in one row."""


def study(**changes: Any) -> Study:
    content = {
        "configs": ["quickstart"],
        "variants": {"plain": None, "better": None, "odd": None},
        "steps": 100,
        "seeds": [0, 1],
        "metrics": ["refer/ciou", "refer/giou"],
    }
    return parse_study(content | changes, "byhand")


def strip(pixels: int) -> dict[str, Any]:
    """A mask of the first so many pixels of a row."""
    import numpy as np

    return encode_rle((np.arange(ROW) < pixels)[None])


def answer(number: int, found: int, true: int = ROW) -> dict[str, Any]:
    """The first `found` pixels were answered, the first `true` were meant: the IoU is found / true if found is less."""
    return {
        "id": str(number),
        "benchmark": "refer",
        "question": f"please segment object {number}.",
        "text": "it is [SEG].",
        "pred": [strip(found)],
        "target": [strip(true)],
        "size": [1, ROW],
    }


def write(
    root: Path, variant: str, seed: int, found: Sequence[int], cost: Cost | None = None, true: int = ROW
) -> Result:
    """A run whose answers found so many of ten pixels each; its metrics are computed by hand."""
    folder = root / variant / f"seed_{seed}"
    (folder / "test").mkdir(parents=True)
    lines = [json.dumps(answer(number, pixels, true)) for number, pixels in enumerate(found)]
    (folder / "test" / "per_sample.jsonl").write_text("\n".join(lines) + "\n")
    result = {"protocol": "standard", "no_target_from": "mask", "combine": "union"}
    (folder / "test" / "report.json").write_text(json.dumps(result))
    ious = [pixels / true for pixels in found]
    metrics = {"ciou": sum(found) / (true * len(found)), "giou": sum(ious) / len(ious)}
    return Result(
        variant=variant,
        seed=seed,
        metrics={"test": {"refer": metrics}},
        cost=cost or Cost(60.0, 1000, 9000.0, 60.0, 0.5),
        curves="fit/version_0/metrics.csv",
        answers={"test": "test/per_sample.jsonl"},
    )


def folders(root: Path, results: Sequence[Result]) -> dict[tuple[str, int], Path]:
    return {(one.variant, one.seed): root / one.variant / f"seed_{one.seed}" for one in results}
