"""Our own format: a sample is one JSON object, in files of one object a line, in Parquet, and in shards.

```
{"id": "7", "image": "photos/7.jpg",
 "turns": [{"question": "Please segment the cat.", "answer": "It is [SEG]."}],
 "masks": [{"png": "masks/7.png"}]}
```

| key | what it holds |
|---|---|
| `id` | names the record in messages: a text or a whole number |
| `image` | a file; several; or null for words only |
| `size` | optional: [height, width] of the (first) picture |
| `turns` | `{"question", "answer", "task"?, "choices"?, "masks"?}` each |
| `masks` | optional: of the first picture, in the order in which the answers say `[SEG]` |
| `prompts` | optional: `{"mask" or "box" or "point" or "scribble", "id"?}` each, named `<PromptK>` in the questions |
| `meta` | optional: anything; a list under `ignore` has a mask or null for each of `masks`, pixels that do not count |

A mask is a COCO RLE, `{"size", "counts"}`, compressed or not; `{"polygons": [[x, y, x, y, ...], ...]}` in pixels;
a PNG file, of which all that is neither zero nor transparent is on; or `{"png": file, "value": v}`, of which the pixels
of value v are (of a palette picture its indices). A box is [x0, y0, x1, y1], x1 and y1 exclusive; a point [x, y]; a
scribble [[x, y], ...]; `id` is K, else the prompt's place in the list.

`masks` of a turn are indices, one for each `[SEG]` of its answer, for masks that are named twice or in another order;
all turns give them, or none. Without a `task`, what a turn asks follows from its words (`task_of`).
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
from sail_lightning.generation.prediction import encode_rle
from sail_lightning.image.preprocessing import image_size, load_mask
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
"""Of `meta`: a mask or None beside each mask of the sample, of pixels that count nowhere (ReasonSeg, E16)."""


@dataclass(frozen=True)
class Outlines:
    """The union of polygons on a picture whose size is read from its file when the mask is called for."""

    polygons: tuple[tuple[float, ...], ...]
    image: ImageRef

    def __call__(self) -> BoolMask:
        return Segmentation(([list(polygon) for polygon in self.polygons],), image_size(self.image))()


@dataclass(frozen=True)
class PngValue:
    """The pixels of a PNG that have one value: a grey level, or the index of a palette picture.

    Raises, when called:
        SailError: the file is missing or unreadable, or has colours.
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
    """What a turn asks, by its words: an answer with `<p>` is a grounded caption, one with `[SEG]` segments by words
    (or, where the question names a prompt, by words and a region); `choices` make a multiple choice; a question that
    names a prompt asks for its description; anything else is chat.
    """
    points = "<Prompt" in question
    if SEG in answer:
        return "caption" if PHRASE_START in answer else "vres" if points else "refer"
    if choices:
        return "choice"
    return "describe" if points else "chat"


# -- reading ----------------------------------------------------------------------------------------------------------


def from_json(record: Any, root: Path, source: str = "", images: Sequence[ImageRef] | None = None) -> Sample:
    """A sample of a JSON object. Masks stay undecoded, and are put in the order of the `[SEG]`s that name them.

    Args:
        record: the object.
        root: the folder that relative file names start from.
        source: of the sample.
        images: the pictures, where they do not lie in files.

    Raises:
        SailError: a key that is unknown or missing, a value of the wrong type, or masks that do not match the `[SEG]`s;
            the message names the key.
    """
    _keys(record, "the record", ("id", "image", "turns"), ("size", "masks", "prompts", "meta"))
    names = _image_names(record["image"])
    pictures = tuple(images) if images is not None else tuple(str(root / name) for name in names)
    size = None if record.get("size") is None else _size(record["size"], "size")

    def mask(value: Any, key: str) -> MaskRef:
        return _mask(value, key, root, size, next(iter(pictures), None))

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
        image=pictures[0] if len(pictures) == 1 else pictures or None,
        turns=turns,
        masks=tuple(masks[place] for place in order),
        prompts=tuple(prompts),
        source=source,
        id=_id(record["id"]),
        meta=meta,
    )


def _turns(value: Any, masks: int) -> tuple[tuple[Turn, ...], list[int]]:
    """The turns, whose targets count up, and the number in the file of the mask of each target."""
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
    """What is to be ignored beside each mask, in the order in which the masks are written or read."""
    if len(ignored) != masks:
        raise SailError(f"meta.{IGNORE} has {len(ignored)}, but there are {masks} masks; give a mask or null for each")
    return [ignored[place] for place in order]


def _turn(value: Any, key: str) -> tuple[Turn, list[int] | None]:
    """A turn without targets, and the masks that it names."""
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
            raise SailError(f"{key} needs a picture, but image is null")
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
    """An optional value; null is none."""
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
    """A sample as a JSON object, from which `from_json` makes an equal one; masks are decoded, and stored as RLE.

    Args:
        sample: of any source.
        images: the file names of its pictures, as the object shall name them.

    Raises:
        SailError: a picture or mask that cannot be read or does not fit, or targets that do not match the `[SEG]`s.
    """
    pictures = pictures_of(sample)
    size = image_size(pictures[0]) if pictures else None
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
    """An object as a line of a file.

    Raises:
        SailError: `meta` or a text holds what JSON cannot.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise SailError(f"it cannot be written as JSON ({error}); mend its meta or its text") from None


def named(images: Sequence[str]) -> str | list[str] | None:
    """The value of `image`: no, one or several file names."""
    return list(images) if len(images) > 1 else next(iter(images), None)


def pictures_of(sample: Sample) -> tuple[ImageRef, ...]:
    """A sample's pictures: none, one or several."""
    if sample.image is None:
        return ()
    return sample.image if isinstance(sample.image, tuple) else (sample.image,)


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
        raise SailError(f"{name} has {decoded.shape} pixels (height, width), but the picture has {size}")
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
    """Numbers and arrays of numpy."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain")
