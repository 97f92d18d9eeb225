"""The record that every data source yields: one picture, turns of text, the masks they name, the regions they point at.

Nothing here decodes a pixel or a token; a `Sample` is cheap to make, to keep and to pickle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BoolMask = NDArray[np.bool_]
ImageRef = str | Path | NDArray[np.uint8] | Callable[[], bytes | NDArray[np.uint8]]
"""A picture: a file, an array (H, W, 3) uint8, RGB, or a function that returns such an array or a file's content."""
MaskRef = BoolMask | dict[str, Any] | str | Path | Callable[[], BoolMask]
"""A mask: an array (H, W) bool, a COCO RLE, a PNG file (non-zero is on), or a function that makes one."""

Task = Literal["refer", "describe", "choice", "caption", "vres", "chat"]
"""What a turn asks: segment by words, describe a region in words, multiple choice about a region,
grounded caption, segment by words and a region (visual-text referring), anything else."""


@dataclass(frozen=True)
class Mask:
    """A region as a mask of the picture's size, in any form of `MaskRef`; `id` is K of `<PromptK>`."""

    mask: MaskRef
    id: int | None = None


@dataclass(frozen=True)
class Box:
    """A region drawn as a box, in pixels of the picture: corners (x0, y0) and (x1, y1), x1 and y1 exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float
    id: int | None = None


@dataclass(frozen=True)
class Point:
    """A region drawn as a point, in pixels of the picture: x to the right, y down."""

    x: float
    y: float
    id: int | None = None


@dataclass(frozen=True)
class Scribble:
    """A region drawn as a line through `points`, (x, y) in pixels of the picture."""

    points: tuple[tuple[float, float], ...]
    id: int | None = None


Prompt = Mask | Box | Point | Scribble


@dataclass(frozen=True)
class Turn:
    """One question and its answer. The answer holds one `[SEG]` per mask of the turn, in order.

    `targets` index the sample's `masks`, one per `[SEG]` of the answer. `choices` are the options of a
    multiple-choice question; `task` says by which metric the turn is judged.
    """

    question: str
    answer: str = ""
    task: Task = "chat"
    targets: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One picture and the conversation about it.

    `image` is None for text only; of several pictures, masks and prompts belong to the first. `prompts` are named
    `<PromptK>` in the questions; a prompt without an id takes its place in the list. `source` and `id` name the record
    in every message and result file.
    """

    image: ImageRef | tuple[ImageRef, ...] | None
    turns: tuple[Turn, ...]
    masks: tuple[MaskRef, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    source: str = ""
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The pictures: none, one or several."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)
