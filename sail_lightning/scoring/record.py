"""One judged answer as a line of JSON: what a test writes, and what anybody's file may hold.

| key | type | meaning |
|---|---|---|
| `id` | text or whole number | names the sample |
| `benchmark` | text | by its beginning decides what is measured (`benchmarks.kind_of`) |
| `question` | text | as asked |
| `text` | text | the answer, as generated |
| `pred` | list of COCO RLE | predicted masks, one per `[SEG]`, in order; `[]` or null where there is none |
| `target` | list of COCO RLE | true masks; `[]` says that nothing is meant |
| `ignore` | COCO RLE or null | pixels that count nowhere |
| `size` | [height, width] or null | of the picture; null: that of the masks |
| `prompts` | list | regions the question points at; kept, not judged |
| `choices` | list of text | options of a multiple-choice question |
| `answer` | text | the right option, or yes or no |
| `reference` | text or list of text | the true caption, or several |
| `phrases`, `reference_phrases` | list of text | a phrase per mask; absent: the `<p>` of the texts |
| `score` | object | how the answer was judged; written, ignored when read |

`id` and `benchmark` are always needed, `pred` and `target` where masks are judged, `text` and the truth where words
are. Other keys are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import decode
from sail_lightning.sample import BoolMask
from sail_lightning.scoring.benchmarks import CAPTION_KINDS, CHOICE_KINDS, MASK_KINDS, Kind, kind_of
from sail_lightning.sequence.chat_template import phrases_of

LARGEST = 100_000
"""Longest side of a picture, in pixels: a larger number is a mistake."""
STATED = 1 << 28
"""Pixels of a picture without any mask for which memory is taken, at most: its size is only stated."""
Rle = dict[str, Any]
"""COCO's run-length code of a mask: `size` [height, width], `counts` text or list."""


@dataclass(frozen=True)
class Answer:
    """One answer beside its truth; the module's docstring says what each field means."""

    id: str
    benchmark: str
    question: str = ""
    text: str = ""
    pred: tuple[Rle, ...] = ()
    target: tuple[Rle, ...] = ()
    ignore: Rle | None = None
    size: tuple[int, int] | None = None
    prompts: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    answer: str | None = None
    reference: tuple[str, ...] = ()
    phrases: tuple[str, ...] | None = None
    reference_phrases: tuple[str, ...] | None = None
    listed: bool | None = None
    """Whether masks are listed at all, be the lists empty; None: where there are some, or no truth in words."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"answer {self.id!r} of {self.benchmark}"

    @property
    def truth(self) -> str:
        """All that makes it this question and no other; two answers that share it judge the same thing."""
        target, ignore = [_compressed(rle) for rle in self.target], self.ignore and _compressed(self.ignore)
        parts = (self.id, self.question, target, ignore, self.prompts, self.choices, self.answer)
        return json.dumps([*parts, self.reference, self.reference_phrases], sort_keys=True)

    @property
    def masked(self) -> bool:
        """Whether masks are listed; of an answer in words they are left out when it is written."""
        if self.listed is not None:
            return self.listed
        return bool(self.pred or self.target) or not (self.choices or self.answer or self.reference)

    @property
    def held(self) -> set[str]:
        """The keys that are not empty, as `benchmarks.kind_of` asks for them."""
        return _held(self.to_json()) - (set() if self.masked else {"masks"})

    @property
    def predicted_phrases(self) -> tuple[str, ...]:
        """The phrase of each predicted mask: `phrases`, or those of the text."""
        return phrases_of(self.text) if self.phrases is None else self.phrases

    @property
    def true_phrases(self) -> tuple[str, ...]:
        """The phrase of each true mask: `reference_phrases`, or those of the first reference."""
        if self.reference_phrases is not None:
            return self.reference_phrases
        return phrases_of(self.reference[0]) if self.reference else ()

    def masks(self) -> tuple[BoolMask, BoolMask, BoolMask | None]:
        """Predicted (n, H, W) and true masks (m, H, W) and ignored pixels (H, W) or None, all bool.

        Raises:
            SailError: an RLE that cannot be decoded, or is of another size than the others.
        """
        coded = [*self.pred, *self.target, *([self.ignore] if self.ignore else [])]
        size = self.size or ((coded[0]["size"][0], coded[0]["size"][1]) if coded else (0, 0))
        if not coded and size[0] * size[1] > STATED:
            size = (0, 0)
        try:
            pred, target = (
                np.stack([_decode(rle, size) for rle in rles]) if rles else np.zeros((0, *size), bool)
                for rles in (self.pred, self.target)
            )
            return pred, target, _decode(self.ignore, size) if self.ignore else None
        except SailError as error:
            raise SailError(f"{self.name}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The record as it is written; optional fields that are not set are left out."""
        record: dict[str, Any] = {
            "id": self.id,
            "benchmark": self.benchmark,
            "question": self.question,
            "text": self.text,
        }
        if self.masked or kind_of(self.benchmark, ()) in MASK_KINDS:
            record |= {"pred": list(self.pred), "target": list(self.target), "ignore": self.ignore}
        record["size"] = list(self.size) if self.size else None
        reference = self.reference[0] if len(self.reference) == 1 else list(self.reference)
        optional = {"prompts": list(self.prompts), "choices": list(self.choices), "reference": reference}
        record |= {key: value for key, value in optional.items() if value}
        for key in ("answer", "phrases", "reference_phrases"):
            value = getattr(self, key)
            if value is not None:
                record[key] = list(value) if isinstance(value, tuple) else value
        return record | {key: value for key, value in self.extra.items() if key not in record}

    @classmethod
    def from_json(cls, record: Any, where: str = "the record") -> Answer:
        """An answer from a parsed line.

        Raises:
            SailError: a key that is missing or of the wrong type; the message begins with `where`.
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
        return cls(**read, extra=extra, listed=bool({"pred", "target", "masks"} & _held(record)))


def read_answers(path: str | Path) -> Iterator[Answer]:
    """The answers of a JSON-lines file (UTF-8, with or without byte order mark); empty lines are passed over.

    Raises:
        SailError: no such file, or a line that is not a record; names line and key.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path} line {number}"
                    yield Answer.from_json(_parsed(line, where), where)
    except OSError as error:
        raise SailError(f"{path} cannot be read ({error.strerror}); name a JSON-lines file of answers") from None
    except UnicodeDecodeError:
        raise SailError(f"{path} is not UTF-8 text; name a JSON-lines file of answers") from None


def _decode(rle: Rle, size: tuple[int, int]) -> BoolMask:
    return decode(rle, size)


def needed(kind: Kind) -> tuple[str, ...]:
    """The keys that a record of this kind must hold, beside `id` and `benchmark`."""
    return ("pred", "target") if kind in MASK_KINDS or kind == "refer" else ("text",)


def _held(record: Mapping[str, Any]) -> set[str]:
    """The keys of a record that are not empty, and `masks` where it has a list of true masks, be it empty."""
    return {key for key, value in record.items() if value} | ({"masks"} if record.get("target") is not None else set())


def _compressed(rle: Rle) -> Rle:
    """The code with its counts as text, so that one mask is one code; what is no code stays as it is."""
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
    """The keys are there that the benchmark's kind asks for."""
    for key in ("id", "benchmark"):
        if record.get(key) is None:
            raise SailError(f"{where} has no key {key}; every answer needs one")
    kind = kind_of(str(record["benchmark"]), _held(record), [record["answer"]] if record.get("answer") else [])
    for key in needed(kind):
        # null predicts or says nothing, but a truth of null could as well be forgotten
        if key not in record or (record[key] is None and key == "target"):
            raise SailError(f"{where} has no key {key}, which an answer of kind {kind} needs")
    if kind in (*CHOICE_KINDS, *CAPTION_KINDS, "pope") and not any(record.get(key) for key in ("answer", "reference")):
        key = "reference" if kind in CAPTION_KINDS else "answer"
        raise SailError(f"{where} has no key {key}, by which an answer of kind {kind} is judged")


def _check_sizes(read: Mapping[str, Any], where: str) -> None:
    """All masks of a record are of its one size."""
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
    # JSON can escape half of a character, which no file can hold
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
    return (value[0], value[1]) if all(type(side) is int and 0 < side <= LARGEST for side in value) else None


def _rle(value: Any) -> Rle | None:
    fits = isinstance(value, dict) and isinstance(value.get("counts"), (str, list)) and _size(value.get("size"))
    return {"size": value["size"], "counts": value["counts"]} if fits else None


def _rles(value: Any) -> tuple[Rle, ...] | None:
    rles = [_rle(part) for part in value] if isinstance(value, list) else [None]
    return None if None in rles else tuple(rle for rle in rles if rle)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_RLE = f"{{size: [height, width], at most {LARGEST:,} each, counts}}"
_RLES = f"a list of COCO RLE, {_RLE}"
_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "id": ("text or a whole number", _name),
    "benchmark": ("text", _name),
    "question": ("text", _text),
    "text": ("text", _text),
    "pred": (_RLES, _rles),
    "target": (_RLES, _rles),
    "ignore": (f"a COCO RLE, {_RLE}, or null", _rle),
    "size": (f"[height, width] (at most {LARGEST:,} each) or null", _size),
    "prompts": ("a list", _anything),
    "choices": ("a list of text", _texts),
    "answer": ("text", _text),
    "reference": ("text or a list of text", _one_or_more),
    "phrases": ("a list of text", _texts),
    "reference_phrases": ("a list of text", _texts),
}
