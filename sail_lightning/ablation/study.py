"""A study as a file: a base, variants that are small patches on it, seeds, a budget, and what is measured.

| key | meaning |
|---|---|
| `configs` | the base: configs by name or file, as after `-c` |
| `base` | a patch on them that all variants share, in the form of a config |
| `variants` | names, each with a patch; null is the base itself |
| `baseline` | the variant that the others are compared with; the first if left out |
| `seeds` | one training for each; the same seeds for all variants |
| `seeded` | settings that take the seed's number, beside `seed_everything` and `data.seed` |
| `steps` | optimiser steps of a training: equal compute at one `data.token_budget` |
| `minutes` | time of a training: equal time; it ends earlier after `steps` (or the base's `trainer.max_steps`) |
| `checks` | validations of a training, evenly spaced over its `steps`: the points of the learning curves |
| `evaluate` | names, each with a patch of `data` and `evaluation`: what models are tested on; null is `data.test` |
| `metrics` | what the table shows: EVALUATION/BENCHMARK/METRIC, or BENCHMARK/METRIC where there is one evaluation |
| `curves` | columns of metrics.csv that are drawn |
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sail_lightning.errors import SailUsageError
from sail_lightning.settings.renames import renamed, warn

Patch = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
"""Names of variants and evaluations, which also name folders."""
OWN = ("fit", "config")
"""Names of the files that a run writes, so no evaluation may have them."""
RENAMED = {"figures": "metrics"}
"""Keys of a study that had another name in the version before."""
RESERVED = ("name", "runs", "ckpt_path")
"""Settings that the study decides, so no patch may have them."""


@dataclass(frozen=True)
class TableMetric:
    """One column of the table."""

    evaluation: str
    benchmark: str
    name: str

    def __str__(self) -> str:
        return f"{self.evaluation}/{self.benchmark}/{self.name}"


@dataclass(frozen=True)
class Study:
    """What a study file says; the module's docstring explains each key."""

    name: str
    configs: tuple[str, ...]
    base: Patch
    variants: dict[str, Patch]
    baseline: str
    seeds: tuple[int, ...]
    seeded: tuple[str, ...]
    steps: int | None
    minutes: float | None
    checks: int
    evaluate: dict[str, Patch]
    metrics: tuple[TableMetric, ...]
    curves: tuple[str, ...]


def parse_study(content: Mapping[str, Any], name: str) -> Study:
    """The study that a parsed file holds.

    Args:
        content: The keys and values of the file.
        name: The name of the study, for messages and folders.

    Raises:
        SailUsageError: An unknown key, or a value that cannot be; names the key.
    """

    def fail(text: str) -> SailUsageError:
        return SailUsageError(f"{name}: {text}")

    content = _with_new_names(content, fail)
    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            raise fail(f"no key {key}; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(KEYS)}")
    read: dict[str, Any] = {}
    for key, (default, wanted, fits) in KEYS.items():
        value = content.get(key, default)
        if not fits(value):
            raise fail(f"{key} must be {wanted}, not {value!r}")
        read[key] = value
    if not read["variants"]:
        raise fail("variants must name at least one variant, with a patch or null")
    variants = {str(key): _patch(f"variants.{key}", patch, fail) for key, patch in read["variants"].items()}
    evaluate = {str(key): _patch(f"evaluate.{key}", patch, fail) for key, patch in (read["evaluate"] or {}).items()}
    for key in (*variants, *evaluate):
        if not NAME.fullmatch(key):
            raise fail(f"{key!r} cannot name a folder; take letters, digits, and . _ + - between them")
    if taken := [key for key in evaluate if key in OWN]:
        raise fail(f"no evaluation may be called {taken[0]}, as a run's own files are; choose another name")
    baseline = read["baseline"] or next(iter(variants))
    if baseline not in variants:
        raise fail(f"baseline must be one of the variants {', '.join(variants)}, not {baseline!r}")
    if read["steps"] is None and read["minutes"] is None:
        raise fail("the length of a training is missing; give steps, or minutes")
    return Study(
        name=name,
        configs=tuple(read["configs"]),
        base=_patch("base", read["base"], fail),
        variants=variants,
        baseline=baseline,
        seeds=tuple(read["seeds"]),
        seeded=tuple(read["seeded"]),
        steps=read["steps"],
        minutes=None if read["minutes"] is None else float(read["minutes"]),
        checks=read["checks"],
        evaluate=evaluate,
        metrics=tuple(_table_metric(text, evaluate, fail) for text in read["metrics"]),
        curves=tuple(read["curves"]),
    )


def _with_new_names(content: Mapping[str, Any], fail: Callable[[str], SailUsageError]) -> dict[str, Any]:
    """The content with the names that keys have now; an old name warns.

    Raises:
        SailUsageError: A key is there under both names.
    """
    for old, new in RENAMED.items():
        if old in content and new in content:
            raise fail(f"{old} and {new} are one key, and {new} is its new name; remove {old}")
        if old in content:
            warn(f"the key {old} of a study", new)
    return {RENAMED.get(key, key): value for key, value in content.items()}


def _patch(key: str, value: Any, fail: Callable[[str], SailUsageError]) -> Patch:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise fail(f"{key} must be a patch with keys such as model and data, or null, not {value!r}")
    for name in RESERVED:
        if name in value:
            raise fail(f"{key} sets {name}, which the study decides; leave it out")
    return value


def _table_metric(text: str, evaluate: Mapping[str, Patch], fail: Callable[[str], SailUsageError]) -> TableMetric:
    parts = text.split("/")
    if len(parts) == 2 and len(evaluate) == 1:
        parts = [next(iter(evaluate)), *parts]
    if len(parts) != 3 or not all(parts):
        form = "BENCHMARK/METRIC" if len(evaluate) == 1 else "EVALUATION/BENCHMARK/METRIC"
        raise fail(f"metrics: {text!r} is not of the form {form}")
    if parts[0] not in evaluate:
        raise fail(f"metrics: {text!r} names no evaluation of the study; there are {', '.join(evaluate)}")
    return TableMetric(*parts)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_texts(value: Any, least: int = 0) -> bool:
    return isinstance(value, list) and len(value) >= least and all(isinstance(part, str) and part for part in value)


def _are_seeds(value: Any) -> bool:
    whole = isinstance(value, list) and bool(value) and all(_is_whole(seed, 0) for seed in value)
    return whole and len(set(value)) == len(value)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


KEYS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "configs": (None, "a list of configs, such as [quickstart]", lambda value: _are_texts(value, 1)),
    "base": (None, "a patch or null", lambda value: value is None or isinstance(value, dict)),
    "variants": (None, "a mapping of names to patches", lambda value: isinstance(value, dict)),
    "baseline": (None, "the name of a variant", lambda value: value is None or isinstance(value, str)),
    "seeds": ([0, 1, 2], "a list of different whole numbers, 0 or more", _are_seeds),
    "seeded": ([], "a list of settings, such as [data.train.seed]", _are_texts),
    "steps": (None, "a whole number, 1 or more", lambda value: value is None or _is_whole(value, 1)),
    "minutes": (None, "a number above 0", lambda value: value is None or _is_time(value)),
    "checks": (8, "a whole number, 1 or more", lambda value: _is_whole(value, 1)),
    "evaluate": (
        {"test": None},
        "a mapping of names to patches",
        lambda value: isinstance(value, dict) and value != {},
    ),
    "metrics": (None, "a list such as [refer/ciou]", lambda value: _are_texts(value, 1)),
    "curves": (["train/loss", "val/ciou"], "a list of columns", _are_texts),
}
"""Keys of a study file: default, what it must be, and whether a value is."""

__getattr__ = renamed(__name__, {"Figure": "TableMetric"})
