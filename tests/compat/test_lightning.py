"""Private names of Lightning that `sail_lightning.compat.lightning` relies on."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import cli
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningCLI, instantiate_module
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

from sail_lightning.compat import lightning as compat

VERSION = f"lightning {lightning.__version__}"


class Linear(LightningModule):
    """Saves its settings as `PixelSAIL` does, and remembers who made it."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.by_command_line = compat.made_by_command_line()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)


def test_the_command_line_tells_the_module_that_it_saves_the_settings() -> None:
    assert not Linear().by_command_line, VERSION
    assert "with _given_hyperparameters_context(" in inspect.getsource(cli), VERSION
    with _given_hyperparameters_context({"width": 3, "more": 4}, compat.INSTANTIATOR):
        made = Linear(width=3)
    assert made.by_command_line and made.hparams["more"] == 4, VERSION
    assert not compat.made_by_command_line(), VERSION


def test_the_instantiator_of_checkpoints_is_still_that_function() -> None:
    assert f"{instantiate_module.__module__}.{instantiate_module.__name__}" == compat.INSTANTIATOR, VERSION


def test_a_checkpoint_in_memory_becomes_a_module() -> None:
    wanted = Linear(width=3)
    state: dict[str, Any] = {"state_dict": wanted.state_dict(), "hyper_parameters": {"width": 3}}
    made = compat.module_of_checkpoint(Linear, state)
    assert isinstance(made, Linear) and torch.equal(made.layer.weight, wanted.layer.weight), VERSION


def test_the_command_line_reads_checkpoints_and_keeps_parsers_under_the_names_we_know() -> None:
    source = Path(LightningCLI.setup_parser.__code__.co_filename).read_text(encoding="utf-8")
    assert list(inspect.signature(LightningCLI._parse_ckpt_path).parameters) == ["self"], VERSION
    assert "self._parse_ckpt_path()" in source, f"{VERSION} calls no _parse_ckpt_path"
    assert "self._subcommand_parsers[subcommand]" in source, f"{VERSION} keeps no _subcommand_parsers"
    assert list(inspect.signature(LightningCLI._run_subcommand).parameters) == ["self", "subcommand"], VERSION
    assert "self._run_subcommand(self.subcommand)" in source, f"{VERSION} calls no _run_subcommand"


def test_the_progress_bar_asks_for_its_name() -> None:
    assert list(inspect.signature(RichProgressBar._get_train_description).parameters) == ["self", "current_epoch"]
    assert "self._get_train_description(" in inspect.getsource(RichProgressBar.on_train_epoch_start), VERSION


def test_weight_averaging_keeps_its_average_and_device_under_the_names_we_know() -> None:
    source = inspect.getsource(WeightAveraging)
    for name in ("self._average_model = AveragedModel(", "self._device or pl_module.device"):
        assert name in source, f"{VERSION}: WeightAveraging has no {name}"
    parameters = inspect.signature(WeightAveraging._copy_average_to_current).parameters
    assert list(parameters) == ["self", "pl_module"], VERSION


def test_an_average_settles_into_the_model_once() -> None:
    model, callback = Linear(), compat.Averaging()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module.layer.weight.fill_(7.0)
    callback._average_model = average
    callback.settle(model)
    assert (model.layer.weight == 7.0).all() and callback._average_model is None, VERSION
    callback.settle(model)  # nothing is left to copy


def test_a_checkpoint_callback_knows_the_step_it_saved_last() -> None:
    assert compat.last_saved_step(ModelCheckpoint()) == 0, VERSION
    assert "self._last_global_step_saved = trainer.global_step" in inspect.getsource(ModelCheckpoint), VERSION


def test_the_trainer_counts_batches_handed_out_and_trained_on() -> None:
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    batches = compat.batch_progress(trainer)
    batches.increment_ready()
    assert (batches.current.ready, batches.current.processed, batches.is_last_batch) == (1, 0, False), VERSION
    batches.increment_processed()
    assert batches.current.processed == 1, VERSION


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_verbs_of_the_command_line_are_known(verb: str) -> None:
    assert verb in LightningCLI.subcommands(), VERSION
