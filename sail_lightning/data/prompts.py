"""Visual prompts as they are written on a command line."""

from __future__ import annotations

import re

from sail_lightning.data.sample import Box, Mask, Point, Prompt, Scribble
from sail_lightning.errors import SailUsageError

FORMS = "mask:FILE.png, box:X0,Y0,X1,Y1, point:X,Y or scribble:X,Y,X,Y,..., with K= in front to be <PromptK>"


def parse_prompt(text: str) -> Prompt:
    """One prompt, such as `box:10,20,200,180`, `2=mask:cat.png` or `point:40,60`; numbers are pixels of the picture.

    Raises:
        SailUsageError: another form.
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
    if match[2] == "box" and len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]:
        return Box(*numbers, id=id)
    if match[2] == "point" and len(numbers) == 2:
        return Point(*numbers, id=id)
    if match[2] == "scribble" and len(numbers) >= 4 and len(numbers) % 2 == 0:
        return Scribble(tuple(zip(numbers[::2], numbers[1::2], strict=True)), id)
    raise SailUsageError(f"{text!r} is no {match[2]}; write {FORMS}")
