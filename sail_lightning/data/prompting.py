"""Gives objects their visual prompts: an id of `<PromptK>`, and the region that a user would have drawn.

An object's id, mask and text stay together in one record (official defect E12: ids were assigned in one order and
filled in another). The shape of a prompt is drawn with the sample, and made when the mask is decoded (E48).
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

from sail_lightning.data.samplers import Sampler
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import BoolMask, Mask, MaskRef, Sample, Turn
from sail_lightning.sequence.chat_template import prompt_token
from sail_lightning.settings.ranges import Checked, NonNegativeFloat, PositiveInt, UnitInterval
from sail_lightning.settings.renames import renamed

Shape = Literal["mask", "box", "point", "scribble"]
MIN_EDGE_DISTANCE = 16
"""Distance in pixels that a point keeps from its object's edge where the object is thick enough (official code: the
patch size)."""
STROKES = (3, 5)
"""Smallest and largest number of points of a scribble."""
NEGATIVE = "absent"
"""Key of `Sample.meta` for the ids of negative prompts: the text asks about them, but no prompt has them."""

_REGION = re.compile(r"<[Rr]egi?on([0-9]+)>|\b[Rr]egi?on([0-9]+)\b")


@dataclass(frozen=True)
class Region:
    """An object that a text may name: K of its `<PromptK>`, its mask, and a text about it."""

    id: int
    mask: MaskRef
    text: str = ""

    @property
    def name(self) -> str:
        """The token `<PromptK>` by which the text names it."""
        return prompt_token(self.id)

    @property
    def prompt(self) -> Mask:
        """The visual prompt of the sample."""
        return Mask(self.mask, self.id)


class Prompting(Checked):
    """Makes visual prompts for the objects of a source, and conversations about them.

    Args:
        objects: Largest number of objects in a conversation.
        num_prompts: Number of prompt ids, 0 to num_prompts - 1. The objects get random ones.
        shapes: Weights of the shapes `mask`, `box`, `point` and `scribble`, with any sum; null always takes the mask.
            The paper's augmentation is 0.4, 0.3 and 0.3 for the first three.
        absent: Probability, per object, that the conversation also asks about an id that no prompt has (a negative
            prompt); there is at most one in a conversation.
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

    def sample_objects(self, objects: Sequence[Any], sampler: Sampler) -> list[Any]:
        """One or more objects, in random order."""
        return sampler.sample(objects, sampler.integer(1, self.objects))

    def regions(self, objects: Iterable[tuple[MaskRef, str]], sampler: Sampler) -> tuple[list[Region], list[int]]:
        """Objects, each a mask and a text, with their prompts, and the ids that are left.

        A check may take more objects than there are ids; then ids continue beyond `num_prompts`.
        """
        objects = list(objects)
        ids = [*sampler.sample(range(self.num_prompts)), *range(self.num_prompts, len(objects))]
        regions = [
            Region(id, self._shaped(mask, sampler), text) for id, (mask, text) in zip(ids, objects, strict=False)
        ]
        return regions, ids[len(objects) :]

    def sample_negative_prompt(self, objects: int, unused: Sequence[int], sampler: Sampler) -> tuple[int, int] | None:
        """A negative prompt for a sample, as the index of the object after which it is asked about, and its id.

        None if there is none, as when all ids are used (official defect E43: the first of no ids was taken).
        """
        if not unused:
            return None
        return next(((index, unused[0]) for index in range(objects) if sampler.bernoulli(self.absent)), None)

    def build_conversation(
        self,
        objects: Iterable[tuple[MaskRef, str]],
        turn: Callable[[str, str], Turn],
        sampler: Sampler,
        *,
        image: str,
        source: str,
        id: str,
    ) -> Sample:
        """A sample that asks about each object in a turn of its own.

        Args:
            objects: Masks and texts about them.
            turn: Makes a turn from a prompt's name and its text.
            sampler: Makes the choices that the record leaves open.
            image: The sample's image.
            source: The sample's source.
            id: The sample's id.

        Raises:
            SailError: There is no object.
        """
        regions, unused = self.regions(objects, sampler)
        if not regions:
            raise SailError("no object to ask about; give the record one, or remove it")
        negative = self.sample_negative_prompt(len(regions), unused, sampler)
        turns: list[Turn] = []
        meta: dict[str, Any] = {}
        for place, region in enumerate(regions):
            turns.append(turn(region.name, region.text))
            if negative is not None and negative[0] == place:
                turns.append(negative_turn(turn, negative[1], region.text))
                meta[NEGATIVE] = [negative[1]]
        prompts = tuple(region.prompt for region in regions)
        return Sample(image, tuple(turns), prompts=prompts, source=source, id=id, meta=meta)

    def _shaped(self, mask: MaskRef, sampler: Sampler) -> MaskRef:
        shape: Shape = next((shape for shape, chance in self._chances if sampler.bernoulli(chance)), "mask")
        return mask if shape == "mask" else SimulatedPrompt(mask, shape, sampler.integer(0, 2**31 - 1))


def negative_turn(turn: Callable[[str, str], Turn], id: int, text: str = "") -> Turn:
    """A turn as asked about an object, but about a prompt that is not there."""
    name = prompt_token(id)
    return replace(turn(name, text), answer=prompt_templates.NOT_THERE.format(name), task="describe", choices=())


def described(sampler: Sampler, ending: str = "") -> Callable[[str, str], Turn]:
    """Makes turns that ask for a detailed description, in one of the wordings and `ending`."""

    def turn(name: str, text: str) -> Turn:
        return Turn(sampler.choice(prompt_templates.DESCRIBE).format(name) + ending, f"{name}: {text}", "describe")

    return turn


def with_names(text: str, regions: Sequence[Region]) -> str:
    """A text in which `<region1>`, `Region2`, `<regon3>` and the like, counted from 1, become the names of prompts.

    Only whole words are replaced: official defect E15 turned `<region10>` into `<<Prompt0>0>`.

    Raises:
        SailError: The text names a region that does not exist.
    """

    def name(match: re.Match[str]) -> str:
        number = int(match[1] or match[2])
        if not 1 <= number <= len(regions):
            raise SailError(f"the text names {match[0]}, but the record has {len(regions)} regions; correct the text")
        return regions[number - 1].name

    return _REGION.sub(name, text)


# -- shapes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimulatedPrompt:
    """The region (H, W) bool that a user might draw for an object; the same in every call for one `seed`.

    A `box` fills the object's bounding box. A `point` is one random pixel farther than `MIN_EDGE_DISTANCE` from the
    object's edge, or the farthest if there is none. A `scribble` is a line through such pixels along the object's
    longer side, cut to the object. An object of several pieces, or of none, keeps its mask (official rule).
    """

    mask: MaskRef
    shape: Shape
    seed: int

    def __call__(self) -> BoolMask:
        mask = load_mask(self.mask)
        if self.shape == "mask" or ndimage.label(mask)[1] != 1:  # pieces touch by their sides, not by corners
            return mask
        return _DRAWN[self.shape](mask, np.random.default_rng(self.seed))


def distance_transform(mask: BoolMask) -> NDArray[np.float64]:
    """The Euclidean distance of each pixel (H, W), in pixels, to the nearest pixel that is off; infinite if none is.

    Pixels beyond the border of the image do not count as off.
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
    drawn[part][_inside(distance_transform(mask[part]), rng)] = True
    return drawn


def _scribble(mask: BoolMask, rng: np.random.Generator) -> BoolMask:
    part = _extent(mask, 1)
    height, width = mask[part].shape
    upright = mask[part] if height >= width else mask[part].T
    distances = distance_transform(upright)
    bands = np.linspace(0, len(distances), int(rng.integers(STROKES[0], STROKES[1] + 1)) + 1).astype(int)
    points = []
    for start, end in pairwise(bands.tolist()):
        if distances[start:end].any():
            row, column = _inside(distances[start:end], rng)
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
    """The rows and columns of a mask that is not empty, with a margin in pixels where the image has it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + 1 + margin),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + 1 + margin),
    )


def _inside(distances: NDArray[np.float64], rng: np.random.Generator) -> tuple[int, int]:
    """The (row, column) of a random pixel farther than `MIN_EDGE_DISTANCE` from the edge, or else of the farthest."""
    inside = np.flatnonzero(distances > MIN_EDGE_DISTANCE)
    index = int(inside[rng.integers(len(inside))]) if len(inside) else int(distances.argmax())
    return divmod(index, distances.shape[1])


def _chances(shapes: Mapping[Shape, float] | None) -> tuple[tuple[Shape, float], ...]:
    """Each shape with its probability given that no shape before it is drawn; the last one has 1."""
    if shapes is None:
        return ()
    known: tuple[Shape, ...] = get_args(Shape)
    used = [(shape, float(shapes[shape])) for shape in known if shapes.get(shape)]
    if not used:
        raise SailUsageError("shapes must give at least one shape a weight above 0; null is always the mask")
    return tuple((shape, weight / sum(rest for _, rest in used[at:])) for at, (shape, weight) in enumerate(used))


__getattr__ = renamed(
    __name__, {"Shaped": "SimulatedPrompt", "denial": "negative_turn", "depths": "distance_transform"}
)
