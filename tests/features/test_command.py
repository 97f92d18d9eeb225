"""`sail-lightning features`: from a config to a folder that `CachedTeacher` reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from sail_lightning.cli import dispatch
from sail_lightning.errors import SailError, SailUsageError

LABORATORY = ("-c", "quickstart", "-c", "ablation/teacher_student", "--workers=0")
FEW = (*LABORATORY, "--count=3", "--teacher=mask_features")


def test_features_of_a_config_are_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["features", *FEW, "--out", str(tmp_path / "f"), "--measure"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r".*f: 3 images, 3 of them new; float16, \d+\.\d{3} MB an image, .* in all; "
        r"largest error \S+, relative error \S+",
        first,
    )
    assert re.fullmatch(r"live .* ms, cached .* ms an image: .* times faster; .* MB an image; .*", second)
    content = json.loads((tmp_path / "f" / "features.json").read_text())
    assert content["settings"]["teacher"]["init_args"]["folder"] == "sail-tiny"
    assert (content["settings"]["channels"], content["settings"]["tap"]) == (64, "mask")
    assert content["summary"]["images"] == 3
    assert 0 < content["summary"]["relative_error"] < 1e-3


def test_another_run_adds_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", str(tmp_path / "f"))
    assert dispatch(["features", *FEW, *out]) == dispatch(["features", *FEW, *out, "--count=5"]) == 0
    assert "5 images, 2 of them new" in capsys.readouterr().out


def test_numbers_are_stored_as_asked(tmp_path: Path) -> None:
    assert dispatch(["features", *FEW, "--out", str(tmp_path / "f"), "--dtype=int8", "--stride=8"]) == 0
    with safe_open(next((tmp_path / "f").glob("*.safetensors")), "pt") as file:
        (first, *_) = (key for key in file.keys() if not key.endswith(".scale"))  # noqa: SIM118
        assert str(file.get_tensor(first).dtype) == "torch.int8"
        assert tuple(file.get_tensor(first).shape) == (64, 8, 8), "64 pixels, 8 a feature"


def test_arguments_of_data_and_teacher_can_be_overridden(tmp_path: Path) -> None:
    options = ("--data.train.size=32", "--model.teachers.mask_features.student_features=vision")
    assert dispatch(["features", *FEW, "--out", str(tmp_path / "f"), *options]) == 0
    content = json.loads((tmp_path / "f" / "features.json").read_text())
    assert content["settings"]["tap"] == "vision"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "quickstart", "--count=1"], "has no model.teachers; add one, such as -c ablation/teacher_student"),
        ([*LABORATORY, "--count=1"], "has the teachers mask_features, vision_tokens; choose with --teacher"),
        ([*LABORATORY, "--count=1", "--teacher=sam2"], "no teacher sam2; there are mask_features, vision_tokens"),
        (
            [*LABORATORY, "--teacher=mask_features"],
            "LaboratorySource has no end; set the number of records with --count",
        ),
        ([*FEW, "--count=0"], "--count must be 1 or more, not 0"),
        ([*FEW, "--trainer.max_steps=3"], "unknown option --trainer.max_steps; features takes --data.train"),
        (
            [*FEW, "--model.teachers.mask_features.student_feature=vision"],
            "StudentTeacher has no argument 'student_feature'",
        ),
        (["-c", "data/laboratory", "--count=1"], "data/laboratory has no model, which sets how images are resized"),
    ],
)
def test_what_is_written_wrongly_is_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SailUsageError) as caught:
        dispatch(["features", *words, "--out", str(tmp_path / "f")])
    assert message in str(caught.value)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{model: x, tasks: []}", "TimmTeacher: tasks must not be empty; leave it out, or give null"),
        ("{}", "teacher: TimmTeacher needs the argument model"),
    ],
)
def test_a_teacher_that_cannot_be_made_is_one_sentence(arguments: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "teacher.yaml"
    config.write_text(f"model: {{teachers: {{a: {{class_path: TimmTeacher, init_args: {arguments}}}}}}}\n")
    with pytest.raises(SailUsageError) as caught:
        dispatch(["features", "-c", "quickstart", "-c", str(config), "--count=2", f"--out={tmp_path / 'f'}"])
    assert str(caught.value) == message
    assert not (tmp_path / "f").exists()


def test_a_set_of_which_nothing_can_be_read_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"image": "gone.jpg", "turns": [{"question": "what is it?", "answer": "a cat."}]}
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    options = (f"--data.train={{class_path: JsonlSource, init_args: {{path: {tmp_path / 'one.jsonl'}}}}}",)
    with pytest.raises(SailError, match="no image that can be read"):
        dispatch(["features", *FEW, *options, "--out", str(tmp_path / "f")])
    assert "left out: " in capsys.readouterr().err


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["features", "--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 45
    assert max(map(len, shown)) <= 120
