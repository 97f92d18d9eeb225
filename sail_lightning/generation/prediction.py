"""An answer of the model in the forms that people use: text, masks, phrases, COCO records and an overlay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sail_lightning.image.drawing import captioned, draw_prompt, enlarged, tint
from sail_lightning.image.run_lengths import encode_rle
from sail_lightning.sample import Prompt
from sail_lightning.sequence.chat_template import phrases_of

COLOURS = ((230, 60, 60), (60, 140, 240), (60, 190, 90), (240, 180, 40), (170, 90, 220), (40, 200, 200))
"""Colours (RGB) of the masks in an overlay, used in turn."""


@dataclass(frozen=True)
class Prediction:
    """One answer.

    `text` is as generated, with `[SEG]` and phrase tags. `masks` (n, H, W) bool has one mask per `[SEG]`, at the size
    of the image before it was resized, and none without an image. `image` is (H, W, 3) uint8 or None. `finish` says
    why the answer ended: `end`, `length` or `loop` (it repeated itself). `seconds` is its share of its batch's time.
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

    def to(self, *args: Any, **kwargs: Any) -> Prediction:
        """Returns itself, which is in host memory. `Trainer.predict` calls this on what `predict_step` returns."""
        return self

    @property
    def phrases(self) -> list[str]:
        """The phrase of each mask, `<p> phrase </p> [SEG]`; an empty string where there is none."""
        return list(phrases_of(self.text))

    def to_coco(self) -> list[dict[str, Any]]:
        """One COCO record per mask: `segmentation` (compressed RLE), `area` (pixels), `bbox` [x, y, w, h], `phrase`."""
        records = []
        # Without an image a [SEG] has a phrase, but no mask.
        for mask, phrase in zip(self.masks, self.phrases, strict=False):
            rle = encode_rle(mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [0, 0, 0, 0]
            if len(rows):
                box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            records.append({"segmentation": rle, "area": int(mask.sum()), "bbox": box, "phrase": phrase})
        return records

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """Draws the image with its masks tinted and contoured, prompts outlined, and the text below.

        A small image is enlarged by a whole number, to about 256 pixels. `alpha`, 0 to 1, is the share of a mask's
        colour.
        """
        image = self.image if self.image is not None else np.full((64, 256, 3), 255, np.uint8)
        scale = max(1, round(256 / max(image.shape[:2])))
        pixels = image.repeat(scale, 0).repeat(scale, 1)
        size = (pixels.shape[0], pixels.shape[1])
        for index, mask in enumerate(self.masks):
            tint(pixels, enlarged(mask, size), COLOURS[index % len(COLOURS)], alpha)
        drawn = Image.fromarray(pixels)
        draw = ImageDraw.Draw(drawn)
        for index, prompt in enumerate(self.prompts):
            draw_prompt(draw, prompt, index, scale, size)
        return captioned(drawn, [f"Q: {self.question}", f"A: {self.text}"] if self.question else [self.text], 240)
