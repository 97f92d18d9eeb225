"""Everything that can be swapped is swapped by its short name: in YAML, on the command line, and from a user's file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_harness import FIT, Command

from sail_lightning import registry

MINE = '''
import lightning as L
import torch
from torch.optim.lr_scheduler import LambdaLR

from sail_lightning.pretrained.lora import LoRA
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.model.losses import CosineDistillation, LanguageLoss, MaskLoss
from sail_lightning.registry import register


@register
class SwapMask(MaskLoss):
    """A mask loss."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(bce_weight=weight, dice_weight=weight)


@register
class SwapLanguage(LanguageLoss):
    """A language loss."""


@register
class SwapDistillation(CosineDistillation):
    """A distillation loss."""


@register
class SwapSGD(torch.optim.SGD):
    """An optimizer."""

    def __init__(self, params, lr: float = 0.5) -> None:
        super().__init__(params, lr)


@register
class SwapSchedule(LambdaLR):
    """A schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, slope: float = 1.0) -> None:
        super().__init__(optimizer, lambda step: slope)


@register
class SwapCallback(L.Callback):
    """A callback."""

    def __init__(self, path: str = "told.txt") -> None:
        self.path = path

    def on_train_end(self, trainer, module) -> None:
        parts = [module.mask_loss, module.language_loss, trainer.optimizers[0], trainer.datamodule.train]
        parts.append(trainer.lr_scheduler_configs[0].scheduler)
        with open(self.path, "w") as file:
            file.write(" ".join(type(part).__name__ for part in parts))


@register
class SwapSource(LaboratorySource):
    """A source."""

    def __init__(self, size: int = 64) -> None:
        super().__init__(split="train", size=size)


class LeftOut(MaskLoss):
    """Not registered."""
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's file with a class of every kind, forgotten again after the test."""
    registry.load_shipped()
    before = {point.base: dict(point.registry.module_dict) for point in registry.swap_points()}
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "swap_mine.py"
    path.write_text(MINE)
    yield path
    for base, kept in before.items():
        names: dict[str, Any] = registry.SWAP_POINTS[base].registry.module_dict
        names.clear()
        names.update(kept)
    registry.SOURCES.pop(str(path), None)
    sys.modules.pop("swap_mine", None)


def test_a_users_classes_of_every_kind_train_by_their_short_names_in_yaml(
    sail: Command, mine: Path, workdir: Path
) -> None:
    (workdir / "mine.yaml").write_text(
        f"plugins: {mine}\n"
        "model:\n"
        "  mask_loss: {class_path: SwapMask, init_args: {weight: 2.0}}\n"
        "  language_loss: SwapLanguage\n"
        "  distillation_loss: SwapDistillation\n"
        "  optimizer: {class_path: SwapSGD, init_args: {lr: 0.01}}\n"
        "  schedule: {class_path: SwapSchedule, init_args: {slope: 0.5}}\n"
        "data: {train: SwapSource}\n"
        "trainer: {callbacks: [SwapCallback, {class_path: GradNorm}]}\n"
    )
    trained = sail(*FIT, "-c", "mine.yaml", "--name=swap")
    assert trained.code == 0, trained.err
    assert (workdir / "told.txt").read_text() == "SwapMask SwapLanguage SwapSGD SwapSource SwapSchedule"
    saved = yaml.safe_load((workdir / "runs/swap/version_0/config.yaml").read_text())
    assert saved["model"]["mask_loss"] == {"class_path": "swap_mine.SwapMask", "init_args": {"weight": 2.0}}
    assert saved["model"]["distillation_loss"]["class_path"] == "swap_mine.SwapDistillation"


def test_the_same_on_the_command_line(sail: Command, mine: Path, workdir: Path) -> None:
    swaps = ("mask_loss=SwapMask", "language_loss=SwapLanguage", "optimizer=SwapSGD", "schedule=SwapSchedule")
    callbacks = ("--trainer.callbacks+=EMA", "--trainer.callbacks+=SwapCallback")
    trained = sail(
        *FIT, "--plugins", mine, *(f"--model.{swap}" for swap in swaps), "--data.train=SwapSource", *callbacks
    )
    assert trained.code == 0, trained.err
    assert (workdir / "told.txt").read_text() == "SwapMask SwapLanguage SwapSGD SwapSource SwapSchedule"


def test_added_callbacks_are_all_kept(sail: Command) -> None:
    shown = sail(*FIT, "--trainer.callbacks+=EMA", "--trainer.callbacks+=GradNorm", "--print_config")
    listed = yaml.safe_load(shown.out)["trainer"]["callbacks"]
    assert [item["class_path"].rpartition(".")[2] for item in listed] == ["EMA", "GradNorm"]


def test_shipped_adapters_and_torchs_schedules_have_short_names(sail: Command) -> None:
    shown = yaml.safe_load(
        sail(*FIT, "--model.adapter=LoRA", "--model.schedule=CosineAnnealingLR", "--print_config").out
    )
    assert shown["model"]["adapter"]["class_path"].endswith("LoRA")
    assert shown["model"]["schedule"]["class_path"] == "torch.optim.lr_scheduler.CosineAnnealingLR"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.mask_loss=MaskLos", ["no MaskLoss named MaskLos", "did you mean MaskLoss?"]),
        ("--model.language_loss=ChunkedLoss", ["model.language_loss", "did you mean ChunkedLanguageLoss?"]),
        ("--model.distillation_loss=MaskLoss", ["MaskLoss belongs to MaskLoss, not DistillationLoss"]),
        ("--model.adapter=Lora", ["no Adapter named Lora", "did you mean LoRA?"]),
        ("--model.optimizer=MuonAdam", ["no Optimizer named MuonAdam", "did you mean MuonAdamW?"]),
        ("--model.schedule=WarmCosine", ["no Schedule named WarmCosine", "did you mean WarmupCosine?"]),
        ("--model.schedule=OneCycleLR", ["no Schedule named OneCycleLR", "CosineAnnealingLR"]),
        (
            "--model.schedule=torch.optim.lr_scheduler.OneCycleLR",
            ["no Schedule named torch.optim.lr_scheduler.OneCycleLR"],
        ),
        ("--trainer.callbacks+=Emma", ["trainer.callbacks", "no Callback named Emma", "did you mean EMA?"]),
        ("--data.train=RefCoco", ["no Source named RefCoco", "did you mean RefCOCO?"]),
        ("--data.train=EMA", ["EMA belongs to Callback, not Source"]),
    ],
)
def test_a_wrong_name_gets_the_nearest_of_its_swap_point(sail: Command, option: str, words: list[str]) -> None:
    assert sail(*FIT, option).is_one_sentence(2, *words)


def test_a_wrong_name_in_a_list_says_where(sail: Command, workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("trainer: {callbacks: [GradNorm, {class_path: EMA, init_args: {decai: 0.9}}]}")
    assert sail(*FIT, "-c", "mine.yaml").is_one_sentence(2, "trainer.callbacks[1]", "'decai'", "did you mean decay?")


def test_a_class_without_register_is_refused_with_the_fix(sail: Command, mine: Path) -> None:
    refused = sail(*FIT, "--plugins", mine, "--model.mask_loss=LeftOut")
    assert refused.is_one_sentence(2, "LeftOut of the module swap_mine is not registered", "put @register")
    assert sail("plugins", "LeftOut", "--plugins", mine).is_one_sentence(2, "LeftOut", "put @register")


def test_an_argument_of_a_parent_is_checked_by_name(sail: Command) -> None:
    refused = sail(*FIT, "--model.backbone=EncoderBackbone", "--model.backbone.num_layer=1")
    assert refused.is_one_sentence(2, "EncoderBackbone has no argument 'num_layer'", "did you mean num_layers?")


def test_shipped_configs_name_our_classes_short() -> None:
    from sail_lightning.cli.configs import config_names, config_root

    long = [
        name for name in config_names() if "class_path: sail_lightning." in (config_root() / f"{name}.yaml").read_text()
    ]
    assert long == []
