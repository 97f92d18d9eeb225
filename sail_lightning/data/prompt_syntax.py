"""The syntax of visual prompts on the command line."""

from __future__ import annotations

import math
import re

from sail_lightning.errors import SailUsageError
from sail_lightning.sample import Box, Mask, Point, Prompt, Scribble

FORMS = "mask:FILE.png, box:X0,Y0,X1,Y1, point:X,Y or scribble:X,Y,X,Y,..., with K= in front for <PromptK>"


def parse_prompt(text: str) -> Prompt:
    """A prompt from its text, such as `box:10,20,200,180`, `2=mask:cat.png` or `point:40,60`, in pixels of the image.

    Raises:
        SailUsageError: The text has another form.
    """
    match = re.fullmatch(r"\s*(?:(\d+)=)?(mask|box|point|scribble):(.+)", text)
    if not match:
        raise SailUsageError(f"{text!r} is no prompt; write {FORMS}")
    id = int(match[1]) if match[1] else None
    if match[2] == "mask":
        return Mask(match[3].strip(), id)
    try:
        numbers = [float(number) for number in match[3].split(",")]
    except ValueError:
        numbers = []
    corners = list(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) % 2 == 0 and all(map(math.isfinite, numbers)):
        if match[2] == "box" and len(corners) == 2:
            (x0, y0), (x1, y1) = corners
            if x0 < x1 and y0 < y1:
                return Box(x0, y0, x1, y1, id)
        if match[2] == "point" and len(corners) == 1:
            return Point(*corners[0], id)
        if match[2] == "scribble" and len(corners) >= 2:
            return Scribble(tuple(corners), id)
    raise SailUsageError(f"{text!r} is no {match[2]}; write {FORMS}")
