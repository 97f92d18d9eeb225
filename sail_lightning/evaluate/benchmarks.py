"""The kind of a benchmark, which decides its metrics: by the beginning of its name, else by the task, else by the keys
of its records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate.metrics.text import parse_yes_no
from sail_lightning.sample import Task

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
"""Kinds of benchmarks. `refer` is any other benchmark: it is judged by masks, or by the kind that `kind_of` finds in
its records."""

MASK_KINDS: tuple[Kind, ...] = ("refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "gcg", "perbench_vres")
"""Kinds whose records must hold predicted and true masks."""
CAPTION_KINDS: tuple[Kind, ...] = ("region_caption", "perbench_caption")
CHOICE_KINDS: tuple[Kind, ...] = ("perbench_mcq", "mcq")

Benchmark = str | dict[str, str] | None
"""The name of a benchmark, a name for each task, or None, which names each benchmark by its task."""
_NAMES_OF_TASKS = {"caption": "gcg"}
"""Names of the benchmarks of tasks that are given no name; those of other tasks are called as the task."""
MASK_TASKS = ("refer", "vres", "caption")
"""Tasks whose answers are judged by masks."""
_TASK_KINDS: dict[str | None, Kind] = {
    "refer": "refer",
    "vres": "perbench_vres",
    "caption": "gcg",
    "choice": "mcq",
    "describe": "region_caption",
}
"""The kind of benchmark by task. `chat` has none: the keys of its records decide."""
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
    """Returns a name in lower case, digits and single `_`; `+` becomes `_plus`, and a leading `synth` is left out."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("+", "_plus_")).strip("_")
    return re.sub(r"^synth_?", "", plain)


def kind_of(name: str, keys: Iterable[str] = ("pred",), answers: Sequence[str] = (), task: str | None = None) -> Kind:
    """Returns the kind of a benchmark, which decides the metrics of its answers.

    Args:
        name: Name of the benchmark. It begins with a kind's name, alone or before a separator: `refcoco_val`,
            `RefCOCO+ testA`, `perbench/mcq`, `synthperbench_vres`.
        keys: Keys that are not empty in its records, used only where name and task decide nothing. Masks make it
            `refer`, else `choices` make it `mcq`, `masks` (an empty list of true masks) `refer`, `reference`
            `region_caption`, and with `answer` the `answers` decide.
        answers: True answers: `pope` if all are yes or no, `mcq` if all are letters, else `region_caption`.
        task: Task of its questions (`sample.Task`), None where it is not known.
    """
    named = named_kind(name)
    if named is not None:
        return named
    if task in _TASK_KINDS:
        return _TASK_KINDS[task]
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


def named_kind(name: str) -> Kind | None:
    """Returns the kind with which a benchmark's name begins, or None if it begins with none."""
    plain = _plain(name)
    prefixes = sorted(_NAMES, key=len, reverse=True)
    return next((_NAMES[one] for one in prefixes if plain == one or plain.startswith(f"{one}_")), None)


def kind_of_task(task: str | None) -> Kind | None:
    """Returns the kind by which a task's answers are judged where the benchmark's name decides nothing; None for
    `chat`."""
    return _TASK_KINDS.get(task)


def benchmark_of(benchmark: Benchmark, task: str) -> str:
    """Returns the name of the benchmark to which a question of a task belongs."""
    if isinstance(benchmark, str):
        return benchmark
    return (benchmark or {}).get(task) or _NAMES_OF_TASKS.get(task, task)


def check_benchmark(benchmark: Benchmark) -> None:
    """Checks the names of benchmarks by task, before any question is asked.

    Raises:
        SailUsageError: A task does not exist, or its answers cannot be judged under the name given.
    """
    if not isinstance(benchmark, dict):
        return
    for task, name in benchmark.items():
        if task not in get_args(Task):
            raise SailUsageError(f"benchmark: no task {task!r}; tasks are {', '.join(get_args(Task))}")
        check_task(name, task)


def check_task(name: str, task: str) -> None:
    """Checks that answers to questions of a task hold what the metrics of benchmark `name` need.

    Raises:
        SailUsageError: The benchmark is judged by masks or words that such answers do not hold.
    """
    kind = named_kind(name)
    if kind is None:
        return
    by_masks = kind in MASK_KINDS
    if task not in MASK_TASKS if by_masks else task in ("refer", "vres"):
        what = "masks" if by_masks else "words"
        raise SailUsageError(
            f"benchmark {name} is judged by {what}, which {task} questions do not have; name a benchmark for each "
            f"task, such as {{{task}: NAME}}"
        )


def _kind_of_answers(answers: Sequence[str]) -> Kind:
    if all(parse_yes_no(text) is not None for text in answers):
        return "pope"
    return "mcq" if all(_LETTER.fullmatch(text) for text in answers) else "region_caption"


def perbench_name(name: str) -> str | None:
    """Returns the common name of PerBench's three tasks (`perbench` of `perbench/mcq`), None for other benchmarks."""
    match = _PERBENCH_TASK.fullmatch(name)
    return match["stem"] + match["rest"] if match else None
