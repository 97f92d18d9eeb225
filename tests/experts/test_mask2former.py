"""`sail-lightning expert`: from masks to a folder that `Mask2FormerTeacher` reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from sail_lightning.cli import expert as command
from sail_lightning.data.sources.laboratory import LaboratorySource
from sail_lightning.errors import SailUsageError
from sail_lightning.experts import mask2former
from sail_lightning.experts.instances import collate
from sail_lightning.experts.mask2former import Mask2FormerExpert, Recipe, save_folder
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers import Mask2FormerTeacher

needs_scipy = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy is not installed")
SCENES = {"tasks": {"caption": 1.0}, "max_objects": 3}
SHAPES = ["circle", "cross", "square", "triangle"]
RECIPE = Recipe(steps=4, batch=2, size=64, width=32, queries=5)
SMALL = ("--batch=2", "--size=64", "--width=32", "--queries=5", "--count=4")


def made(recipe: Recipe = RECIPE) -> Mask2FormerExpert:
    torch.manual_seed(0)
    return Mask2FormerExpert(LaboratorySource(**SCENES), SHAPES, recipe)


def trained(expert: Mask2FormerExpert, **settings: Any) -> Mask2FormerExpert:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    steps = {"max_steps": expert.recipe.steps, "enable_checkpointing": False}
    L.Trainer(accelerator="cpu", **quiet | steps | settings).fit(expert)
    return expert


@needs_scipy
def test_a_training_step_is_the_librarys_loss_on_normalised_pictures() -> None:
    expert = made()
    batch = collate([expert.dataset(expert.source, 2)[place] for place in range(2)])
    assert batch is not None
    expert.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    torch.manual_seed(1)
    ours = expert.training_step(batch, 0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.manual_seed(1)  # points at which masks are compared are drawn
    theirs = expert.network(
        pixel_values=(batch.pixels / 255 - mean) / std,
        mask_labels=[masks.float() for masks in batch.masks],
        class_labels=batch.labels,
    ).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)


@needs_scipy
def test_it_learns_one_picture_by_heart() -> None:
    recipe = Recipe(steps=60, batch=2, size=64, width=32, queries=5, lr=2e-3)
    expert = Mask2FormerExpert(LaboratorySource(**SCENES, samples=2), SHAPES, recipe)
    before = expert.evaluate(expert.source, 2)
    assert expert.training, "as it was"
    after = trained(expert).evaluate(expert.source, 2)
    assert before["map_50"] < 0.1 < 0.25 < after["map_50"] <= 1


@needs_scipy
def test_average_precision_is_one_for_what_is_asked_for_and_less_with_a_false_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert = made()
    truth = [expert.dataset(expert.source, 2)[place] for place in range(2)]
    wrong = iter([False, True])

    def perfect(pixels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        found = []
        for one in truth:
            assert one is not None
            scores = torch.full((len(one.labels),), 0.9)
            found.append({"masks": one.masks, "scores": scores, "labels": (one.labels + int(false)) % len(SHAPES)})
        return found

    for expected in (1.0, None):
        false = next(wrong)
        monkeypatch.setattr(expert, "_predicted", perfect)
        found = expert.evaluate(expert.source, 2)["map"]
        assert found == 1.0 if expected else found < 1.0


@needs_scipy
def test_the_folder_is_a_teacher_that_sees_what_the_expert_saw(tmp_path: Path) -> None:
    expert = trained(made())
    folder = tmp_path / "experts" / "shapes"
    save_folder(expert, folder, {"recipe": "here"})
    assert json.loads((folder / mask2former.REPORT).read_text()) == {"recipe": "here"}
    teacher = Mask2FormerTeacher(str(folder))
    teacher.build(Dims())
    assert teacher.channels == 32
    assert teacher.input_size((48, 96)) == expert.dataset(expert.source, 1).input_size((48, 96)) == (64, 128)
    batch = collate([expert.dataset(expert.source, 2)[place] for place in range(2)])
    assert batch is not None
    expert.eval()
    with torch.no_grad():
        own = expert.network.model.pixel_level_module(expert._normalised(batch.pixels)).decoder_last_hidden_state
    assert own.std() > 0 and torch.allclose(teacher(batch.pixels), own, atol=1e-5)


@needs_scipy
def test_the_command_trains_measures_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes"
    words = ["-c", "data/laboratory_scenes", "--data.train.max_objects=3", *SMALL, f"--out={out}", "--steps=3"]
    assert command.run(words) == 0
    told = capsys.readouterr().out
    assert "4 classes; on 4 held-out records: AP " in told and "Mask2FormerTeacher" in told
    report = json.loads((out / mask2former.REPORT).read_text())
    assert report["classes"] == SHAPES and report["recipe"]["steps"] == 3
    assert report["held_out"].keys() == {"split", "records", "map", "map_50"}
    assert not (tmp_path / "shapes.training").exists()
    with pytest.raises(SailUsageError, match="is not empty"):
        command.run(words)


@needs_scipy
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-c", "data/laboratory_scenes", *SMALL, "--steps=4", "--data.val=null"]
    monkeypatch.setattr(command, "EVERY", 2)
    assert command.run([*words, f"--out={tmp_path / 'whole'}"]) == 0
    step, stopped = Mask2FormerExpert.training_step, f"--out={tmp_path / 'stopped'}"

    def interrupted(self: Mask2FormerExpert, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 3:
            raise MemoryError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Mask2FormerExpert, "training_step", interrupted)
    with pytest.raises(MemoryError):
        command.run([*words, stopped])
    monkeypatch.setattr(Mask2FormerExpert, "training_step", step)
    assert command.run([*words, stopped]) == 0
    from safetensors.torch import load_file

    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    report = json.loads((tmp_path / "stopped" / mask2former.REPORT).read_text())
    assert "held_out" not in report and report["recipe"]["steps"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps=0"], "--steps must be 1 or more"),
        (["--words=-1"], "--words must be 0 or more"),
        (["--width=48"], "--width must be a multiple of 32"),
        (["--lr=0"], "--lr must be above 0"),
        (["--model.max_side=3"], "unknown option --model.max_side; expert takes --data.train"),
    ],
)
def test_wrong_words_are_told_in_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SailUsageError, match=message):
        command.run(["-c", "data/laboratory_scenes", f"--out={tmp_path / 'out'}", *words])


def test_too_many_classes_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "MOST_CLASSES", 3)
    with pytest.raises(SailUsageError, match="4 classes are too many; give fewer --words"):
        command.run(["-c", "data/laboratory_scenes", f"--out={tmp_path / 'out'}"])


def test_without_scipy_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def lacking(config: Any) -> None:
        raise ImportError("Mask2FormerLoss requires the scipy library")

    monkeypatch.setattr(transformers, "Mask2FormerForUniversalSegmentation", lacking)
    with pytest.raises(SailUsageError, match=r"install sail-lightning\[expert\]"):
        mask2former.make_network(SHAPES, 32, 5)
