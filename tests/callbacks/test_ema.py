"""`EMA`: averaged weights validate, are saved, and stay after training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from callback_harness import tiny_data, tiny_model
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from sail_lightning.callbacks import EMA
from sail_lightning.cli.run_folder import RunCheckpoint
from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.module import PixelSAIL

MakeTrainer = Callable[..., L.Trainer]
Weights = dict[str, Tensor]


class Follow(L.Callback):
    """Weights after each step, and those that validation ran on."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []
        self.validated: list[Weights] = []

    @staticmethod
    def _copy(module: nn.Module) -> Weights:
        return {name: value.detach().clone() for name, value in module.named_parameters()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.steps.append(self._copy(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validated.append(self._copy(pl_module))


def average(steps: list[Weights], decay: float, start: int = 0) -> Weights:
    """The average in the plain way; the first step, and those before `start`, are taken as they are."""
    result = steps[0]
    for place, weights in enumerate(steps[1:], start=1):
        keep = decay if place >= start else 0.0
        result = {name: keep * result[name] + (1 - keep) * value for name, value in weights.items()}
    return result


def equal(actual: Any, expected: Weights) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].detach(), value, rtol=1e-5, atol=1e-6, msg=name)


def differs(one: Weights, other: Weights) -> bool:
    return any(not torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)


@pytest.mark.parametrize("start", [0, 2])
def test_validation_the_checkpoint_and_the_model_afterwards_are_the_average(
    start: int, trainer: MakeTrainer, tmp_path: Path
) -> None:
    follow, saver = Follow(), ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    model = tiny_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    runner = trainer(follow, EMA(0.5, start), saver, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=0)
    runner.fit(model, datamodule=tiny_data())
    expected = [average(follow.steps[:count], 0.5, start) for count in (1, 2, 3)]
    for actual, wanted in zip(follow.validated, expected, strict=True):
        equal(actual, wanted)
    equal(dict(model.named_parameters()), expected[2])
    loaded = PixelSAIL.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    equal(dict(loaded.named_parameters()), expected[2])
    assert differs(expected[2], follow.steps[2])


def test_resume_goes_on_with_the_weights_in_training_and_their_average(trainer: MakeTrainer, tmp_path: Path) -> None:
    def run(steps: int, resume: Path | None = None) -> tuple[list[Weights], Weights]:
        follow, saver = Follow(), ModelCheckpoint(tmp_path, f"{steps}", every_n_train_steps=1)
        model = tiny_model()
        trainer(follow, EMA(0.5), saver, max_steps=steps).fit(model, datamodule=tiny_data(), ckpt_path=resume)
        return follow.steps, {name: value.detach() for name, value in model.named_parameters()}

    steps, whole = run(4)
    run(2)
    later, resumed = run(4, tmp_path / "2.ckpt")
    for actual, expected in zip(later, steps[2:], strict=True):
        equal(actual, expected)
    equal(resumed, whole)


class Expert(Teacher):
    """A teacher that must not be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.weight, self.student_features = 4, 1.0, "vision"

    def build(self, dims: Dims) -> Dims:
        self.patch = dims.patch_size
        return dims

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.float(), self.patch).repeat(1, 2, 1, 1)[:, :4] / 255

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        raise AssertionError("the teacher was copied")


def test_teachers_are_not_copied_and_still_teach(trainer: MakeTrainer) -> None:
    model = tiny_model(teachers={"expert": Expert()})
    runner = trainer(EMA())
    runner.fit(model, datamodule=tiny_data())
    assert runner.callback_metrics["train/expert"] > 0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(SailUsageError, match="EMA: decay must be at least 0 and less than 1, not"):
        EMA(decay)


def test_the_last_checkpoint_of_a_run_holds_the_weights_in_training(trainer: MakeTrainer, tmp_path: Path) -> None:
    follow, saver, average_of = Follow(), RunCheckpoint(), EMA(0.5)
    saver.dirpath = str(tmp_path)
    model = tiny_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer(follow, average_of, saver).fit(model, datamodule=tiny_data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    wanted = average(follow.steps, 0.5)
    equal(saved["current_model_state"], follow.steps[-1])
    equal(saved["state_dict"], wanted)
    equal(dict(model.named_parameters()), wanted)
    other = tiny_model()
    before = {name: value.clone() for name, value in other.named_parameters()}
    trainer(average_of, limit_val_batches=1).validate(other, datamodule=tiny_data(), verbose=False)
    equal(dict(other.named_parameters()), before)


def test_checkpoints_of_weights_only_are_refused(trainer: MakeTrainer) -> None:
    with pytest.raises(SailUsageError, match="set checkpoint.save_weights_only to false"):
        trainer(EMA(), RunCheckpoint(save_weights_only=True)).fit(tiny_model(), datamodule=tiny_data())


@pytest.mark.parametrize(("precision", "fix"), [("bf16-true", "bf16-mixed"), ("16-true", "16-mixed")])
def test_weights_in_half_precision_are_not_averaged(precision: str, fix: str, trainer: MakeTrainer) -> None:
    with pytest.raises(SailUsageError, match=f"trainer.precision {precision}.*; use {fix}"):
        trainer(EMA(), precision=precision).fit(tiny_model(), datamodule=tiny_data())
