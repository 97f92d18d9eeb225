"""`Throughput`, `GradNorm` and `NonFiniteGuard`: what a run tells of itself."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from callback_harness import tiny_data, tiny_model
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from sail_lightning.callbacks import GradNorm, NonFiniteGuard, Throughput
from sail_lightning.callbacks import throughput as throughput_module
from sail_lightning.errors import SailError, SailUsageError

MakeTrainer = Callable[..., L.Trainer]


def column(logger: CSVLogger, name: str) -> dict[int, float]:
    """Values of a column of metrics.csv by step."""
    with Path(logger.log_dir, "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def batch(tokens: int, samples: int) -> Any:
    class Batch(list):
        pass

    made = Batch(range(tokens))
    made.samples = tuple(SimpleNamespace(source="lab", id=str(place)) for place in range(samples))
    return made


def test_rates_are_averages_since_the_last_entry_without_validation_and_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, entries = Clock(), []
    monkeypatch.setattr(throughput_module, "time", clock)
    logger = SimpleNamespace(log_metrics=lambda values, step: entries.append((step, values)))
    trainer: Any = SimpleNamespace(
        global_step=0,
        log_every_n_steps=50,
        world_size=2,
        loggers=[logger],
        callback_metrics={},
        datamodule=SimpleNamespace(token_budget=400),
    )
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    measure = Throughput(every=2)
    measure.on_train_start(trainer, module)
    for step, tokens in ((1, 100), (2, 200), (2, 999), (3, 1), (4, 400)):  # the third batch is within a window
        trainer.global_step = step
        clock.now += 3.0
        measure.on_train_batch_end(trainer, module, None, batch(tokens, 6), 0)
        measure.on_validation_start(trainer, module)
        clock.now += 100.0  # it validates, and then saves
        measure.on_train_batch_start(trainer, module, batch(1, 1), 0)
    (first, values), (second, later) = entries
    assert (first, second) == (1, 3)  # loggers count from zero
    assert values["train/tokens_per_s"] == pytest.approx(2 * 300 / 6)
    assert values["train/samples_per_s"] == pytest.approx(2 * 12 / 6)
    assert later["train/tokens_per_s"] == pytest.approx(2 * 1400 / 9)
    assert values["train/packing_efficiency"] == pytest.approx((100 / 400 + 200 / 400) / 2)
    assert later["train/packing_efficiency"] == pytest.approx((1 + 1 / 400 + 1) / 3)  # 999 tokens are over the budget


def test_throughput_and_memory_stand_in_the_table_of_a_run(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(Throughput(), logger=logger).fit(tiny_model(), datamodule=tiny_data())
    for name in ("tokens_per_s", "samples_per_s"):
        values = column(logger, f"train/{name}")
        assert list(values) == [0, 1, 2] and min(values.values()) > 0
    assert 0.05 < column(logger, "train/peak_memory_gib")[2] < 64
    assert all(0 < value <= 1 for value in column(logger, "train/packing_efficiency").values())
    assert len(column(logger, "train/packing_efficiency")) == 3


def test_data_without_a_budget_have_no_fill(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger, data = CSVLogger(tmp_path), tiny_data()

    class Own(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            data.trainer = self.trainer
            return data.train_dataloader()

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return data.on_before_batch_transfer(batch, dataloader_idx)

    trainer(Throughput(), logger=logger).fit(tiny_model(), datamodule=Own())
    assert len(column(logger, "train/tokens_per_s")) == 3 and column(logger, "train/packing_efficiency") == {}


def test_every_below_one_is_refused() -> None:
    for callback in (Throughput, NonFiniteGuard):
        with pytest.raises(SailUsageError, match="every must be 1 or more"):
            callback(every=0)


class Norms(L.Callback):
    """Gradient norms computed in the plain way, before and after clipping."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    @staticmethod
    def _norm(module: nn.Module) -> float:
        squares = [float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None]
        return sum(squares) ** 0.5

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.before.append(self._norm(pl_module))

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.after.append(self._norm(pl_module))


def test_the_gradient_norm_is_that_before_clipping(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger, norms = CSVLogger(tmp_path), Norms()
    trainer(norms, GradNorm(), logger=logger, gradient_clip_val=0.01).fit(tiny_model(), datamodule=tiny_data())
    assert list(column(logger, "train/grad_norm").values()) == pytest.approx(norms.before, rel=1e-4)
    assert min(norms.before) > 0.01


def test_the_gradient_norm_keeps_to_the_log_interval(
    trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, norm, calls = CSVLogger(tmp_path), torch.nn.utils.get_total_norm, []

    def counted(grads: list[Tensor]) -> Tensor:
        calls.append(len(grads))
        return norm(grads)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", counted)
    trainer(GradNorm(), logger=logger, log_every_n_steps=2).fit(tiny_model(), datamodule=tiny_data())
    assert list(column(logger, "train/grad_norm")) == [1] and len(calls) == 1


class Poison(L.Callback):
    """Makes the weights NaN before a batch."""

    def __init__(self, at: int) -> None:
        self.at, self.samples = at, ()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if index == self.at:
            self.samples = batch.samples
            next(pl_module.parameters()).data.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(trainer: MakeTrainer) -> None:
    poison = Poison(at=1)
    runner = trainer(poison, NonFiniteGuard())
    with pytest.raises(SailError, match="not finite at step 2") as caught:
        runner.fit(tiny_model(), datamodule=tiny_data())
    assert poison.samples and all(sample.id in str(caught.value) for sample in poison.samples)


def test_on_a_device_losses_are_read_together_and_the_first_bad_one_is_named() -> None:
    class Remote(SimpleNamespace):
        """A loss that is not on the CPU, as far as the guard can see."""

        def detach(self) -> Remote:
            return self

    guard, trainer = NonFiniteGuard(every=3), SimpleNamespace(global_step=0)
    losses = [1.0, float("inf"), float("nan")]
    original = torch.isfinite
    looked: list[int] = []
    guard.on_train_start(trainer, Any)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SailError, match="step 2, samples lab 0, lab 1;"):
        patch.setattr(torch, "isfinite", lambda loss: original(loss.value))
        for step, loss in enumerate(losses, start=1):
            trainer.global_step = step
            looked.append(step)
            remote = Remote(value=torch.tensor(loss), device=torch.device("cuda"))
            guard.on_train_batch_end(trainer, Any, {"loss": remote}, batch(4, 2), step)
    assert looked == [1, 2, 3]


def test_a_lost_run_is_not_saved_over_a_good_one(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Late(NonFiniteGuard):
        """Looks as it does where losses are on a device: not by itself."""

        def on_train_batch_end(self, *args: Any) -> None:
            self._finite.append(torch.isfinite(args[2]["loss"]))
            self._where.append((args[0].global_step, ()))

    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(SailError, match="not finite at step 3"):
        trainer(Late(), Poison(at=2), saver).fit(tiny_model(), datamodule=tiny_data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and all(value.isfinite().all() for value in saved["state_dict"].values())


def test_finite_losses_pass(trainer: MakeTrainer) -> None:
    runner = trainer(NonFiniteGuard())
    runner.fit(tiny_model(), datamodule=tiny_data())
    assert runner.global_step == 3
