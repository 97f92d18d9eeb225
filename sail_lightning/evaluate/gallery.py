"""Galleries of answers: the best, the worst and some random ones, each drawn beside its truth."""

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
from sail_lightning.settings.renames import renamed

ImageFinder = Callable[[EvalRecord], NDArray[np.uint8] | None]
"""Returns the image (H, W, 3) uint8, RGB, of an answer, or None where it is not available."""
Score = Mapping[str, Any]

FOLDER = "gallery"
MAIN = ("iou", "correct", "meteor", "meteor_lite", "token_f1")
"""Keys of an answer's own score in [0, 1], in order: the first one that an answer has ranks it."""
WIDTH, GAP = 256, 4
"""Width of each of a case's two panels, and of the gap between them, in pixels."""
TALLEST = 8 * WIDTH
"""Largest height of a panel in pixels; a taller image is squeezed."""
LARGEST = 1 << 25
"""Largest number of pixels of a grey panel that is drawn in its stated size."""
GROUND = 96
"""Grey level, 0 to 255, of a panel whose image is not available."""
COLOURS: tuple[Colour, ...] = ((230, 60, 60), (60, 140, 240), (60, 190, 90), (240, 180, 40), (170, 90, 220))
IGNORED: Colour = (130, 130, 130)


def main_score(score: Score) -> float | None:
    """Returns how good an answer is, in [0, 1], or None where it has no score of its own (`MAIN`)."""
    found = next((score[name] for name in MAIN if score.get(name) is not None), None)
    return None if found is None else float(found)


def cases(scores: Sequence[Score], count: int, seed: int = 0) -> dict[str, list[int]]:
    """Chooses the answers to draw: indices of the `best` and `worst` by their own score, and of `random` ones.

    Each list has at most `count` indices. Answers of equal score keep their order. Where there are few, an answer may
    be among both the best and the worst.
    """
    judged = [index for index, score in enumerate(scores) if main_score(score) is not None]
    worst = sorted(judged, key=lambda index: main_score(scores[index]) or 0.0)
    best = sorted(judged, key=lambda index: -(main_score(scores[index]) or 0.0))
    drawn = np.random.default_rng(seed).permutation(len(scores))[:count].tolist()
    return {"best": best[:count], "worst": worst[:count], "random": drawn}


def draw_gallery(folder: Path, reports: Mapping[str, Report], image_of: ImageFinder, count: int = 8) -> list[Path]:
    """Writes `gallery/best.png`, `worst.png` and `random.png` below a folder, and returns those that have a case.

    Args:
        folder: Folder of the report.
        reports: Reports by benchmark; with several, each gets files of its own that begin with its name.
        image_of: Returns the image of an answer.
        count: Number of cases in each file.
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
            cells = [draw_case(report.records[index], report.per_sample[index], image_of) for index in chosen]
            grid(cells, columns=2).save(path)
            written.append(path)
    return written


def _file_name(benchmark: str) -> str:
    """Returns a benchmark's name as part of a file name, with at most 100 characters, because file systems limit names
    to 255 bytes."""
    plain = re.sub(r"[^\w+.-]+", "_", benchmark)
    return plain if len(plain.encode()) <= 100 else f"{plain[:20]}-{zlib.crc32(benchmark.encode()):08x}"


def draw_case(record: EvalRecord, score: Score, image_of: ImageFinder) -> Image.Image:
    """Draws one answer: the image with the true masks, beside it with the predicted ones, and the texts below."""
    pixels = image_of(record)
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
    lines = [f"{record.benchmark} {record.id}{shown}", f"Q: {record.question}", f"A: {record.prediction}"]
    return captioned(pair, [*lines, *(f"true: {text}" for text in _truth(record))])


def prompt_of(record: Any, size: tuple[int, ...] | None = None) -> Prompt | None:
    """Reads a visual prompt as `predictions.jsonl` and `per_sample.jsonl` hold it.

    Args:
        record: The prompt as parsed JSON.
        size: The image's (height, width) in pixels, which a mask must have; None accepts any.

    Returns:
        The prompt, or None where it has another form, or is a mask of another size.
    """
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
    """Returns coordinates that can be drawn, and raises ValueError for anything else."""
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
    """Returns the true texts of a record, none where it has none."""
    return [record.true_answer] if record.true_answer else list(record.reference)[:2]


def named_image(record: EvalRecord) -> NDArray[np.uint8] | None:
    """Reads the image (H, W, 3) uint8, RGB, that an answer's key `image` names; None where the file is missing or not
    of the size of the answer's masks."""
    name = record.to_json().get("image")
    if not isinstance(name, str) or not os.path.isfile(name):  # False also for names that no file can have
        return None
    try:
        pixels = load_image(name)
    except SailError:
        return None
    return pixels if record.size is None or pixels.shape[:2] == tuple(record.size) else None


__getattr__ = renamed(__name__, {"named_picture": "named_image"})
