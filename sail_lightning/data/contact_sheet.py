"""Draws samples as one image, each with its masks, its visual prompts and its first turns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sail_lightning.image.drawing import captioned, draw_prompt, enlarged, grid, label, tint
from sail_lightning.image.preprocessing import load_image, load_mask
from sail_lightning.sample import Sample

WIDTH = 256
"""Width of each image on the sheet, in pixels."""
GAP = 2
TINTS = ((255, 64, 160), (0, 224, 255), (255, 150, 0), (120, 255, 70), (150, 120, 255), (255, 240, 90))
"""Colours of masks, in the order of `Sample.masks`."""
ALPHA = 0.35


def contact_sheet(
    samples: Iterable[Sample], path: str | Path | None = None, columns: int = 4, turns: int = 5
) -> Image.Image:
    """Samples side by side: the image, the same image with masks and prompts, and the first turns below.

    Args:
        samples: Samples to draw, in order; of several images of a sample the first is drawn.
        path: File that the sheet is also written to, in the format of its ending.
        columns: Number of samples in a row.
        turns: Largest number of turns that are written below a sample.

    Raises:
        ValueError: There is no sample, or `columns` is below 1.
        SailError: An image or mask cannot be read.
    """
    cells = [_cell(sample, turns) for sample in samples]
    if not cells or columns < 1:
        raise ValueError(f"a contact sheet needs samples and at least one column, not {len(cells)} and {columns}")
    sheet = grid(cells, columns)
    if path is not None:
        sheet.save(path)
    return sheet


def _cell(sample: Sample, turns: int) -> Image.Image:
    """One sample: the image without and with masks and prompts, and text below."""
    lines = [f"{sample.source} {sample.id}".strip()]
    for turn in sample.turns[:turns]:
        targets = "".join(f" #{number}" for number in turn.targets)
        lines += [f"Q: {turn.question}", f"A: {turn.answer}{targets}"]
    if len(sample.turns) > turns:
        lines.append(f"... {len(sample.turns) - turns} more")
    bare, marked = _images(sample)
    cell = Image.new("RGB", (2 * WIDTH + GAP, bare.height), "white")
    cell.paste(bare, (0, 0))
    cell.paste(marked, (WIDTH + GAP, 0))
    return captioned(cell, lines)


def _images(sample: Sample) -> tuple[Image.Image, Image.Image]:
    """The image scaled to `WIDTH`, without and with masks and prompts drawn on it."""
    images = sample.images
    if not images:
        blank = Image.new("RGB", (WIDTH, WIDTH // 4), (210, 210, 210))
        return blank, blank.copy()
    image = Image.fromarray(load_image(images[0]))
    scale = WIDTH / image.width
    size = (max(1, round(image.height * scale)), WIDTH)
    bare = image.resize(size[::-1], Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
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
    for index, prompt in enumerate(sample.prompts):
        draw_prompt(draw, prompt, index, scale, size)
    return bare, marked
