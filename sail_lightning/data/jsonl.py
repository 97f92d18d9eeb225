"""Our own format for samples: one JSON object each, in files with one object per line, in Parquet files and in shards.

```
{"id": "7", "image": "photos/7.jpg",
 "turns": [{"question": "Please segment the cat.", "answer": "It is [SEG]."}],
 "masks": [{"png": "masks/7.png"}]}
```

| key | what it holds |
|---|---|
| `id` | name of the record in messages: a string or an integer |
| `image` | a file; several; or null for text only |
| `size` | optional: [height, width] of the (first) image |
| `turns` | `{"question", "answer", "task"?, "choices"?, "masks"?}` each |
| `masks` | optional: masks of the first image, in the order of `[SEG]` in the answers |
| `prompts` | optional: `{"mask" or "box" or "point" or "scribble", "id"?}` each, named `<PromptK>` in the questions |
| `meta` | optional: anything; under `ignore`, a list with a mask of ignored pixels, or null, for each of `masks` |

A mask is a COCO RLE, `{"size", "counts"}`, compressed or not; `{"polygons": [[x, y, x, y, ...], ...]}` in pixels;
a PNG file, in which pixels are on that are neither zero nor transparent; or `{"png": file, "value": v}`, in which
pixels of value v are on (in a palette image, of palette index v). A box is [x0, y0, x1, y1], x1 and y1 exclusive; a
point [x, y]; a scribble [[x, y], ...]. `id` is K, or else the index of the prompt in the list.

`masks` of a turn are indices, one for each `[SEG]` of its answer, for masks that are used twice or in another order;
either all turns have them or none. If `task` is missing, it follows from the text (`task_of`).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import image_size, load_mask
from sail_lightning.image.run_lengths import encode_rle
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.sample import (
    BoolMask,
    Box,
    ImageRef,
    Mask,
    MaskRef,
    Point,
    Prompt,
    Sample,
    Scribble,
    Task,
    Turn,
)
from sail_lightning.sequence.chat_template import PHRASE_START, SEG

Record = dict[str, Any]
TASKS: tuple[str, ...] = get_args(Task)
REGIONS = ("mask", "box", "point", "scribble")
IGNORE = "ignore"
"""Key of `meta`: for each mask of the sample, a mask of pixels that no metric counts, or None (ReasonSeg, E16)."""


@dataclass(frozen=True)
class Outlines:
    """The union of polygons on an image; the image's size is read from its file when the mask is decoded."""

    polygons: tuple[tuple[float, ...], ...]
    image: ImageRef

    def __call__(self) -> BoolMask:
        return Segmentation(([list(polygon) for polygon in self.polygons],), image_size(self.image))()


@dataclass(frozen=True)
class PngValue:
    """The pixels of a PNG file that have one value: a grey level, or an index of the palette.

    Calling it returns the mask (H, W) bool, or raises SailError if the file is missing, unreadable or has colours.
    """

    path: Path
    value: int

    def __call__(self) -> BoolMask:
        load_mask(self.path)  # for its messages
        with Image.open(self.path) as opened:
            if opened.mode not in ("1", "L", "P", "I", "I;16"):
                raise SailError(f"{self.path} has colours, not values; save it as a grey or palette PNG")
            mask: BoolMask = np.asarray(opened).astype(np.int64) == self.value
        return mask


def task_of(question: str, answer: str, choices: Sequence[str] = ()) -> Task:
    """The task of a turn, by its text.

    An answer with `<p>` and `[SEG]` is a grounded caption (`caption`); another one with `[SEG]` segments by words
    (`refer`), or by words and a region if the question names a prompt (`vres`). A turn with `choices` is multiple
    choice (`choice`), a question that names a prompt asks for its description (`describe`), anything else is `chat`.
    """
    points = "<Prompt" in question
    if SEG in answer:
        return "caption" if PHRASE_START in answer else "vres" if points else "refer"
    if choices:
        return "choice"
    return "describe" if points else "chat"


# -- reading ----------------------------------------------------------------------------------------------------------


def from_json(record: Any, root: Path, source: str = "", images: Sequence[ImageRef] | None = None) -> Sample:
    """The sample of a JSON object. Masks are not decoded; they are in the order of the `[SEG]` that refer to them.

    Args:
        record: The JSON object.
        root: Folder that relative file names refer to.
        source: Name of the data set.
        images: The images if they are not in files.

    Raises:
        SailError: A key is unknown or missing, a value has the wrong type, or masks do not match the `[SEG]`. The
            message names the key.
    """
    _keys(record, "the record", ("id", "image", "turns"), ("size", "masks", "prompts", "meta"))
    names = _image_names(record["image"])
    references = tuple(images) if images is not None else tuple(str(root / name) for name in names)
    size = None if record.get("size") is None else _size(record["size"], "size")

    def mask(value: Any, key: str) -> MaskRef:
        return _mask(value, key, root, size, next(iter(references), None))

    masks = _list(_given(record, "masks", []), "masks", mask)
    prompts = _list(_given(record, "prompts", []), "prompts", lambda value, key: _prompt(value, key, mask))
    meta = _given(record, "meta", {})
    if not isinstance(meta, dict):
        raise _wrong("meta", "an object", meta)
    turns, order = _turns(record["turns"], len(masks))
    if isinstance(meta.get(IGNORE), list):
        ignored = _list(meta[IGNORE], f"meta.{IGNORE}", lambda value, key: None if value is None else mask(value, key))
        meta = {**meta, IGNORE: _in_order(ignored, order, len(masks))}
    return Sample(
        image=references[0] if len(references) == 1 else references or None,
        turns=turns,
        masks=tuple(masks[place] for place in order),
        prompts=tuple(prompts),
        source=source,
        id=_id(record["id"]),
        meta=meta,
    )


def _turns(value: Any, masks: int) -> tuple[tuple[Turn, ...], list[int]]:
    """The turns, with targets 0, 1, 2, ..., and for each target the index of its mask in the file."""
    read = _list(value, "turns", _turn)
    if not read:
        raise SailError("turns is empty; give at least one question")
    asking = [(place, turn, given) for place, (turn, given) in enumerate(read) if SEG in turn.answer or given]
    explicit = [given is not None for _, _, given in asking]
    if any(explicit) and not all(explicit):
        lacking = asking[explicit.index(False)][0]
        raise SailError(f"turns[{lacking}] has no masks, but other turns do; give them to all turns with [SEG] or none")
    order: list[int] = []
    turns = []
    for place, (turn, given) in enumerate(read):
        segs, start = turn.answer.count(SEG), len(order)
        order += range(start, start + segs) if given is None else given
        if given is not None and len(given) != segs:
            raise SailError(
                f"turns[{place}].masks names {len(given)} masks, but its answer has {segs} [SEG]; name so many"
            )
        turns.append(replace(turn, targets=tuple(range(start, start + segs))))
    if any(explicit):
        for place in order:
            if not 0 <= place < masks:
                raise SailError(f"a turn names mask {place}, but masks has {masks}, counted from 0")
        if unused := sorted(set(range(masks)) - set(order)):
            raise SailError(f"masks[{unused[0]}] is named by no turn; name or remove it")
    elif len(order) != masks:
        raise SailError(f"masks has {masks}, but the answers have {len(order)} [SEG]; give one mask per [SEG]")
    return tuple(turns), order


def _in_order(ignored: Sequence[MaskRef | None], order: Sequence[int], masks: int) -> list[MaskRef | None]:
    """The ignored regions in the order in which their masks are written or read."""
    if len(ignored) != masks:
        raise SailError(f"meta.{IGNORE} has {len(ignored)}, but there are {masks} masks; give a mask or null for each")
    return [ignored[place] for place in order]


def _turn(value: Any, key: str) -> tuple[Turn, list[int] | None]:
    """A turn without targets, and the indices of the masks that it names."""
    _keys(value, key, ("question", "answer"), ("task", "choices", "masks"))
    question, answer = (_text(value[name], f"{key}.{name}") for name in ("question", "answer"))
    choices = tuple(_list(_given(value, "choices", []), f"{key}.choices", _text))
    masks = value.get("masks")
    named = None if masks is None else _list(masks, f"{key}.masks", _whole)
    task = _given(value, "task", task_of(question, answer, choices))
    if task not in TASKS:
        raise SailError(f"{key}.task must be one of {', '.join(TASKS)}, not {_shown(task)}")
    return Turn(question, answer, task, (), choices), named


def _mask(value: Any, key: str, root: Path, size: tuple[int, int] | None, image: ImageRef | None) -> MaskRef:
    if isinstance(value, str):
        return str(root / value)
    if not isinstance(value, dict):
        raise _wrong(key, "an RLE, polygons or a PNG file", value)
    if "png" in value:
        _keys(value, key, ("png",), ("value",))
        path = root / _text(value["png"], f"{key}.png")
        return str(path) if value.get("value") is None else PngValue(path, _whole(value["value"], f"{key}.value"))
    if "polygons" in value:
        _keys(value, key, ("polygons",))
        polygons = _list(value["polygons"], f"{key}.polygons", _polygon)
        if size is not None:
            return Segmentation((polygons,), size)
        if image is None:
            raise SailError(f"{key} needs an image, but image is null")
        return Outlines(tuple(tuple(polygon) for polygon in polygons), image)
    if "counts" not in value:
        raise SailError(f"{key} has none of the keys counts, polygons and png; write an RLE, polygons or a PNG file")
    _keys(value, key, ("size", "counts"))
    counts = value["counts"]
    if not isinstance(counts, str):
        counts = _list(counts, f"{key}.counts", _whole)
    own = _size(value["size"], f"{key}.size")
    return Segmentation(({"size": list(own), "counts": counts},), own)


def _polygon(value: Any, key: str) -> list[float]:
    numbers = _list(value, key, _number)
    if len(numbers) < 6 or len(numbers) % 2:
        raise SailError(f"{key} has {len(numbers)} numbers; a polygon needs three or more points x, y")
    return numbers


def _prompt(value: Any, key: str, mask: Callable[[Any, str], MaskRef]) -> Prompt:
    given = [name for name in REGIONS if isinstance(value, dict) and name in value]
    if isinstance(value, dict) and len(given) != 1:
        raise SailError(f"{key} has {' and '.join(given) or 'no region'}; give it one of {', '.join(REGIONS)}")
    _keys(value, key, given, ("id",))
    (form,) = given
    region, place = value[form], f"{key}.{form}"
    id = None if value.get("id") is None else _whole(value["id"], f"{key}.id")
    if form == "mask":
        return Mask(mask(region, place), id)
    if form == "scribble":
        points = _list(region, place, lambda point, at: tuple(_numbers(point, at, 2)))
        if len(points) < 2:
            raise SailError(f"{place} has {len(points)} points; a line needs two or more")
        return Scribble(tuple(points), id)
    if form == "point":
        x, y = _numbers(region, place, 2)
        return Point(x, y, id)
    x0, y0, x1, y1 = _numbers(region, place, 4)
    if x0 >= x1 or y0 >= y1:
        raise SailError(f"{place} is {[x0, y0, x1, y1]}; a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    return Box(x0, y0, x1, y1, id)


def _image_names(value: Any) -> list[str]:
    if value is None:
        return []
    return [_text(value, "image")] if not isinstance(value, list) else _list(value, "image", _text)


def _keys(value: Any, key: str, needed: Iterable[str], others: Iterable[str] = ()) -> None:
    """Checks the keys of an object."""
    if not isinstance(value, dict):
        raise _wrong(key, "an object", value)
    needed, known = list(needed), [*needed, *others]
    if missing := [name for name in needed if name not in value]:
        raise SailError(f"{key} has no key {missing[0]}")
    if unknown := [name for name in value if name not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise SailError(f"{key} has an unknown key {unknown[0]}; {hint}")


def _given(value: Record, name: str, default: Any) -> Any:
    """The value of an optional key; `default` if it is missing or null."""
    return default if value.get(name) is None else value[name]


def _list(value: Any, key: str, each: Callable[[Any, str], Any]) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(key, "a list", value)
    return [each(item, f"{key}[{place}]") for place, item in enumerate(value)]


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _wrong(key, "a text", value)
    return value


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong("id", "a text", value)
    return str(value)


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(key, "a whole number", value)
    return value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(key, "a number", value)
    return float(value)


def _numbers(value: Any, key: str, count: int) -> list[float]:
    numbers: list[float] = _list(value, key, _number)
    if len(numbers) != count:
        raise SailError(f"{key} has {len(numbers)} numbers instead of {count}")
    return numbers


def _size(value: Any, key: str) -> tuple[int, int]:
    sides = _list(value, key, _whole)
    if len(sides) != 2 or min(sides) < 1:
        raise SailError(f"{key} must be [height, width] in pixels, not {_shown(value)}")
    return sides[0], sides[1]


def _wrong(key: str, wanted: str, value: Any) -> SailError:
    return SailError(f"{key} must be {wanted}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else f"{text[:37]}..."


# -- writing ----------------------------------------------------------------------------------------------------------


def to_json(sample: Sample, images: Sequence[str]) -> Record:
    """A sample as a JSON object, from which `from_json` makes an equal sample; masks are stored as RLE.

    Args:
        sample: A sample of any source.
        images: File names of its images in the object.

    Raises:
        SailError: An image or mask cannot be read or does not fit, or targets do not match the `[SEG]`.
    """
    size = image_size(sample.images[0]) if sample.images else None
    order = [_target(sample, place, target) for place, turn in enumerate(sample.turns) for target in turn.targets]
    if unused := sorted(set(range(len(sample.masks))) - set(order)):
        raise SailError(f"mask {unused[0]} belongs to no [SEG]; no target of a turn names it")
    record: Record = {"id": sample.id, "image": named(images)}
    if size is not None:
        record["size"] = list(size)
    record["turns"] = [_turn_record(turn, place) for place, turn in enumerate(sample.turns)]
    if order:
        record["masks"] = [_rle(sample.masks[place], size, f"mask {place}") for place in order]
    if sample.prompts:
        record["prompts"] = [_prompt_record(prompt, place, size) for place, prompt in enumerate(sample.prompts)]
    if sample.meta:
        record["meta"] = sample.meta
    if isinstance(given := sample.meta.get(IGNORE), list | tuple):
        ignored = [
            None if mask is None else _rle(mask, size, f"the ignored region of mask {place}")
            for place, mask in enumerate(_in_order(given, order, len(sample.masks)))
        ]
        record["meta"] = {**sample.meta, IGNORE: ignored}
    return record


def as_line(record: Record) -> bytes:
    """A JSON object as a line of a file.

    Raises:
        SailError: `meta` or a text holds a value that JSON cannot hold.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise SailError(f"it cannot be written as JSON ({error}); fix its meta or its text") from None


def named(images: Sequence[str]) -> str | list[str] | None:
    """The value of the key `image`: None, one file name, or a list of several."""
    return list(images) if len(images) > 1 else next(iter(images), None)


def _target(sample: Sample, place: int, target: int) -> int:
    if not 0 <= target < len(sample.masks):
        raise SailError(f"turn {place} has target {target}, but there are {len(sample.masks)} masks")
    return target


def _turn_record(turn: Turn, place: int) -> Record:
    segs = turn.answer.count(SEG)
    if segs != len(turn.targets):
        raise SailError(f"turn {place} has {segs} [SEG] in its answer but {len(turn.targets)} targets")
    record: Record = {"question": turn.question, "answer": turn.answer, "task": turn.task}
    if turn.choices:
        record["choices"] = list(turn.choices)
    return record


def _rle(mask: MaskRef, size: tuple[int, int] | None, name: str) -> Record:
    decoded = load_mask(mask)
    if decoded.shape != size:
        raise SailError(f"{name} has {decoded.shape} pixels (height, width), but the image has {size}")
    return encode_rle(decoded)


def _prompt_record(prompt: Prompt, place: int, size: tuple[int, int] | None) -> Record:
    record: Record
    if isinstance(prompt, Mask):
        record = {"mask": _rle(prompt.mask, size, f"the mask of prompt {place}")}
    elif isinstance(prompt, Box):
        record = {"box": [float(side) for side in (prompt.x0, prompt.y0, prompt.x1, prompt.y1)]}
    elif isinstance(prompt, Point):
        record = {"point": [float(prompt.x), float(prompt.y)]}
    else:
        record = {"scribble": [[float(x), float(y)] for x, y in prompt.points]}
    return record if prompt.id is None else {**record, "id": prompt.id}


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as plain values."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain")
