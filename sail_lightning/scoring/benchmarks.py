"""Which figures a benchmark is judged by: decided by the beginning of its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from sail_lightning.metrics.yes_no import parse_yes_no

Kind = Literal[
    "refcoco",
    "refcoco+",
    "refcocog",
    "grefcoco",
    "reasonseg",
    "gcg",
    "region_caption",
    "perbench_caption",
    "perbench_mcq",
    "perbench_vres",
    "mcq",
    "pope",
    "refer",
]
"""`refer`: any other benchmark; it is judged by masks, or by the kind that `kind_of` finds in its records."""

MASK_KINDS: tuple[Kind, ...] = ("refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "gcg", "perbench_vres")
"""Kinds whose records must say what was predicted and what is true, as masks."""
CAPTION_KINDS: tuple[Kind, ...] = ("region_caption", "perbench_caption")
CHOICE_KINDS: tuple[Kind, ...] = ("perbench_mcq", "mcq")

_NAMES: dict[str, Kind] = {
    "refcoco": "refcoco",
    "refcoco_plus": "refcoco+",
    "refcocog": "refcocog",
    "grefcoco": "grefcoco",
    "g_refcoco": "grefcoco",
    "gres": "grefcoco",
    "reasonseg": "reasonseg",
    "reason_seg": "reasonseg",
    "gcg": "gcg",
    "region_caption": "region_caption",
    "perbench_caption": "perbench_caption",
    "perbench_mcq": "perbench_mcq",
    "perbench_vres": "perbench_vres",
    "vres": "perbench_vres",
    "mcq": "mcq",
    "pope": "pope",
}
_PERBENCH_TASK = re.compile(r"(?P<stem>(?:synth[\W_]*)?perbench)[\W_]+(?:caption|mcq|vres)(?P<rest>.*)", re.IGNORECASE)
_LETTER = re.compile(r"\s*\(?[A-Za-z][.):]?\s*")


def _plain(name: str) -> str:
    """A name in small letters, digits and single `_`; `+` is `_plus`, and a leading `synth` is left out."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("+", "_plus_")).strip("_")
    return re.sub(r"^synth_?", "", plain)


def kind_of(name: str, keys: Iterable[str] = ("pred",), answers: Sequence[str] = ()) -> Kind:
    """The kind of a benchmark.

    Args:
        name: it begins with a kind's name, alone or before a separator: `refcoco_val`, `RefCOCO+ testA`,
            `perbench/mcq`, `synthperbench_vres`.
        keys: those that are not empty in its records; asked only where the name says nothing. Masks make it `refer`,
            else `choices` `mcq`, `masks` (there is a list of true masks, with nothing in it) `refer`, a `reference`
            `region_caption`, an `answer` what `answers` say.
        answers: the true answers: all yes or no make it `pope`, all letters `mcq`, others `region_caption`.
    """
    plain = _plain(name)
    for prefix in sorted(_NAMES, key=len, reverse=True):
        if plain == prefix or plain.startswith(f"{prefix}_"):
            return _NAMES[prefix]
    held = set(keys)
    by_key: tuple[tuple[str, Kind], ...] = (
        ("pred", "refer"),
        ("target", "refer"),
        ("choices", "mcq"),
        ("masks", "refer"),
        ("reference", "region_caption"),
        ("answer", _kind_of_answers(answers)),
    )
    return next((kind for key, kind in by_key if key in held), "refer")


def _kind_of_answers(answers: Sequence[str]) -> Kind:
    if all(parse_yes_no(text) is not None for text in answers):
        return "pope"
    return "mcq" if all(_LETTER.fullmatch(text) for text in answers) else "region_caption"


def perbench_name(name: str) -> str | None:
    """What PerBench's three tasks have in common: `perbench/mcq` and `perbench/vres` are of `perbench`; else None."""
    match = _PERBENCH_TASK.fullmatch(name)
    return match["stem"] + match["rest"] if match else None
