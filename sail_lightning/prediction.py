"""What the model answers, in the forms that people use: text, masks, phrases, COCO records, a picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sail_lightning import templates
from sail_lightning.data.sample import BoolMask, Box, Mask, Point, Prompt
from sail_lightning.vision import region_mask

COLOURS = ((230, 60, 60), (60, 140, 240), (60, 190, 90), (240, 180, 40), (170, 90, 220), (40, 200, 200))
"""Of masks in overlays, repeating."""


@dataclass(frozen=True)
class Prediction:
    """One answer.

    `text` as generated, `[SEG]` and phrase tags included; `masks` (n, H, W) bool, one per `[SEG]`, at the picture's own
    size; `image` (H, W, 3) uint8 or None; `finish` is `end`, `length` or `loop`; `seconds` this answer's share of the
    time that its batch took.
    """

    text: str
    masks: NDArray[np.bool_]
    image: NDArray[np.uint8] | None = None
    question: str = ""
    prompts: tuple[Prompt, ...] = ()
    source: str = ""
    finish: str = "end"
    seconds: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def phrases(self) -> list[str]:
        """The phrase of each mask, `<p> phrase </p> [SEG]`; an empty string where there is none."""
        return phrases_of(self.text)

    def to_coco(self) -> list[dict[str, Any]]:
        """One COCO record per mask: `segmentation` (compressed RLE), `area` (pixels), `bbox` [x, y, w, h], `phrase`."""
        records = []
        for mask, phrase in zip(self.masks, self.phrases, strict=True):
            rle = encode_rle(mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [0, 0, 0, 0]
            if len(rows):
                box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            records.append({"segmentation": rle, "area": int(mask.sum()), "bbox": box, "phrase": phrase})
        return records

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The picture with its masks tinted and contoured, prompts outlined, and the text below."""
        image = self.image if self.image is not None else np.full((64, 256, 3), 255, np.uint8)
        scale = max(1, round(256 / max(image.shape[:2])))
        canvas = np.repeat(np.repeat(image, scale, 0), scale, 1).astype(np.float32)
        for index, mask in enumerate(self.masks):
            tint(canvas, np.repeat(np.repeat(mask, scale, 0), scale, 1), COLOURS[index % len(COLOURS)], alpha)
        drawn = Image.fromarray(canvas.round().astype(np.uint8))
        draw = ImageDraw.Draw(drawn)
        for place, prompt in enumerate(self.prompts):
            draw_prompt(draw, prompt, place, scale, image.shape[:2])
        return captioned(drawn, [f"Q: {self.question}", f"A: {self.text}"] if self.question else [self.text])


def phrases_of(text: str) -> list[str]:
    """The phrase before each `[SEG]` of a text, or an empty string."""
    start, end, seg = (re.escape(t) for t in (templates.PHRASE_START, templates.PHRASE_END, templates.SEG))
    pattern = rf"(?:{start}((?:(?!{start}|{end}|{seg}).)*){end}\s*)?{seg}"
    return [(match[1] or "").strip() for match in re.finditer(pattern, text, re.DOTALL)]


def encode_rle(mask: BoolMask) -> dict[str, Any]:
    """A mask (H, W) as a COCO compressed RLE, `counts` a string."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def tint(canvas: NDArray[np.float32], mask: BoolMask, colour: tuple[int, int, int], alpha: float) -> None:
    """Blends a colour into `canvas` (H, W, 3) where `mask` is on, and draws its contour opaque; in place."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(mask, step, axis)
    canvas[mask] = (1 - alpha) * canvas[mask] + alpha * np.asarray(colour, np.float32)
    canvas[mask & ~inner] = colour


def draw_prompt(draw: ImageDraw.ImageDraw, prompt: Prompt, place: int, scale: int, size: tuple[int, int]) -> None:
    """Outlines a visual prompt, with its number, on a picture drawn `scale` times larger."""
    id = place if prompt.id is None else prompt.id
    if isinstance(prompt, Box):
        box = [prompt.x0, prompt.y0, prompt.x1, prompt.y1]
    elif isinstance(prompt, Point):
        box = [prompt.x - 1, prompt.y - 1, prompt.x + 2, prompt.y + 2]
    else:
        mask = region_mask(prompt, (size[0], size[1]))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        if isinstance(prompt, Mask):
            outline = mask & ~(np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1))
            for y, x in np.argwhere(outline):
                draw.rectangle([x * scale, y * scale, (x + 1) * scale - 1, (y + 1) * scale - 1], fill="white")
    left, top, right, bottom = (float(value) * scale for value in box)
    if not isinstance(prompt, Mask):
        draw.rectangle([left, top, max(right - 1, left), max(bottom - 1, top)], outline="white", width=2)
    draw.text((left + 2, top + 1), str(id), fill="white", stroke_width=1, stroke_fill="black")


def captioned(picture: Image.Image, lines: list[str], width: int = 240) -> Image.Image:
    """A picture with lines of text, wrapped, on a white strip below it."""
    width = max(width, picture.width)
    probe = ImageDraw.Draw(picture)
    wrapped: list[str] = []
    for line in lines:
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if current and probe.textlength(longer) > width - 8:
                wrapped.append(current)
                current = word
            else:
                current = longer
        wrapped.append(current)
    sheet = Image.new("RGB", (width, picture.height + 8 + 13 * len(wrapped)), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(wrapped):
        draw.text((4, picture.height + 3 + 13 * index), line, fill="black")
    return sheet
