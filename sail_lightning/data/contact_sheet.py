"""Draws samples as one picture: each with its masks, its region prompts and its first turns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sail_lightning.data.sample import BoolMask, Box, Mask, MaskRef, Prompt, Sample, Scribble

WIDTH = 256
"""Of each picture on the sheet, in pixels."""
MARGIN = 8
LINE = 13
LETTER = 6
"""Width of a letter, in pixels, on average."""
PAPER = (250, 250, 248)
INK = (32, 32, 32)
TINTS = ((255, 64, 160), (0, 224, 255), (255, 150, 0), (120, 255, 70), (150, 120, 255), (255, 240, 90))
"""Of masks, in the order of `Sample.masks`."""
TINT = 0.35


def contact_sheet(
    samples: Iterable[Sample], path: str | Path | None = None, columns: int = 4, turns: int = 5
) -> Image.Image:
    """Samples side by side: the picture, and under it the picture again with masks and prompts, and the first turns.

    Args:
        samples: drawn in order; their masks are arrays, files or functions.
        path: where the sheet is also written, as a file that PIL knows by its ending.
        columns: pictures in a row.
        turns: how many of a sample's turns are written out.

    Raises:
        ValueError: there is no sample, or `columns` is below 1.
        TypeError: a mask is of a form that cannot be drawn without decoding.
    """
    cells = [_cell(sample, turns) for sample in samples]
    if not cells or columns < 1:
        raise ValueError(f"a contact sheet needs samples and at least one column, not {len(cells)} and {columns}")
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + MARGIN for row in rows]
    width = min(columns, len(cells)) * (cells[0].width + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), PAPER)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (cell.width + MARGIN), top))
        top += height
    if path is not None:
        sheet.save(path)
    return sheet


def _cell(sample: Sample, turns: int) -> Image.Image:
    """One sample: the bare picture beside the marked one, and text below."""
    width = 2 * WIDTH + 2
    lines = [f"{sample.source} {sample.id}".strip()]
    for turn in sample.turns[:turns]:
        targets = "".join(f" #{number}" for number in turn.targets)
        lines += textwrap.wrap(f"Q: {turn.question}", width // LETTER, subsequent_indent="   ")
        lines += textwrap.wrap(f"A: {turn.answer}{targets}", width // LETTER, subsequent_indent="   ")
    if len(sample.turns) > turns:
        lines.append(f"... {len(sample.turns) - turns} more")
    bare, marked = _pictures(sample)
    cell = Image.new("RGB", (width, bare.height + LINE * len(lines) + 4), PAPER)
    cell.paste(bare, (0, 0))
    cell.paste(marked, (WIDTH + 2, 0))
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(11)
    for number, line in enumerate(lines):
        draw.text((0, bare.height + 2 + LINE * number), line, INK, font)
    return cell


def _pictures(sample: Sample) -> tuple[Image.Image, Image.Image]:
    """The picture enlarged (or reduced) to `WIDTH`, bare and with masks and prompts drawn on it."""
    if sample.image is None:
        blank = Image.new("RGB", (WIDTH, WIDTH // 4), (210, 210, 210))
        return blank, blank.copy()
    if isinstance(sample.image, np.ndarray):
        picture = Image.fromarray(sample.image)
    else:
        with Image.open(sample.image) as file:
            picture = file.convert("RGB")
    scale = WIDTH / picture.width
    size = (WIDTH, max(1, round(picture.height * scale)))
    bare = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
    pixels = np.asarray(bare).copy()
    labels: dict[tuple[int, int], str] = {}
    for number, reference in enumerate(sample.masks):
        mask = _enlarged(_decoded(reference), size)
        tint = np.array(TINTS[number % len(TINTS)])
        pixels[mask] = (pixels[mask] * (1 - TINT) + tint * TINT).astype(np.uint8)
        pixels[mask & ~_inner(mask)] = tint
        if mask.any():
            y, x = (round(float(places.mean())) for places in np.nonzero(mask))
            labels[x, y] = f"{labels[x, y]},{number}" if (x, y) in labels else f"#{number}"
    marked = Image.fromarray(pixels)
    draw = ImageDraw.Draw(marked)
    font = ImageFont.load_default(11)
    for (x, y), text in labels.items():
        place = (x - LETTER * len(text) / 2, y - LINE / 2)
        draw.text(place, text, (255, 255, 255), font, stroke_width=1, stroke_fill=(0, 0, 0))
    for order, prompt in enumerate(sample.prompts):
        _draw_prompt(draw, prompt, order, scale, size)
    return bare, marked


def _draw_prompt(draw: ImageDraw.ImageDraw, prompt: Prompt, order: int, scale: float, size: tuple[int, int]) -> None:
    """Outlines a region in white on black, with its `<PromptK>` number."""
    name = f"<{order if prompt.id is None else prompt.id}>"
    if isinstance(prompt, Box):
        corners = [prompt.x0 * scale, prompt.y0 * scale, prompt.x1 * scale - 1, prompt.y1 * scale - 1]
        draw.rectangle(corners, outline=(0, 0, 0), width=3)
        draw.rectangle(corners, outline=(255, 255, 255), width=1)
        at = (corners[0] + 3, corners[1] + 1)
    elif isinstance(prompt, Mask):
        mask = _enlarged(_decoded(prompt.mask), size)
        ys, xs = np.nonzero(mask & ~_inner(_inner(mask)))
        draw.point([(int(x), int(y)) for y, x in zip(ys, xs, strict=True) if (x + y) // 3 % 2], fill=(255, 255, 255))
        at = (float(xs.mean()) - 8, float(ys.min()) - 14) if len(xs) else (0.0, 0.0)
    else:
        points = prompt.points if isinstance(prompt, Scribble) else ((prompt.x, prompt.y),)
        path = [((x + 0.5) * scale, (y + 0.5) * scale) for x, y in points]
        if len(path) > 1:
            draw.line(path, fill=(255, 255, 255), width=2)
        x, y = path[0]
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=(255, 255, 255), outline=(0, 0, 0), width=2)
        at = (x + 6, y - 6)
    place = (min(max(at[0], 0.0), size[0] - 22.0), min(max(at[1], 0.0), size[1] - 14.0))
    draw.text(place, name, (255, 255, 255), ImageFont.load_default(11), stroke_width=2, stroke_fill=(0, 0, 0))


def _decoded(reference: MaskRef) -> BoolMask:
    if isinstance(reference, np.ndarray):
        return reference
    if isinstance(reference, str | Path):
        with Image.open(reference) as file:
            return np.asarray(file.convert("L")) > 0
    if callable(reference):
        return reference()
    raise TypeError(f"cannot draw a mask of type {type(reference).__name__}; decode it to a bool array (H, W) first")


def _enlarged(mask: BoolMask, size: tuple[int, int]) -> BoolMask:
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    pixels: NDArray[np.uint8] = np.asarray(picture.resize(size, Image.Resampling.NEAREST))
    return pixels > 0


def _inner(mask: BoolMask) -> BoolMask:
    """The mask without its outermost two pixels."""
    for _ in range(2):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
