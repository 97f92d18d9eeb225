"""The public names of version 0.1.0 before the move: each leads to its class or function, or is listed as removed.

`public_names_of_0_1_0.txt` is the record of what that version had: a module in each line, and after it the names in its
`__all__` and the names of its classes and functions.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from sail_lightning import callbacks, evaluate
from sail_lightning.evaluate import EvalRecord

RECORD = Path(__file__).with_name("public_names_of_0_1_0.txt")
NAMES = {
    module: names.split()
    for module, _, names in (line.partition(":") for line in RECORD.read_text(encoding="utf-8").splitlines())
}
REMOVED_MODULES = {
    f"sail_lightning.{name}"
    for name in (
        *("cli.ablate", "cli.arguments", "cli.bench", "cli.compare", "cli.convert", "cli.data", "cli.data_convert"),
        *("cli.expert", "cli.features", "cli.pages", "cli.perbench", "cli.quickstart"),
        *("data.doctor.leaves", "scoring.compare", "scoring.score"),
    )
}
REMOVED_NAMES = {
    f"sail_lightning.{module}.{name}"
    for module, names in {
        "cli.configs": "run",
        "cli.plugins": "run",
        "cli.rescoring": "add_scoring_options run",
        "data.jsonl": "pictures_of",
        "metrics": "TaskMetrics",
        "metrics.grounded": "figures",
        "metrics.lines": "Lines",
        "metrics.sums": "Sums",
        "metrics.tasks": "TaskMetrics",
        "metrics.yes_no": "figures judged",
        "plugins.teachers.frozen": "check_schedule",
        "scoring.captions": "MeteorPart captions",
        "scoring.choices": "multiple_choice yes_or_no",
        "scoring.grounded": "PrecisionPart grounded_captions",
        "scoring.parts": "Part SumsPart",
        "scoring.referring": "referring",
    }.items()
    for name in names.split()
}
CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"


def look_up(module: str, name: str) -> tuple[Any, list[str]]:
    """Returns what a module has under a name, and the warnings that the look-up gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(importlib.import_module(module), name)
    return found, [str(one.message) for one in caught if one.category is FutureWarning]


@pytest.mark.parametrize("module", sorted(NAMES.keys() - REMOVED_MODULES))
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the module's path, which test_renames.py checks
def test_every_public_name_of_a_module_resolves(module: str) -> None:
    today = importlib.import_module(module)
    for name in NAMES[module]:
        if f"{module}.{name}" in REMOVED_NAMES:
            continue
        found, warned = look_up(module, name)
        if inspect.ismodule(found):
            assert found.__name__ == f"{module}.{name}"  # one of its own, not one that hides a class or a function
            continue
        new = found.__name__ if inspect.isclass(found) or inspect.isroutine(found) else name
        if new != name or not (name in vars(today) or name in getattr(today, "__all__", ())):
            assert any(f".{name} is now " in one and f".{new};" in one for one in warned), f"{module}.{name}: {warned}"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_listed_as_removed_is_gone() -> None:
    recorded = {f"{module}.{name}" for module, names in NAMES.items() for name in names}
    assert not REMOVED_NAMES - recorded and not REMOVED_MODULES - NAMES.keys()
    for path in sorted(REMOVED_NAMES):
        module, _, name = path.rpartition(".")
        assert not hasattr(importlib.import_module(module), name), path
    for module in sorted(REMOVED_MODULES):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)


def test_the_changelog_lists_exactly_what_was_removed() -> None:
    section = CHANGELOG.read_text(encoding="utf-8").partition("### Removed\n")[2].partition("\n### ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {f"sail_lightning.{path}" for path in re.findall(r"`([^`]+)`", " ".join(rows))}
    assert listed == REMOVED_NAMES | REMOVED_MODULES


def test_the_answer_writer_is_the_evaluation_writer() -> None:
    found, warned = look_up("sail_lightning.callbacks.answers", "AnswerWriter")
    assert found is callbacks.EvaluationWriter
    assert "AnswerWriter is now sail_lightning.callbacks.evaluation.EvaluationWriter;" in warned[-1]


def test_an_answer_takes_its_old_fields() -> None:
    answer, _ = look_up("sail_lightning.scoring", "Answer")
    with pytest.warns(FutureWarning, match="argument (text|answer) of EvalRecord is now"):
        made = answer(id="1", benchmark="mcq", text="A", answer="B")
    assert made == EvalRecord(id="1", benchmark="mcq", prediction="A", true_answer="B")


@pytest.mark.parametrize(
    ("old", "new"),
    [("text", "prediction"), ("answer", "true_answer"), ("masked", "has_masks"), ("held", "present_keys")],
)
def test_an_answer_is_read_by_its_old_fields(old: str, new: str) -> None:
    record = EvalRecord(id="1", benchmark="mcq", prediction="A", true_answer="B")
    with pytest.warns(FutureWarning, match=f"EvalRecord.{old} is now EvalRecord.{new};"):
        assert getattr(record, old) == getattr(record, new)


def test_an_old_module_path_hides_no_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("score", "compare"):
        monkeypatch.delitem(sys.modules, f"sail_lightning.scoring.{name}", raising=False)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"sail_lightning.scoring.{name}")
        assert getattr(evaluate, name).__name__ == name


def test_the_old_picture_error_is_caught_as_the_new_one() -> None:
    found, warned = look_up("sail_lightning.errors", "PictureError")
    assert found is importlib.import_module("sail_lightning.errors").ImageError
    assert warned == [
        "sail_lightning.errors.PictureError is now sail_lightning.errors.ImageError; the old name goes with the next "
        "version"
    ]
