"""Which figures a benchmark is judged by: decided by the beginning of its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

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
    "reasonseg": "reasonseg",
    "reason_seg": "reasonseg",
    "gcg": "gcg",
    "region_caption": "region_caption",
    "perbench_caption": "perbench_caption",
    "perbench_mcq": "perbench_mcq",
    "perbench_vres": "perbench_vres",
    "mcq": "mcq",
    "pope": "pope",
}
_PERBENCH_TASK = re.compile(r"(?P<stem>(?:synth[_/-]?)?perbench)[_/-](?:caption|mcq|vres)(?P<rest>.*)", re.IGNORECASE)


def _plain(name: str) -> str:
    """A name in small letters, digits and single `_`; `+` is `_plus`, and a leading `synth` is left out."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("+", "_plus_")).strip("_")
    return re.sub(r"^synth_?", "", plain)


def kind_of(name: str, keys: Iterable[str] = ("pred",)) -> Kind:
    """The kind of a benchmark.

    Args:
        name: it begins with a kind's name, alone or before a separator: `refcoco_val`, `RefCOCO+ testA`,
            `perbench/mcq`, `synthperbench_vres`.
        keys: those that are not empty in its records; asked only where the name says nothing: masks make it `refer`,
            else `choices` `mcq`, a `reference` `region_caption`, an `answer` `pope`.
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
        ("reference", "region_caption"),
        ("answer", "pope"),
    )
    return next((kind for key, kind in by_key if key in held), "refer")


def perbench_name(name: str) -> str | None:
    """What PerBench's three tasks have in common: `perbench/mcq` and `perbench/vres` are of `perbench`; else None."""
    match = _PERBENCH_TASK.fullmatch(name)
    return match["stem"] + match["rest"] if match else None
