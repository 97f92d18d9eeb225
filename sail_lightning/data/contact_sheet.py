"""Draws samples as one picture: each with its masks, its region prompts and its first turns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sail_lightning.image.drawing import captioned, draw_prompt, enlarged, grid, label, tint
from sail_lightning.image.preprocessing import load_image, load_mask
from sail_lightning.sample import Sample

WIDTH = 256
"""Of each picture on the sheet, in pixels."""
GAP = 2
TINTS = ((255, 64, 160), (0, 224, 255), (255, 150, 0), (120, 255, 70), (150, 120, 255), (255, 240, 90))
"""Of masks, in the order of `Sample.masks`."""
ALPHA = 0.35


def contact_sheet(
    samples: Iterable[Sample], path: str | Path | None = None, columns: int = 4, turns: int = 5
) -> Image.Image:
    """Samples side by side: the picture, beside it the same with masks and prompts, and the first turns below.

    Args:
        samples: drawn in order; of several pictures, the first.
        path: where the sheet is also written, as a file that PIL knows by its ending.
        columns: samples in a row.
        turns: how many of a sample's turns are written out.

    Raises:
        ValueError: there is no sample, or `columns` is below 1.
        SailError: a picture or mask cannot be read.
    """
    cells = [_cell(sample, turns) for sample in samples]
    if not cells or columns < 1:
        raise ValueError(f"a contact sheet needs samples and at least one column, not {len(cells)} and {columns}")
    sheet = grid(cells, columns)
    if path is not None:
        sheet.save(path)
    return sheet


def _cell(sample: Sample, turns: int) -> Image.Image:
    """One sample: the bare picture beside the marked one, and text below."""
    lines = [f"{sample.source} {sample.id}".strip()]
    for turn in sample.turns[:turns]:
        targets = "".join(f" #{number}" for number in turn.targets)
        lines += [f"Q: {turn.question}", f"A: {turn.answer}{targets}"]
    if len(sample.turns) > turns:
        lines.append(f"... {len(sample.turns) - turns} more")
    bare, marked = _pictures(sample)
    cell = Image.new("RGB", (2 * WIDTH + GAP, bare.height), "white")
    cell.paste(bare, (0, 0))
    cell.paste(marked, (WIDTH + GAP, 0))
    return captioned(cell, lines)


def _pictures(sample: Sample) -> tuple[Image.Image, Image.Image]:
    """The picture enlarged (or reduced) to `WIDTH`, bare and with masks and prompts drawn on it."""
    images = sample.images
    if not images:
        blank = Image.new("RGB", (WIDTH, WIDTH // 4), (210, 210, 210))
        return blank, blank.copy()
    picture = Image.fromarray(load_image(images[0]))
    scale = WIDTH / picture.width
    size = (max(1, round(picture.height * scale)), WIDTH)
    bare = picture.resize(size[::-1], Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
    pixels = np.array(bare)
    labels: dict[tuple[int, int], str] = {}
    for number, reference in enumerate(sample.masks):
        mask = enlarged(load_mask(reference), size)
        tint(pixels, mask, TINTS[number % len(TINTS)], ALPHA)
        if mask.any():
            y, x = (round(float(places.mean())) for places in np.nonzero(mask))
            labels[x, y] = f"{labels[x, y]},{number}" if (x, y) in labels else f"#{number}"
    marked = Image.fromarray(pixels)
    draw = ImageDraw.Draw(marked)
    for (x, y), text in labels.items():
        label(draw, (x - 6, y - 6), text, size)
    for place, prompt in enumerate(sample.prompts):
        draw_prompt(draw, prompt, place, scale, size)
    return bare, marked
