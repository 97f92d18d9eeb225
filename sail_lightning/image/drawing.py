"""Draws samples and answers: tinted masks, outlined prompts, text below, and a grid of several images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import BoolMask, Box, Mask, Prompt, Scribble

LINE = 13
"""Height of a line of text, in pixels."""
PAPER, INK, LIGHT, DARK = (255, 255, 255), (32, 32, 32), (255, 255, 255), (0, 0, 0)
FONT = ImageFont.load_default(11)

Colour = tuple[int, int, int]


def enlarged(mask: BoolMask, size: tuple[int, int]) -> BoolMask:
    """A mask (H, W) bool resized to `size` (height, width) with nearest neighbours."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    pixels: NDArray[np.uint8] = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))
    return pixels > 0


def tint(pixels: NDArray[np.uint8], mask: BoolMask, colour: Colour, alpha: float) -> None:
    """Blends a colour into `pixels` (H, W, 3) uint8 where `mask` (H, W) is on, in place, and draws an opaque contour.

    `alpha` is the share of the colour, 0 to 1.
    """
    tone = np.asarray(colour, np.float32)
    pixels[mask] = (pixels[mask] * (1 - alpha) + tone * alpha).round().astype(np.uint8)
    pixels[mask & ~ndimage.binary_erosion(mask, iterations=2)] = colour


def label(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: tuple[int, int]) -> None:
    """Writes a short text, light on dark, at `place` (x, y), kept within an image of `size` (height, width)."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=FONT, stroke_width=1)
    x = min(max(place[0], -left), max(size[1] - right, -left))
    y = min(max(place[1], -top), max(size[0] - bottom, -top))
    draw.text((x, y), text, LIGHT, FONT, stroke_width=1, stroke_fill=DARK)


def draw_prompt(draw: ImageDraw.ImageDraw, prompt: Prompt, place: int, scale: float, size: tuple[int, int]) -> None:
    """Outlines a visual prompt and writes the K of its `<PromptK>`.

    Args:
        draw: Draws on the image.
        prompt: The prompt to draw.
        place: Index of the prompt in its list, which is its K if it has no id.
        scale: Size of the drawn image relative to the image that the prompt's coordinates count pixels of.
        size: (height, width) of the drawn image.
    """
    if isinstance(prompt, Box):
        left, top = prompt.x0 * scale, prompt.y0 * scale
        corners = [left, top, max(prompt.x1 * scale - 1, left), max(prompt.y1 * scale - 1, top)]
        draw.rectangle(corners, outline=DARK, width=3)
        draw.rectangle(corners, outline=LIGHT, width=1)
        at = (left + 3, top + 1)
    elif isinstance(prompt, Mask):
        mask = enlarged(load_mask(prompt.mask), size)
        ys, xs = np.nonzero(mask & ~ndimage.binary_erosion(mask, iterations=3))
        # Dashes, so that it is not taken for the contour of an answer.
        draw.point([(int(x), int(y)) for y, x in zip(ys, xs, strict=True) if (x + y) // 3 % 2], LIGHT)
        at = (float(xs.mean()) - 4, float(ys.min()) - LINE) if len(xs) else (0.0, 0.0)
    else:
        points = prompt.points if isinstance(prompt, Scribble) else ((prompt.x, prompt.y),)
        path = [((x + 0.5) * scale, (y + 0.5) * scale) for x, y in points]
        if len(path) > 1:
            draw.line(path, DARK, 4)
            draw.line(path, LIGHT, 2)
        x, y = path[0]
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], LIGHT, DARK, 2)
        at = (x + 6, y - 6)
    label(draw, at, str(place if prompt.id is None else prompt.id), size)


def captioned(image: Image.Image, lines: Sequence[str], width: int = 0) -> Image.Image:
    """An image with text below it, wrapped to the width of the image or, if that is larger, to `width` pixels."""
    width = max(width, image.width)
    wrapped = [part for line in lines for part in wrap(line, width - 8)]
    sheet = Image.new("RGB", (width, image.height + (8 + LINE * len(wrapped) if wrapped else 0)), PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(wrapped):
        draw.text((4, image.height + 3 + LINE * index), line, INK, FONT)
    return sheet


def wrap(text: str, width: float) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, between words or within a word longer than a line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if FONT.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and FONT.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def grid(images: Sequence[Image.Image], columns: int = 4, margin: int = 8) -> Image.Image:
    """One or more images side by side, `columns` in a row, aligned at the top of each row, `margin` pixels apart."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    width = max(image.width for image in images) + margin
    heights = [max(image.height for image in row) + margin for row in rows]
    sheet = Image.new("RGB", (width * len(rows[0]) + margin, sum(heights) + margin), PAPER)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (margin + column * width, top))
        top += height
    return sheet
