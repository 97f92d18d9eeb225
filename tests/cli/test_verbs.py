"""fit, validate, test and predict, on a model of a few thousand weights."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from cli_harness import FIT, Command
from tiny_sail import tiny

from sail_lightning import PixelSAIL, registry
from sail_lightning.cli.lightning_cli import run
from sail_lightning.cli.run_folder import RunCheckpoint
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.errors import SailUsageError

CPU = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
ASK = ("--data.text", "Please segment the red circle.", *CPU)


def resolved(sail: Command, *args: str | Path) -> dict[str, Any]:
    shown = sail(*args, "--print_config")
    assert shown.code == 0, shown.err
    config: dict[str, Any] = yaml.safe_load(shown.out)
    return config


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- what the parser makes of it --------------------------------------------------------------------------------------


def test_class_that_replaces_another_gets_its_own_defaults(sail: Command, workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("model: {upsampler: {class_path: DeconvUpsampler, init_args: {channels: 64}}}")
    kept = resolved(sail, *FIT, "-c", "mine.yaml")["model"]["upsampler"]
    swapped = resolved(sail, *FIT, "-c", "mine.yaml", "--model.upsampler=PixelShuffleUpsampler")["model"]["upsampler"]
    assert kept["init_args"] == {"stride": 4, "channels": 64}
    assert swapped["class_path"].endswith(".PixelShuffleUpsampler")
    assert swapped["init_args"] == {"stride": 4, "channels": None}


def test_optimiser_that_replaces_the_default_gets_its_own_defaults(sail: Command) -> None:
    for args in (["--model.optimizer=SGD"], ["--model.optimizer=SGD", "--model.optimizer.momentum=0.9"]):
        node = resolved(sail, "fit", "-c", "model/sail_tiny", *args)["model"]["optimizer"]
        plain = torch.optim.SGD([torch.zeros(1)]).defaults
        assert node["class_path"] == "torch.optim.SGD"
        assert (node["init_args"]["weight_decay"], node["init_args"]["lr"]) == (plain["weight_decay"], plain["lr"])


def test_options_win_over_files_wherever_they_stand(sail: Command) -> None:
    config = resolved(sail, "fit", "--model.mask_channels=8", "-c", "quickstart", "-c", "ablation/pixel_shuffle")
    assert config["model"]["mask_channels"] == 8
    assert config["model"]["upsampler"]["class_path"].endswith(".PixelShuffleUpsampler")


def test_file_here_wins_over_a_packaged_name(sail: Command, workdir: Path) -> None:
    (workdir / "quickstart").write_text("model: {mask_channels: 3}")
    assert resolved(sail, "fit", "-c", "model/sail_tiny", "-c", "quickstart")["model"]["mask_channels"] == 3
    assert resolved(sail, "fit", "-c", "quickstart.yaml")["model"]["mask_channels"] == 64


def test_teachers_can_be_switched_off(sail: Command, workdir: Path) -> None:
    (workdir / "t.yaml").write_text("model: {teachers: {a: TimmTeacher, b: TimmTeacher}}")
    teachers = resolved(sail, *FIT, "-c", "t.yaml", "--model.teachers.b=null")["model"]["teachers"]
    assert teachers["a"] is not None and teachers["b"] is None
    assert resolved(sail, *FIT, "-c", "t.yaml", "--model.teachers=null")["model"]["teachers"] is None


def test_command_line_beats_files_beat_checkpoint(sail: Command, ckpt: Path, workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("model: {max_side: 77, language_weight: 0.5}")
    args = ("validate", "--ckpt_path", ckpt, "-c", "mine.yaml", "--model.language_weight=0.25")
    model = resolved(sail, *args)["model"]
    assert (model["language_weight"], model["max_side"], model["max_new_tokens"]) == (0.25, 77, 4)
    assert model["backbone"]["init_args"]["hidden_size"] == 32


def test_checkpoint_arguments_do_not_leak_into_another_class(sail: Command, ckpt: Path) -> None:
    model = resolved(sail, "fit", "--ckpt_path", ckpt, "--model.optimizer=SGD", "--model.upsampler=IdentityUpsampler")
    assert model["model"]["optimizer"]["init_args"]["weight_decay"] == 0
    assert "init_args" not in model["model"]["upsampler"]


def test_model_folder_gives_the_settings_and_the_weights(sail: Command, model_folder: Path) -> None:
    config = resolved(sail, "predict", "--ckpt_path", model_folder, *ASK)
    assert config["ckpt_path"] is None and config["model"]["weights"] == str(model_folder)
    assert config["model"]["backbone"]["init_args"]["hidden_size"] == 32
    started = resolved(sail, "fit", "--model.weights", model_folder, "-c", "data/laboratory", "--trainer.max_steps=1")
    assert started["model"]["mask_channels"] == 64


def test_validate_and_test_have_data_of_their_own(sail: Command, ckpt: Path) -> None:
    for verb, split in (("validate", "val"), ("test", "test")):
        assert resolved(sail, verb, "--ckpt_path", ckpt)["data"][split]["init_args"]["split"] == split


# -- fit --------------------------------------------------------------------------------------------------------------


def test_run_folder_holds_config_checkpoints_metrics_and_curves(run_folder: Path) -> None:
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["name"] == "quickstart"
    assert {"last.ckpt"} < {path.name for path in (run_folder / "checkpoints").iterdir()}
    with (run_folder / "metrics.csv").open() as file:
        assert "val/ciou" in next(csv.reader(file))
    assert list(run_folder.glob("events.out.tfevents.*"))


def test_saved_config_fits_again_into_a_folder_of_its_own(sail: Command, run_folder: Path, workdir: Path) -> None:
    again = ("fit", "-c", run_folder / "config.yaml", f"--runs={workdir}/again", "--trainer.max_steps=1")
    for version in range(2):
        assert f"run folder: {workdir}/again/quickstart/version_{version}" in sail(*again).out
    assert (workdir / "again/quickstart/version_1/checkpoints/last.ckpt").is_file()


def test_checkpoint_resumes(sail: Command, run_folder: Path, ckpt: Path, workdir: Path) -> None:
    args = ("fit", "-c", run_folder / "config.yaml", "--ckpt_path", ckpt, f"--runs={workdir}", "--trainer.max_steps=3")
    assert sail(*args).code == 0
    saved = workdir / "quickstart/version_0/checkpoints/last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3


def test_run_without_logger_keeps_its_files_in_its_folder(sail: Command, workdir: Path) -> None:
    assert sail(*FIT, "--trainer.logger=false", "--name=bare").code == 0
    assert {path.name for path in workdir.iterdir()} == {"runs"}
    assert {path.name for path in (workdir / "runs/bare/version_0").iterdir()} == {"checkpoints", "config.yaml"}


def test_users_plugin_trains_and_is_found_again(sail: Command, user_plugin: Path, workdir: Path) -> None:
    shown = sail(*FIT, "--plugins", user_plugin, "--model.upsampler=MyCliUpsampler", "--name=mine")
    assert shown.code == 0, shown.err
    folder = workdir / "runs/mine/version_0"
    again = resolved(sail, "fit", "-c", folder / "config.yaml")
    assert again["model"]["upsampler"]["class_path"] == "users_upsampler.MyCliUpsampler"
    saved = folder / "checkpoints/last.ckpt"
    del registry.SOURCES[str(user_plugin)]  # as in a new process
    assert sail("validate", "--ckpt_path", saved).is_one_sentence(2, "not loaded", f"--plugins {user_plugin}")
    assert resolved(sail, "validate", "--ckpt_path", saved, "--plugins", user_plugin)["model"]["upsampler"] is not None


def test_checkpoint_alone_gives_the_same_model(run_folder: Path, ckpt: Path, workdir: Path) -> None:
    cli = run(["validate", "--ckpt_path", str(ckpt), *CPU, "--data.val.samples=1"])
    loaded = PixelSAIL.load_from_checkpoint(ckpt)
    ours, theirs = cli.model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(ours[key], theirs[key].to(ours[key].device)) for key in ours)


def test_a_teacher_whose_folder_is_gone_is_missed_in_training_only(
    sail: Command, model_folder: Path, workdir: Path
) -> None:
    expert = shutil.copytree(model_folder, workdir / "expert")
    taught = ("--model.teachers.expert=StudentTeacher", f"--model.teachers.expert.folder={expert}")
    shown = sail(*FIT, *taught, "--name=taught", "--trainer.limit_val_batches=0")
    assert shown.code == 0, shown.err
    saved = workdir / "runs/taught/version_0/checkpoints/last.ckpt"
    shutil.rmtree(expert)
    for verb in ("validate", "test"):
        shown = sail(verb, "--ckpt_path", saved, *CPU, f"--data.{'val' if verb == 'validate' else 'test'}.samples=1")
        assert shown.code == 0, shown.err
    resumed = ("fit", "-c", saved.parents[1] / "config.yaml", "--ckpt_path", saved, "--trainer.max_steps=3")
    assert sail(*resumed).is_one_sentence(1, f"no model folder {expert}")
    shutil.copytree(model_folder, expert)
    assert sail(*resumed).code == 0


# -- test and predict -------------------------------------------------------------------------------------------------


def test_figures_of_test_are_written(sail: Command, ckpt: Path, workdir: Path) -> None:
    shown = sail("test", "--ckpt_path", ckpt, *CPU, "--data.test.samples=4", "--model.max_new_tokens=2")
    assert shown.code == 0 and "run folder: runs/test/version_0" in shown.out
    with (workdir / "runs/test/version_0/metrics.csv").open() as file:
        assert "test/ciou" in next(csv.reader(file))


@pytest.mark.parametrize("kind", ["ckpt", "model_folder"])
def test_predict_needs_no_config(
    kind: str, sail: Command, pictures: Path, workdir: Path, request: pytest.FixtureRequest
) -> None:
    shown = sail("predict", "--ckpt_path", request.getfixturevalue(kind), *ASK, "--data.images", pictures)
    folder = workdir / "runs/predict/version_0"
    assert shown.code == 0 and "predictions: runs/predict/version_0/predictions.jsonl" in shown.out
    assert [Path(line["source"]).name for line in answers(folder / "predictions.jsonl")] == ["0.png", "1.png", "2.png"]
    assert len(list((folder / "overlays").iterdir())) == 3


def test_predict_takes_files_prompts_and_another_folder(
    sail: Command, ckpt: Path, pictures: Path, workdir: Path
) -> None:
    args = ["--data.images", pictures / "0.png", pictures / "2.png", "--data.prompts", "box:1,2,30,30", "3=point:5,6"]
    shown = sail("predict", "--ckpt_path", ckpt, *ASK, *args, "--predictions.out=out", "--predictions.overlays=false")
    assert shown.code == 0, shown.err
    lines = answers(workdir / "out/predictions.jsonl")
    assert [Path(line["source"]).name for line in lines] == ["0.png", "2.png"]
    assert [prompt["id"] for prompt in lines[0]["prompts"]] == [0, 3]
    assert not (workdir / "out/overlays").exists()


def test_broken_image_is_named_and_the_others_are_answered(
    sail: Command, ckpt: Path, pictures: Path, workdir: Path
) -> None:
    (pictures / "1.png").write_text("no picture")
    shown = sail("predict", "--ckpt_path", ckpt, *ASK, "--data.images", pictures)
    assert shown.code == 1 and "1.png is not a readable image" in shown.err and "Traceback" not in shown.err
    assert "skipped as broken: 1" in shown.out
    assert len(answers(workdir / "runs/predict/version_0/predictions.jsonl")) == 2


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--data.images", "gone.png"], 1, ["no image or folder gone.png"]),
        (["--data.images", "pictures", "--data.prompts=9=box:1,2,3,4"], 2, ["prompt id 9 is out of range", "0 to 3"]),
        (["--data.images", "pictures", "--data.prompts=bx:1"], 2, ["'bx:1' is no prompt", "box:X0,Y0,X1,Y1"]),
        (["--data.images", "pictures", "--data.text", "red " * 300, "--model.max_tokens=200"], 2, ["limit of 200"]),
        (["--data.images", "pictures", "--data.text", "Describe <Prompt2>."], 2, ["<Prompt2>", "prompts are none"]),
        (["--data.images", "pictures", "--data.text", "<vpatch>"], 2, ["may not contain <vpatch>"]),
        ([], 2, ["predict needs --data.images"]),
    ],
    ids=["missing", "prompt-id", "prompt-form", "text-length", "prompt-absent", "layout-token", "no-images"],
)
def test_predict_refuses(
    args: list[str], code: int, words: list[str], sail: Command, ckpt: Path, pictures: Path
) -> None:
    assert sail("predict", "--ckpt_path", ckpt, *ASK, *args).is_one_sentence(code, *words)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"every_n_train_steps": 2}, {"last": [2, 4, 5, 6, 8], "best": [5]}),  # the best is of a validation
        ({"save_top_k": 0}, {"last": [5], "best": []}),
    ],
)
def test_the_last_checkpoint_is_saved_at_every_validation_and_every_so_many_steps(
    settings: dict[str, int], wanted: dict[str, list[int]], tmp_path: Path
) -> None:
    class Seen(L.Callback):
        """Steps of the checkpoints that lie there when a batch begins."""

        def __init__(self) -> None:
            self.steps: dict[str, list[int]] = {"last": [], "best": []}

        def on_train_batch_start(self, *_: Any) -> None:
            for path in tmp_path.glob("*.ckpt"):
                step = torch.load(path, weights_only=True)["global_step"]
                steps = self.steps[path.stem[:4]]
                steps += [step] if step not in steps else []

    seen, saver = Seen(), RunCheckpoint(**settings)  # type: ignore[arg-type]
    saver.dirpath = str(tmp_path)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=10,
        val_check_interval=5,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seen, saver],
    )
    source = LaboratorySource("val", samples=2, tasks={"refer": 1.0})
    trainer.fit(tiny(), datamodule=SailDataModule(LaboratorySource(questions=1), source, token_budget=200))
    assert seen.steps == wanted


def test_checkpoints_every_no_steps_are_refused() -> None:
    with pytest.raises(SailUsageError, match="RunCheckpoint: every_n_train_steps must be 1 or more, not 0"):
        RunCheckpoint(every_n_train_steps=0)
