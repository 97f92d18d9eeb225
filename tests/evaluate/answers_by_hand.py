"""Answers written by hand, with masks drawn as text: rows of `1` and `0`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sail_lightning.generation.prediction import encode_rle

EMPTY = "0000/0000"
LEFT, RIGHT, ALL = "1100/1100", "0011/0011", "1111/1111"


def rle(drawn: str) -> dict[str, Any]:
    return encode_rle(np.array([[cell == "1" for cell in row] for row in drawn.split("/")]))


def line(id: str, pred: Iterable[str], target: Iterable[str], **more: Any) -> dict[str, Any]:
    """One line of a referring benchmark."""
    defaults = {"benchmark": "refcoco_val", "question": f"segment {id}", "text": "It is [SEG].", "size": [2, 4]}
    return {"id": id, **defaults, "pred": [rle(m) for m in pred], "target": [rle(m) for m in target], **more}


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path
