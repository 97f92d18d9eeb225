"""`sail-lightning expert`: from masks to a folder that `Mask2FormerTeacher` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from sail_lightning.cli import dispatch
from sail_lightning.cli.commands import expert as command
from sail_lightning.data.sources.laboratory import LaboratorySource
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.experts import mask2former
from sail_lightning.experts.instances import collate
from sail_lightning.experts.mask2former import Mask2FormerExpert, Recipe, save_folder
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers import Mask2FormerTeacher

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


def test_a_training_step_is_the_librarys_loss_on_normalised_images() -> None:
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


def test_it_learns_one_image_by_heart() -> None:
    recipe = Recipe(steps=60, batch=2, size=64, width=32, queries=5, lr=2e-3)
    expert = Mask2FormerExpert(LaboratorySource(**SCENES, samples=2), SHAPES, recipe)
    before = expert.evaluate(expert.source, 2)
    assert expert.training, "as it was"
    after = trained(expert).evaluate(expert.source, 2)
    assert before and after
    assert before["map_50"] < 0.1 < 0.25 < after["map_50"] <= 1


def test_average_precision_is_one_for_what_is_asked_for_and_less_with_other_classes(
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
        figures = expert.evaluate(expert.source, 2)
        assert figures is not None and figures["images"] == 2
        found = figures["map"]
        assert found == 1.0 if expected else found < 1.0


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


def test_the_command_trains_measures_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes"
    words = ["-c", "data/laboratory_scenes", "--data.train.max_objects=3", *SMALL, f"--out={out}", "--steps=3"]
    assert dispatch(["expert", *words]) == 0
    result = capsys.readouterr().out
    assert "4 classes; on 4 held-out images: AP " in result and "Mask2FormerTeacher" in result
    report = json.loads((out / mask2former.REPORT).read_text())
    assert report["classes"] == SHAPES and report["recipe"]["steps"] == 3
    assert report["held_out"].keys() == {"split", "images", "map", "map_50"}
    assert not (tmp_path / "shapes.training").exists()
    with pytest.raises(SailUsageError, match="is not empty"):
        dispatch(["expert", *words])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Recipe: steps must be 1 or more, not 0"),
        ({"lr": float("nan")}, "Recipe: lr must be more than 0, not nan"),
        ({"size": 63}, "Recipe: size must be 64 or more, not 63"),
        ({"width": 48}, "Recipe: width must be a multiple of 32, not 48"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        Recipe(**settings)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command until a step, keeping every other step, and ends it there."""
    whole = Mask2FormerExpert.training_step
    monkeypatch.setattr(command, "EVERY", 1)

    def run(words: list[str], step: int) -> None:
        def stops(self: Mask2FormerExpert, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.global_step == step:
                raise MemoryError
            return whole(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(Mask2FormerExpert, "training_step", stops)
            with pytest.raises(MemoryError):
                dispatch(["expert", *words])

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


WORDS = ["-c", "data/laboratory_scenes", *SMALL, "--steps=4", "--data.val=null", "--data.test=null"]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    step: int, tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    assert dispatch(["expert", *WORDS, f"--out={tmp_path / 'whole'}"]) == 0
    interrupted([*WORDS, f"--out={tmp_path / 'stopped'}"], step)
    assert not (tmp_path / "stopped").exists()
    assert dispatch(["expert", *WORDS, f"--out={tmp_path / 'stopped'}", "--workers=1"]) == 0
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    report = json.loads((tmp_path / "stopped" / mask2former.REPORT).read_text())
    assert "held_out" not in report and report["recipe"]["steps"] == 4
    assert (tmp_path / "stopped" / "model.safetensors").stat().st_mode == (
        tmp_path / "stopped" / "config.json"
    ).stat().st_mode


def test_another_run_does_not_go_on_from_what_was_stopped(tmp_path: Path, interrupted: Callable[..., None]) -> None:
    words = [*WORDS, f"--out={tmp_path / 'expert'}"]
    interrupted(words, 2)
    for other, named in (("--steps=3", "recipe"), ("--data.train.max_objects=3", "data"), ("--words=2", "recipe")):
        with pytest.raises(SailUsageError, match=f"holds a training with another {named}, which was stopped"):
            dispatch(["expert", *words, other])
    checkpoint = tmp_path / "expert.training" / command.CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(SailError, match=r"last\.ckpt is damaged; remove .*expert\.training"):
        dispatch(["expert", *words])


def test_held_out_images_without_masks_are_not_judged() -> None:
    expert = made()
    assert expert.evaluate(LaboratorySource(samples=2, tasks={"describe": 1.0}), 2) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps=0"], "--steps must be 1 or more"),
        (["--words=-1"], "--words must be 0 or more"),
        (["--width=48"], "^--width must be a multiple of 32, not 48"),
        (["--lr=nan"], "--lr must be a number above 0"),
        (["--lr=inf"], "^--lr must be "),
        (["--size=32"], "^--size must be 64 or more, not 32"),
        (["--out=."], "is a folder that is in use"),
        (["--data.train.tasks={chat: 1.0}"], "unknown key 'chat' in tasks"),
        (["--model.max_side=3"], "unknown option --model.max_side; expert takes --data.train"),
    ],
)
def test_wrong_words_are_told_in_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SailUsageError, match=message):
        dispatch(["expert", "-c", "data/laboratory_scenes", f"--out={tmp_path / 'out'}", *words])


def test_too_many_classes_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "MOST_CLASSES", 3)
    with pytest.raises(SailUsageError, match="4 classes are too many; use a smaller --words"):
        dispatch(["expert", "-c", "data/laboratory_scenes", f"--out={tmp_path / 'out'}"])
