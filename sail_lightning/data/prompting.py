"""Gives objects their visual prompts: an id of `<PromptK>`, and what a user would have drawn, a mask or less.

An object's id, mask and text are one record from beginning to end (official defect E12: ids were given out in one order
and filled in another). Which shape is drawn is settled with the sample; it is made when the mask is decoded (E48).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from sail_lightning.data.samplers import Choice
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import BoolMask, Mask, MaskRef, Sample, Turn
from sail_lightning.sequence.chat_template import prompt_token
from sail_lightning.settings.ranges import Checked, NonNegativeFloat, PositiveInt, UnitInterval

Shape = Literal["mask", "box", "point", "scribble"]
DEPTH = 16
"""A point is put so many pixels inside its object, if that is so thick (official code: the patch size)."""
STROKES = (3, 5)
"""Fewest and most points of a scribble."""
ABSENT = "absent"
"""Key of `Sample.meta`: ids that the text asks about although no prompt carries them, to be denied."""

_REGION = re.compile(r"<[Rr]egi?on([0-9]+)>|\b[Rr]egi?on([0-9]+)\b")


@dataclass(frozen=True)
class Region:
    """An object that a text may name: K of its `<PromptK>`, its region, and what is said of it."""

    id: int
    mask: MaskRef
    text: str = ""

    @property
    def name(self) -> str:
        """As the text names it."""
        return prompt_token(self.id)

    @property
    def prompt(self) -> Mask:
        """As the sample carries it."""
        return Mask(self.mask, self.id)


class Prompting(Checked):
    """How a source prompts for its objects.

    Args:
        objects: most per conversation.
        num_prompts: ids that prompts carry, 0 to num_prompts - 1: a random permutation, its first for the objects.
        shapes: how often a prompt is a `mask`, `box`, `point` or `scribble`, of any sum; null is always the mask. The
            paper's augmentation is 0.4, 0.3 and 0.3 for the first three.
        absent: probability, per object, that a conversation also asks about an id that no prompt carries, once at most.
    """

    def __init__(
        self,
        objects: PositiveInt = 5,
        num_prompts: PositiveInt = 15,
        shapes: Mapping[Shape, NonNegativeFloat] | None = None,
        absent: UnitInterval = 0.05,
    ) -> None:
        if objects > num_prompts:
            raise SailUsageError(f"objects must be at most num_prompts ({num_prompts}), not {objects}")
        self.objects, self.num_prompts, self.absent = objects, num_prompts, absent
        self._chances = _chances(shapes)

    def some(self, objects: Sequence[Any], choose: Choice) -> list[Any]:
        """One object or more, in random order."""
        return choose.some(objects, choose.number(1, self.objects))

    def regions(self, objects: Iterable[tuple[MaskRef, str]], choose: Choice) -> tuple[list[Region], list[int]]:
        """Objects, each a mask and a text, with their prompts, and the ids that are left.

        Where a check takes more objects than there are ids, the numbers go on.
        """
        objects = list(objects)
        ids = [*choose.some(range(self.num_prompts)), *range(self.num_prompts, len(objects))]
        regions = [Region(id, self._shaped(mask, choose), text) for id, (mask, text) in zip(ids, objects, strict=False)]
        return regions, ids[len(objects) :]

    def absentee(self, objects: int, unused: Sequence[int], choose: Choice) -> tuple[int, int] | None:
        """Whether a sample asks about a prompt that is not there: after which of its objects, and about which id.

        It cannot where all ids are used (official defect E43: it took the first of none).
        """
        if not unused:
            return None
        return next(((place, unused[0]) for place in range(objects) if choose.chance(self.absent)), None)

    def interview(
        self,
        objects: Iterable[tuple[MaskRef, str]],
        turn: Callable[[str, str], Turn],
        choose: Choice,
        *,
        image: str,
        source: str,
        id: str,
    ) -> Sample:
        """A sample that asks about each object in a turn of its own.

        Args:
            objects: masks and what is said of them.
            turn: makes the turn of a prompt's name and text.
            choose: settles what is open.
            image, source, id: of the sample.

        Raises:
            SailError: there is no object.
        """
        regions, unused = self.regions(objects, choose)
        if not regions:
            raise SailError("no object to ask about; give the record one, or remove it")
        absentee = self.absentee(len(regions), unused, choose)
        turns: list[Turn] = []
        meta: dict[str, Any] = {}
        for place, region in enumerate(regions):
            turns.append(turn(region.name, region.text))
            if absentee is not None and absentee[0] == place:
                turns.append(denial(turn, absentee[1], region.text))
                meta[ABSENT] = [absentee[1]]
        prompts = tuple(region.prompt for region in regions)
        return Sample(image, tuple(turns), prompts=prompts, source=source, id=id, meta=meta)

    def _shaped(self, mask: MaskRef, choose: Choice) -> MaskRef:
        shape: Shape = next((shape for shape, chance in self._chances if choose.chance(chance)), "mask")
        return mask if shape == "mask" else Shaped(mask, shape, choose.number(0, 2**31 - 1))


def denial(turn: Callable[[str, str], Turn], id: int, text: str = "") -> Turn:
    """A turn as asked about an object, but about a prompt that is not there."""
    name = prompt_token(id)
    return replace(turn(name, text), answer=prompt_templates.NOT_THERE.format(name), task="describe", choices=())


def described(choose: Choice, ending: str = "") -> Callable[[str, str], Turn]:
    """Makes turns that ask for a detailed description, in one of the wordings and `ending`."""

    def turn(name: str, text: str) -> Turn:
        return Turn(choose.one(prompt_templates.DESCRIBE).format(name) + ending, f"{name}: {text}", "describe")

    return turn


def with_names(text: str, regions: Sequence[Region]) -> str:
    """A text in which `<region1>`, `Region2`, `<regon3>` and the like, counted from 1, are the names of prompts.

    Whole words only: official defect E15 made `<<Prompt0>0>` of `<region10>`.

    Raises:
        SailError: it names a region that is not there.
    """

    def name(match: re.Match[str]) -> str:
        number = int(match[1] or match[2])
        if not 1 <= number <= len(regions):
            raise SailError(f"the text names {match[0]}, but the record has {len(regions)} regions; mend the text")
        return regions[number - 1].name

    return _REGION.sub(name, text)


# -- shapes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shaped:
    """What a user might draw for an object of that mask; the same for a `seed`, each time it is called.

    A `box` is the object's, filled. A `point` is one pixel, any that is deeper inside than `DEPTH`, or else the
    deepest. A `scribble` is a line through such pixels along the object's longer side, less what would leave it.
    An object of several pieces keeps its mask, as does an empty one (official rule).
    """

    mask: MaskRef
    shape: Shape
    seed: int

    def __call__(self) -> BoolMask:
        mask = load_mask(self.mask)
        if self.shape == "mask" or ndimage.label(mask)[1] != 1:  # pieces hang together by their sides
            return mask
        return _DRAWN[self.shape](mask, np.random.default_rng(self.seed))


def depths(mask: BoolMask) -> NDArray[np.float64]:
    """The distance (H, W) of each pixel, in pixels, to the nearest that is off; infinite where none is.

    Beyond the picture's border nothing is off.
    """
    found: NDArray[np.float64] = np.full(mask.shape, np.inf) if mask.all() else ndimage.distance_transform_edt(mask)
    return found


def _box(mask: BoolMask, rng: np.random.Generator) -> BoolMask:
    drawn = np.zeros_like(mask)
    drawn[_extent(mask)] = True
    return drawn


def _point(mask: BoolMask, rng: np.random.Generator) -> BoolMask:
    part = _extent(mask, 1)
    drawn = np.zeros_like(mask)
    drawn[part][_inside(depths(mask[part]), rng)] = True
    return drawn


def _scribble(mask: BoolMask, rng: np.random.Generator) -> BoolMask:
    part = _extent(mask, 1)
    height, width = mask[part].shape
    upright = mask[part] if height >= width else mask[part].T
    deep = depths(upright)
    bands = np.linspace(0, len(deep), int(rng.integers(STROKES[0], STROKES[1] + 1)) + 1).astype(int)
    points = []
    for start, end in pairwise(bands.tolist()):
        if deep[start:end].any():
            row, column = _inside(deep[start:end], rng)
            points.append((column, row + start))
    canvas = Image.new("1", upright.shape[::-1])
    draw = ImageDraw.Draw(canvas)
    draw.line(points, fill=1)
    draw.point(points, fill=1)
    line = np.asarray(canvas) & upright
    drawn = np.zeros_like(mask)
    drawn[part] = line if height >= width else line.T
    return drawn


_DRAWN: dict[str, Callable[[BoolMask, np.random.Generator], BoolMask]] = {
    "box": _box,
    "point": _point,
    "scribble": _scribble,
}


def _extent(mask: BoolMask, margin: int = 0) -> tuple[slice, slice]:
    """The rows and columns of a mask that is not empty, and so many more on each side that the picture has."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + 1 + margin),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + 1 + margin),
    )


def _inside(deep: NDArray[np.float64], rng: np.random.Generator) -> tuple[int, int]:
    """The (row, column) of any pixel that is deep inside, or else of the deepest."""
    places = np.flatnonzero(deep > DEPTH)
    place = int(places[rng.integers(len(places))]) if len(places) else int(deep.argmax())
    return divmod(place, deep.shape[1])


def _chances(shapes: Mapping[Shape, float] | None) -> tuple[tuple[Shape, float], ...]:
    """Shapes with their probability, given that none before them is drawn; the last has 1."""
    if shapes is None:
        return ()
    known: tuple[Shape, ...] = get_args(Shape)
    used = [(shape, float(shapes[shape])) for shape in known if shapes.get(shape)]
    if not used:
        raise SailUsageError("shapes must give at least one shape a weight above 0; null is always the mask")
    return tuple((shape, weight / sum(rest for _, rest in used[at:])) for at, (shape, weight) in enumerate(used))
