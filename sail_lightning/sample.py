"""The record that every data source yields: an image, turns of text, their masks, and the regions they point at.

Nothing here decodes a pixel or a token: a `Sample` is cheap to make, to keep and to pickle.
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
"""An image: a file, an array (H, W, 3) uint8 in RGB, or a function that returns such an array or a file's content."""
MaskRef = BoolMask | dict[str, Any] | str | Path | Callable[[], BoolMask]
"""A mask: an array (H, W) bool, a COCO RLE, a PNG file (non-zero is on), or a function that returns an array."""

Task = Literal["refer", "describe", "choice", "caption", "vres", "chat"]
"""What a turn asks for: `refer` segments by words, `describe` describes a region, `choice` is multiple choice about a
region, `caption` is a grounded caption, `vres` segments by words and a region, and `chat` is anything else."""


@dataclass(frozen=True)
class Mask:
    """A region as a mask of the image's size, in any form of `MaskRef`; `id` is K of `<PromptK>`."""

    mask: MaskRef
    id: int | None = None


@dataclass(frozen=True)
class Box:
    """A region drawn as a box, in pixels of the image: corners (x0, y0) and (x1, y1), x1 and y1 exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float
    id: int | None = None


@dataclass(frozen=True)
class Point:
    """A region drawn as a point, in pixels of the image: x to the right, y down."""

    x: float
    y: float
    id: int | None = None


@dataclass(frozen=True)
class Scribble:
    """A region drawn as a line through `points`, (x, y) in pixels of the image."""

    points: tuple[tuple[float, float], ...]
    id: int | None = None


Prompt = Mask | Box | Point | Scribble


@dataclass(frozen=True)
class Turn:
    """One question and its answer. The answer holds one `[SEG]` per mask of the turn, in order.

    Attributes:
        question: Text of the question.
        answer: Text of the answer; empty if it is to be generated.
        task: The kind of question, which decides about the metrics.
        targets: Indices into the sample's `masks`, one per `[SEG]` of the answer.
        choices: Options of a multiple-choice question.
    """

    question: str
    answer: str = ""
    task: Task = "chat"
    targets: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image and the conversation about it.

    Attributes:
        image: The image; several, of which masks and prompts belong to the first; or None for text only.
        turns: Questions and answers, in order.
        masks: Masks of the (first) image, at its size.
        prompts: Visual prompts. The questions name them `<PromptK>`: K is the prompt's id, or its index without one.
        source: Name of the data set, for messages and result files.
        id: Name of the record, for messages and result files.
        meta: Further data of the record, which is written to result files.
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
        """The images as a tuple of none, one or several."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)
