"""What a user does wrong is one sentence with the fix, and the right exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_harness import FIT, Command

from sail_lightning.cli.config_validation import explain


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.upsampler=DeconvUpsmpler"], ["no Upsampler named DeconvUpsmpler", "did you mean DeconvUpsampler?"]),
        (["--model.upsampler=SailQwen"], ["SailQwen belongs to Backbone, not Upsampler", "IdentityUpsampler"]),
        (["--model.upsampler.strid=2"], ["DeconvUpsampler has no argument 'strid'", "did you mean stride?"]),
        (["--model.backbone.attention=Sdpa"], ["no Attention named Sdpa", "SDPAAttention"]),
        (["--model.teachers.a=TimTeacher"], ["model.teachers.a", "did you mean TimmTeacher?"]),
        (["--model.upsampler=null"], ["model.upsampler cannot be null", "IdentityUpsampler"]),
        (["--model.mask_chanels=3"], ["model has no argument 'mask_chanels'", "did you mean mask_channels?"]),
        (["--modl.x=3"], ["no setting modl", "did you mean model?"]),
        (
            ["--model.teachers.a=TimmTeacher", "--model.teachers.a.model=x", "--model.teachers.a.tasks=[]"],
            ["TimmTeacher: tasks must not be empty"],
        ),
        (["--model.max_side=wide"], ["model.max_side must be a whole number, 1 or more, not 'wide'"]),
        (["--model.prompt_encoder.num_prompts=-1"], ["model.prompt_encoder.num_prompts must be 1 or more, not -1"]),
        (["--model.backbone.size=5b"], ["model.backbone.size must be one of tiny, 0.5b, 3b"]),
        (["--data.train=Laboratory"], ["no Source named Laboratory", "did you mean LaboratorySource?"]),
        (["--data.train.split=trian"], ["data.train.split must be one of train, val", "not 'trian'"]),
        (["--trainer.max_step=3"], ["trainer has no argument 'max_step'", "did you mean max_steps?"]),
        (["--trainer.precision=fp3"], ["trainer.precision must be one of", "bf16-mixed"]),
        (["--trainer.max_steps=-1"], ["--trainer.max_steps", "no end"]),
        (["--trainer.accelerator=abacus"], ["invalid accelerator name", "abacus"]),
        (["--model.optimizer=Adm"], ["no Optimizer named Adm", "did you mean Adam?"]),
        (["--model.optimizer=no.such.Class"], ["model.optimizer", "no.such.Class"]),
        (["--model.optimizer=AdamW", "--model.optimizer.lr=-1"], ["model.optimizer", "Invalid learning rate: -1"]),
        (["--model.optimizer.lrr=1"], ["AdamW has no argument 'lrr'", "did you mean lr?"]),
        (["--model.schedule.warmup=1"], ["WarmupCosine has no argument 'warmup'", "warmup_ratio"]),
        (["--model.backbone.hidden_size=33"], ["hidden_size 33 must be divisible"]),
        (["--plugins", "gone.py"], ["no plugin file gone.py"]),
        (["-c", "/nowhere/typo.yaml"], ["no config /nowhere/typo.yaml, neither a file nor a packaged name"]),
        (["-c", "../quickstart"], ["no config ../quickstart, neither a file nor a packaged name"]),
        (["-c", "ablation/no_promts"], ["no config ablation/no_promts", "did you mean ablation/no_prompts?"]),
        (["quickstart"], ["unexpected 'quickstart'", "-c"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else str(value),
)
def test_wrong_setting(args: list[str], words: list[str], sail: Command) -> None:
    assert sail(*FIT, *args).is_one_sentence(2, *words)


def test_wrong_setting_in_a_file(sail: Command, workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("model: {upsampler: {class_path: DeconvUpsampler, init_args: {chanels: 8}}}")
    shown = sail(*FIT, "-c", "mine.yaml")
    assert shown.is_one_sentence(2, "DeconvUpsampler has no argument 'chanels'", "did you mean channels?")


def test_fit_without_a_config(sail: Command) -> None:
    assert sail("fit").is_one_sentence(2, "model.backbone", "-c quickstart")


def test_unknown_command(sail: Command) -> None:
    assert sail("predct").is_one_sentence(2, "no command predct", "did you mean predict?")
    assert sail("--ckpt_path=x", "predict").is_one_sentence(2, "command must come first")


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_verb_without_a_model(verb: str, sail: Command) -> None:
    assert sail(verb).is_one_sentence(2, f"{verb} needs --ckpt_path")


def test_missing_checkpoint(sail: Command) -> None:
    assert sail("test", "--ckpt_path", "gone.ckpt").is_one_sentence(1, "no checkpoint gone.ckpt", "packaged models")


def test_file_that_is_no_checkpoint(sail: Command, pictures: Path) -> None:
    assert sail("test", "--ckpt_path", pictures / "0.png").is_one_sentence(1, "0.png", "not a readable checkpoint")


def test_checkpoint_of_another_model(sail: Command, ckpt: Path) -> None:
    shown = sail("validate", "--ckpt_path", ckpt, "--model.upsampler=IdentityUpsampler", "--trainer.accelerator=cpu")
    assert shown.is_one_sentence(1, "do not fit this model", "upsampler")


def test_fit_cannot_resume_from_a_model_folder(sail: Command, model_folder: Path) -> None:
    assert sail(*FIT, "--ckpt_path", model_folder).is_one_sentence(2, f"--model.weights={model_folder}")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("Parser key \"model.x\":\n  Expected a <class 'int'>. Got value: abc", "model.x must be int, not abc"),
        (
            "Parser key \"size\":\n  Expected a typing.Literal['a', 'b']. Got value: c",
            "size must be one of 'a', 'b', not c",
        ),
        ("unrecognized arguments: --x", "unknown option --x"),
        ("something\n  else", "something else"),
    ],
)
def test_parser_messages_become_sentences(raw: str, said: str) -> None:
    assert explain(raw) == said
