"""The record of one answer and its truth, which is all that a metric sees, and its line of JSON in a file.

| key | type | meaning |
|---|---|---|
| `id` | text or whole number | names the sample |
| `benchmark` | text | its beginning decides what is measured (`benchmarks.kind_of`) |
| `question` | text | as asked |
| `text` | text | the answer, as generated |
| `pred` | list of COCO RLE | predicted masks, one per `[SEG]`, in order; `[]` or null where there is none |
| `target` | list of COCO RLE | true masks; `[]` says that nothing is meant |
| `ignore` | COCO RLE or null | pixels that no metric counts |
| `size` | [height, width] or null | the image's size in pixels; null means that of the masks |
| `prompts` | list | regions that the question points at; kept, not judged |
| `task` | text | the task of the question (`sample.Task`), which decides where the benchmark's name does not |
| `choices` | list of text | options of a multiple-choice question |
| `answer` | text | the right option, or yes or no |
| `reference` | text or list of text | the true caption, or several |
| `phrases`, `reference_phrases` | list of text | a phrase per mask; absent: the `<p>` of the texts |
| `score` | object | how the answer was judged; written, ignored when read |

`id` and `benchmark` are always needed, `pred` and `target` where masks are judged, `text` and the truth where words
are. Other keys are kept. In Python, `text` is `EvalRecord.prediction` and `answer` is `EvalRecord.true_answer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pycocotools import mask as coco
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.evaluate.benchmarks import CAPTION_KINDS, CHOICE_KINDS, MASK_KINDS, Kind, kind_of
from sail_lightning.evaluate.metrics.masks import Masks, as_pair
from sail_lightning.image.run_lengths import encode_rle
from sail_lightning.image.segmentations import decode
from sail_lightning.sample import BoolMask, Task
from sail_lightning.sequence.chat_template import phrases_of
from sail_lightning.settings.ranges import before_init
from sail_lightning.settings.renames import RenamedAttribute, renamed

MAX_IMAGE_SIDE = 100_000
"""Longest accepted side of an image, in pixels; a larger number is a mistake."""
MAX_DECLARED_PIXELS = 1 << 28
"""Largest number of pixels of an image without masks, because only its stated size would reserve the memory."""
Rle = dict[str, Any]
"""COCO's run-length code of a mask: `size` [height, width], `counts` text or list."""
MaskLike = Rle | BoolMask
"""A mask as a run-length code, or as pixels (H, W) bool."""
MaskList = Sequence[MaskLike] | BoolMask | Tensor
"""Several masks: each in one of these forms, or all as pixels (n, H, W) bool."""


@dataclass(frozen=True)
class EvalRecord:
    """One prediction and its truth; the module's docstring says what each field means.

    Masks may be run-length codes, as in files, or pixels, as a model gives them; each form is computed from the other
    only when needed (`masks`, `to_json`). `kind` is the kind of benchmark that judges the record, if it is decided.
    """

    id: str = ""
    benchmark: str = ""
    question: str = ""
    prediction: str = ""
    pred: MaskList = ()
    target: MaskList = ()
    ignore: MaskLike | Tensor | None = None
    size: tuple[int, int] | None = None
    prompts: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    true_answer: str | None = None
    reference: tuple[str, ...] = ()
    phrases: tuple[str, ...] | None = None
    reference_phrases: tuple[str, ...] | None = None
    listed: bool | None = None
    """Whether the record lists masks, even empty lists; None means yes where it has masks or no truth in words."""
    kind: Kind | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    text = RenamedAttribute("prediction")
    answer = RenamedAttribute("true_answer")
    masked = RenamedAttribute("has_masks")
    held = RenamedAttribute("present_keys")

    @property
    def name(self) -> str:
        """The record's name in messages."""
        return f"answer {self.id!r} of {self.benchmark}" if self.benchmark else f"answer {self.id!r}"

    @property
    def task(self) -> Task | None:
        """The task of the question, None if the record does not state it."""
        task = self.extra.get("task")
        return task if task in get_args(Task) else None

    @property
    def dedup_key(self) -> str:
        """The identity of the question as text; two records that share it answer the same question."""
        target, ignore = [_compressed(_code(one)) for one in self.target], _ignore_code(self.ignore)
        ignore = ignore and _compressed(ignore)
        parts = (self.id, self.question, target, ignore, self.prompts, self.choices, self.true_answer)
        return json.dumps([*parts, self.reference, self.reference_phrases], sort_keys=True)

    @property
    def number(self) -> int | None:
        """The record's index in its source, None where its line states none; a source may hold a question twice."""
        number = self.extra.get("number")
        return number if type(number) is int else None

    @property
    def has_masks(self) -> bool:
        """Whether the record lists masks; an answer in words is written without them."""
        if self.listed is not None:
            return self.listed
        return bool(len(self.pred) or len(self.target)) or not self.has_words

    @property
    def has_words(self) -> bool:
        """Whether there is a truth in words."""
        return bool(self.choices or self.true_answer or self.reference)

    @property
    def truth(self) -> str:
        """The truth in words: the right answer, else the first reference, else an empty text."""
        return self.true_answer or (self.reference[0] if self.reference else "")

    @property
    def present_keys(self) -> set[str]:
        """The keys of the record's JSON that are not empty, as `benchmarks.kind_of` takes them."""
        held = {"choices": self.choices, "reference": any(self.reference), "answer": self.true_answer}
        listed = {"pred": len(self.pred), "target": len(self.target), "masks": True} if self._lists_masks else {}
        return {key for key, value in {**held, **listed}.items() if value}

    @property
    def predicted_phrases(self) -> tuple[str, ...]:
        """The phrase of each predicted mask: `phrases`, or else those marked in the predicted text."""
        return phrases_of(self.prediction) if self.phrases is None else self.phrases

    @property
    def true_phrases(self) -> tuple[str, ...]:
        """The phrase of each true mask: `reference_phrases`, or else those marked in the first reference."""
        if self.reference_phrases is not None:
            return self.reference_phrases
        return phrases_of(self.reference[0]) if self.reference else ()

    def masks(self) -> tuple[Masks, Masks, Masks | None]:
        """Returns predicted masks (n, H, W), true masks (m, H, W) and ignored pixels (H, W) or None, all bool.

        Raises:
            SailError: An RLE cannot be decoded, or masks differ in size.
        """
        listed = [*self._codes(self.pred), *self._codes(self.target), *self._codes([self.ignore])]
        size = self.size or ((listed[0]["size"][0], listed[0]["size"][1]) if listed else None) or self._pixel_size()
        if not listed and size[0] * size[1] > MAX_DECLARED_PIXELS:
            size = (0, 0)
        with self.named():
            pred, target = (_stacked(masks, size) for masks in (self.pred, self.target))
            ignore = decode(self.ignore, size) if isinstance(self.ignore, dict) else self.ignore
            return pred, target, ignore

    def united_masks(self) -> tuple[BoolMask, BoolMask]:
        """Returns the union of the predicted and that of the true masks, each (H, W) bool, without ignored pixels.

        Raises:
            SailError: An RLE cannot be decoded, or masks differ in size.
        """
        pred, target, ignore = self.masks()
        left, right = (masks.any(0).cpu().numpy() for masks in as_pair(pred, target))
        keep = True if ignore is None else ~np.asarray(ignore)
        return left & keep, right & keep

    @contextmanager
    def named(self) -> Iterator[None]:
        """Lets the message of a `SailError` within this context begin with the record's name."""
        try:
            yield
        except SailError as error:
            if str(error).startswith(self.name):
                raise
            raise SailError(f"{self.name}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as it is written to a file; optional fields that are not set are left out."""
        record: dict[str, Any] = {
            "id": self.id,
            "benchmark": self.benchmark,
            "question": self.question,
            "text": self.prediction,
        }
        if self._lists_masks:
            pred, target = ([_code(mask) for mask in masks] for masks in (self.pred, self.target))
            record |= {"pred": pred, "target": target, "ignore": _ignore_code(self.ignore)}
        record["size"] = list(self.size) if self.size else None
        reference = self.reference[0] if len(self.reference) == 1 else list(self.reference)
        optional = {"prompts": list(self.prompts), "choices": list(self.choices), "reference": reference}
        record |= {key: value for key, value in optional.items() if value}
        if self.true_answer is not None:
            record["answer"] = self.true_answer
        for key in ("phrases", "reference_phrases"):
            value = getattr(self, key)
            if value is not None:
                record[key] = list(value)
        return record | {key: value for key, value in self.extra.items() if key not in record}

    @property
    def _lists_masks(self) -> bool:
        return self.has_masks or kind_of(self.benchmark, ()) in MASK_KINDS

    @staticmethod
    def _codes(masks: Any) -> list[Rle]:
        return [mask for mask in masks if isinstance(mask, dict)]

    def _pixel_size(self) -> tuple[int, int]:
        """Returns the (height, width) of masks that are given as pixels, (0, 0) if there are none."""
        pixels = (mask for masks in (self.pred, self.target) for mask in masks if not isinstance(mask, dict))
        found = next(pixels, None)
        return (found.shape[-2], found.shape[-1]) if found is not None and found.ndim > 1 else (0, 0)

    @classmethod
    def from_json(cls, record: Any, where: str = "the record") -> EvalRecord:
        """Reads a record from a parsed line of JSON.

        Raises:
            SailError: A key is missing or has the wrong type; the message begins with `where`.
        """
        if not isinstance(record, dict):
            raise SailError(f"{where} is not a JSON object; write one object a line")
        read: dict[str, Any] = {}
        for key, (wanted, parse) in _KEYS.items():
            value = record.get(key)
            if value is None or (key == "ignore" and value == []):
                continue
            read[key] = parse(value)
            if read[key] is None:
                raise SailError(f"{where}: {key} must be {wanted}, not {_brief(value)}")
        _check_keys(record, where)
        _check_sizes(read, where)
        extra = {key: value for key, value in record.items() if key not in _KEYS and key != "score"}
        fields = {_FIELDS.get(key, key): value for key, value in read.items()}
        return cls(**fields, extra=extra, listed=bool({"pred", "target", "masks"} & _held(record)))


before_init(EvalRecord, lambda self, init, bound: None)  # takes the arguments text and answer of version 0.1.0


def read_records(path: str | Path) -> Iterator[EvalRecord]:
    """Reads the records of a JSON-lines file (UTF-8, with or without byte order mark); empty lines are skipped.

    Raises:
        SailError: The file does not exist, or a line is not a record; the message names line and key.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path} line {number}"
                    yield EvalRecord.from_json(_parsed(line, where), where)
    except OSError as error:
        raise SailError(f"{path} cannot be read ({error.strerror}); name a JSON-lines file of answers") from None
    except UnicodeDecodeError:
        raise SailError(f"{path} is not UTF-8 text; name a JSON-lines file of answers") from None


def _stacked(masks: MaskList, size: tuple[int, int]) -> Masks:
    """Returns masks as pixels (n, H, W) bool; run-length codes are decoded."""
    if isinstance(masks, np.ndarray | Tensor):
        return masks
    pixels = [decode(mask, size) if isinstance(mask, dict) else mask for mask in masks]
    return np.stack(pixels) if pixels else np.zeros((0, *size), bool)


def _code(mask: Any) -> Rle:
    """Returns a mask, pixels (H, W) bool or a code, as a run-length code."""
    return mask if isinstance(mask, dict) else encode_rle(np.asarray(mask))


def _ignore_code(ignore: Any) -> Rle | None:
    return None if ignore is None else _code(ignore)


def needed(kind: Kind) -> tuple[str, ...]:
    """Returns the keys that a record of this kind must hold, beside `id` and `benchmark`."""
    return ("pred", "target") if kind in MASK_KINDS or kind == "refer" else ("text",)


def _held(record: Mapping[str, Any]) -> set[str]:
    """Returns the keys of a record that are not empty, and `masks` where it has a list of true masks, even empty."""
    return {key for key, value in record.items() if value} | ({"masks"} if record.get("target") is not None else set())


def _compressed(rle: Rle) -> Rle:
    """Returns the code with its counts as text, so that equal masks have equal codes; other values stay as they are."""
    counts = rle["counts"]
    if isinstance(counts, str) or not all(type(count) is int and 0 <= count < 1 << 32 for count in counts):
        return rle
    return rle | {"counts": coco.frPyObjects(rle, *rle["size"])["counts"].decode("ascii")}


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SailError(f"{where} is not JSON ({error}); remove it or write it again") from None


def _check_keys(record: Mapping[str, Any], where: str) -> None:
    """Checks that a record has the keys that the kind of its benchmark needs."""
    for key in ("id", "benchmark"):
        if record.get(key) is None:
            raise SailError(f"{where} has no key {key}; every answer needs one")
    answers = [record["answer"]] if record.get("answer") else []
    kind = kind_of(str(record["benchmark"]), _held(record), answers, record.get("task"))
    for key in needed(kind):
        # A prediction of null is an empty answer, but a truth of null may have been forgotten.
        if key not in record or (record[key] is None and key == "target"):
            raise SailError(f"{where} has no key {key}, which an answer of kind {kind} needs")
    if kind in (*CHOICE_KINDS, *CAPTION_KINDS, "pope") and not any(record.get(key) for key in ("answer", "reference")):
        key = "reference" if kind in CAPTION_KINDS else "answer"
        raise SailError(f"{where} has no key {key}, by which an answer of kind {kind} is judged")


def _check_sizes(read: Mapping[str, Any], where: str) -> None:
    """Checks that all masks of a record have the record's size."""
    size = read.get("size")
    for key in ("pred", "target", "ignore"):
        rles = read.get(key, ())
        for rle in (rles,) if isinstance(rles, dict) else rles:
            own = (rle["size"][0], rle["size"][1])
            size = size or own
            if own != size:
                sizes = f"{list(own)}, but the record's is {list(size)}"
                raise SailError(f"{where}: a mask of {key} has size {sizes} (height, width)")


def _name(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value) or None


def _text(value: Any) -> str | None:
    # JSON can escape a lone surrogate, which UTF-8 cannot encode.
    return value if isinstance(value, str) and not re.search("[\ud800-\udfff]", value) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    texts = [_text(part) for part in value] if isinstance(value, list) else [None]
    return None if None in texts else tuple(text for text in texts if text is not None)


def _one_or_more(value: Any) -> tuple[str, ...] | None:
    return _texts([value] if isinstance(value, str) else value)


def _anything(value: Any) -> tuple[Any, ...] | None:
    return tuple(value) if isinstance(value, list) else None


def _size(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    return (value[0], value[1]) if all(type(side) is int and 0 < side <= MAX_IMAGE_SIDE for side in value) else None


def _rle(value: Any) -> Rle | None:
    fits = isinstance(value, dict) and isinstance(value.get("counts"), (str, list)) and _size(value.get("size"))
    return {"size": value["size"], "counts": value["counts"]} if fits else None


def _rles(value: Any) -> tuple[Rle, ...] | None:
    rles = [_rle(part) for part in value] if isinstance(value, list) else [None]
    return None if None in rles else tuple(rle for rle in rles if rle)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_RLE = f"{{size: [height, width], at most {MAX_IMAGE_SIDE:,} each, counts}}"
_RLES = f"a list of COCO RLE, {_RLE}"
_FIELDS = {"text": "prediction", "answer": "true_answer"}
"""Keys of the JSON whose fields have another name."""
_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "id": ("text or a whole number", _name),
    "benchmark": ("text", _name),
    "question": ("text", _text),
    "text": ("text", _text),
    "pred": (_RLES, _rles),
    "target": (_RLES, _rles),
    "ignore": (f"a COCO RLE, {_RLE}, or null", _rle),
    "size": (f"[height, width] (at most {MAX_IMAGE_SIDE:,} each) or null", _size),
    "prompts": ("a list", _anything),
    "choices": ("a list of text", _texts),
    "answer": ("text", _text),
    "reference": ("text or a list of text", _one_or_more),
    "phrases": ("a list of text", _texts),
    "reference_phrases": ("a list of text", _texts),
}


__getattr__ = renamed(__name__, {"Answer": "EvalRecord", "read_answers": "read_records"})
