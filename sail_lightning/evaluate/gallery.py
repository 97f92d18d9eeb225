"""Answers as pictures: the best, the worst and some drawn by chance, each beside its truth."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sail_lightning.errors import SailError
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.scoring import Report
from sail_lightning.image.drawing import Colour, captioned, draw_prompt, enlarged, grid, tint
from sail_lightning.image.preprocessing import load_image
from sail_lightning.image.segmentations import decode
from sail_lightning.sample import BoolMask, Box, Mask, Point, Prompt, Scribble

Picture = Callable[[EvalRecord], NDArray[np.uint8] | None]
"""Finds the picture (H, W, 3) uint8 of an answer, or None where there is none to be had."""
Score = Mapping[str, Any]

FOLDER = "gallery"
MAIN = ("iou", "correct", "meteor", "meteor_lite", "token_f1")
"""Names of an answer's own score, the first that it has; all from 0 to 1."""
WIDTH, GAP = 256, 4
"""Of each of a case's two pictures and of what is between them, in pixels."""
TALLEST = 8 * WIDTH
"""Height of one of the two pictures at most; a taller one is squeezed."""
LARGEST = 1 << 25
"""Pixels of a picture that is drawn in grey at its own size, at most."""
GROUND = 96
"""Grey of a picture that is not there."""
COLOURS: tuple[Colour, ...] = ((230, 60, 60), (60, 140, 240), (60, 190, 90), (240, 180, 40), (170, 90, 220))
IGNORED: Colour = (130, 130, 130)


def main_score(score: Score) -> float | None:
    """How good an answer is, from 0 to 1; None where nothing says."""
    found = next((score[name] for name in MAIN if score.get(name) is not None), None)
    return None if found is None else float(found)


def cases(scores: Sequence[Score], count: int, seed: int = 0) -> dict[str, list[int]]:
    """Which answers to draw: `best` and `worst` by their own score, and `random` ones, each at most `count` long.

    Answers of one score stand in their own order. Where there are few, one may be among the best and the worst.
    """
    judged = [index for index, score in enumerate(scores) if main_score(score) is not None]
    worst = sorted(judged, key=lambda index: main_score(scores[index]) or 0.0)
    best = sorted(judged, key=lambda index: -(main_score(scores[index]) or 0.0))
    drawn = np.random.default_rng(seed).permutation(len(scores))[:count].tolist()
    return {"best": best[:count], "worst": worst[:count], "random": drawn}


def draw_gallery(folder: Path, reports: Mapping[str, Report], picture: Picture, count: int = 8) -> list[Path]:
    """Writes `gallery/best.png`, `worst.png` and `random.png` below a folder; returns those that have a case.

    Args:
        folder: of the report.
        reports: by benchmark; of several, each gets files of its own, that begin with its name.
        picture: finds an answer's picture.
        count: cases of each.
    """
    judged = {name: report for name, report in reports.items() if report.records}
    written = []
    for name, report in judged.items():
        prefix = f"{_file_name(name)}-" if len(judged) > 1 else ""
        for kind, chosen in cases(report.per_sample, count).items():
            if not chosen:
                continue
            path = folder / FOLDER / f"{prefix}{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cells = [draw_case(report.records[index], report.per_sample[index], picture) for index in chosen]
            grid(cells, columns=2).save(path)
            written.append(path)
    return written


def _file_name(benchmark: str) -> str:
    """A benchmark's name as part of a file's name, at most 100 characters, of which a file system takes 255 bytes."""
    plain = re.sub(r"[^\w+.-]+", "_", benchmark)
    return plain if len(plain.encode()) <= 100 else f"{plain[:20]}-{zlib.crc32(benchmark.encode()):08x}"


def draw_case(record: EvalRecord, score: Score, picture: Picture) -> Image.Image:
    """One answer: the picture with the true masks, beside it with the predicted ones, and the words below."""
    pixels = picture(record)
    pred, target, ignore = (None if masks is None else np.asarray(masks) for masks in record.masks())
    assert pred is not None and target is not None
    if pixels is None:
        # An answer without masks may state any size.
        own = record.size or (WIDTH // 4, WIDTH)
        size = pred.shape[1:] if len(pred) else target.shape[1:] if len(target) else own
        fits = len(pred) or len(target) or own[0] * own[1] <= LARGEST
        pixels = np.full((*(size if fits else (WIDTH // 4, WIDTH)), 3), GROUND, np.uint8)
    prompts = [prompt for one in record.prompts if (prompt := prompt_of(one, pixels.shape[:2])) is not None]
    left, right = (_panel(pixels, masks, ignore, prompts) for masks in (target, pred))
    pair = Image.new("RGB", (2 * WIDTH + GAP, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (WIDTH + GAP, 0))
    value = main_score(score)
    shown = "" if value is None else f": {value:.3f}"
    told = [f"{record.benchmark} {record.id}{shown}", f"Q: {record.question}", f"A: {record.prediction}"]
    return captioned(pair, [*told, *(f"true: {text}" for text in _truth(record))])


def prompt_of(record: Any, size: tuple[int, ...] | None = None) -> Prompt | None:
    """A visual prompt as `predictions.jsonl` and `per_sample.jsonl` hold it; None for one in another form, or for a
    mask that is not of the picture's `size` (height, width)."""
    if not isinstance(record, dict):
        return None
    id = record.get("id")
    if id is not None and type(id) is not int:
        return None
    try:
        if box := record.get("box"):
            x0, y0, x1, y1 = _numbers(box)
            return Box(x0, y0, x1, y1, id)
        if point := record.get("point"):
            x, y = _numbers(point)
            return Point(x, y, id)
        if scribble := record.get("scribble"):
            points = [_numbers(point) for point in scribble]
            return Scribble(tuple((across, down) for across, down in points), id)
        mask = record.get("mask")
        if not isinstance(mask, dict) or (size is not None and tuple(mask["size"]) != size):
            return None
        return Mask(decode(mask, tuple(mask["size"])), id)
    except (KeyError, TypeError, ValueError, SailError):
        return None


def _numbers(values: Any) -> list[float]:
    """Coordinates that can be drawn; raises ValueError for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) and abs(value) < 1e6 for value in values):
        raise ValueError("coordinates must be numbers of pixels")
    return values


def _panel(
    pixels: NDArray[np.uint8], masks: NDArray[np.bool_], ignore: BoolMask | None, prompts: Sequence[Prompt]
) -> Image.Image:
    scale = WIDTH / pixels.shape[1]
    size = (min(max(1, round(pixels.shape[0] * scale)), TALLEST), WIDTH)
    filter = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    drawn = np.array(Image.fromarray(pixels).resize(size[::-1], filter))
    if ignore is not None:
        tint(drawn, enlarged(ignore, size), IGNORED, 0.6)
    for index, mask in enumerate(masks):
        tint(drawn, enlarged(mask, size), COLOURS[index % len(COLOURS)], 0.5)
    marked = Image.fromarray(drawn)
    for place, prompt in enumerate(prompts):
        draw_prompt(ImageDraw.Draw(marked), prompt, place, scale, size)
    return marked


def _truth(record: EvalRecord) -> list[str]:
    """The true words, where there are some."""
    return [record.true_answer] if record.true_answer else list(record.reference)[:2]


def named_picture(record: EvalRecord) -> NDArray[np.uint8] | None:
    """The picture that an answer's own `image` names, if it is there and as large as its masks."""
    name = record.to_json().get("image")
    if not isinstance(name, str) or not os.path.isfile(name):  # False also for names that no file can have
        return None
    try:
        pixels = load_image(name)
    except SailError:
        return None
    return pixels if record.size is None or pixels.shape[:2] == tuple(record.size) else None
