"""Private names of Lightning: checkpoints, the command line, weight averaging, the progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import lightning as L
import torch
from lightning.fabric.utilities.cloud_io import _load
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.saving import _default_map_location, _load_state
from lightning.pytorch.utilities.migration import pl_legacy_patch
from lightning.pytorch.utilities.migration.utils import _pl_migrate_checkpoint

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""The hyperparameter `_instantiator` of checkpoints whose settings are `class_path` and `init_args`."""


def made_by_command_line() -> bool:
    """Whether a LightningModule is being made by LightningCLI, which then saves its hyperparameters itself."""
    return _given_hyperparameters.get() is not None


def read_checkpoint(
    path: str | Path | IO[bytes], map_location: Any = None, weights_only: bool | None = None
) -> dict[str, Any]:
    """Reads a checkpoint as `load_from_checkpoint` does, and returns it in the form of the installed Lightning."""
    with pl_legacy_patch():
        content = _load(path, map_location=map_location or _default_map_location, weights_only=weights_only)
    return _pl_migrate_checkpoint(content, checkpoint_path=path if isinstance(path, str | Path) else None)


def module_of_checkpoint(
    cls: type[L.LightningModule], checkpoint: dict[str, Any], strict: bool | None = None, **settings: Any
) -> Any:
    """Makes a module from a checkpoint in memory (`state_dict` and `hyper_parameters`), as `load_from_checkpoint` does.

    `settings` replace the checkpoint's hyperparameters of the same names.
    """
    return _load_state(cls, checkpoint, strict=strict, **settings)


class ComposedCLI(LightningCLI):
    """A LightningCLI for a config that was composed before, over which it does not put a checkpoint's settings.

    With `dry`, it makes what the config names, but no trainer, and runs nothing.
    """

    dry = False

    def _parse_ckpt_path(self) -> None:
        """Does nothing, because a checkpoint's settings are the lowest layer of the composed config."""

    def instantiate_classes(self) -> None:
        if self.dry:
            self.config_init = self.parser.instantiate(self.config)
        else:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.dry:
            super()._run_subcommand(subcommand)

    def verb_parser(self, verb: str) -> LightningArgumentParser:
        """Returns the parser of one verb, after the parsers are set up."""
        return self._subcommand_parsers[verb]


class Averaging(WeightAveraging):
    """WeightAveraging on a device that is chosen at setup, with an average that can be copied into the model at any
    time."""

    def place(self, device: torch.device) -> None:
        """Sets the device of the average; call it before `setup`."""
        self._device = device

    def settle(self, pl_module: L.LightningModule) -> None:
        """Copies the average into the model, if there is one, and drops it."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)
            self._average_model = None


class NamedRichProgressBar(RichProgressBar):
    """Rich's progress bar, named by the verb, where Lightning's own name would be "Epoch 0/-2"."""

    verb = ""

    def _get_train_description(self, current_epoch: int) -> str:
        return self.verb


def batch_progress(trainer: L.Trainer) -> Any:
    """Returns the progress of an epoch: how many batches were handed out (`current.ready`) and trained on
    (`current.processed`), and whether that was the last one (`is_last_batch`)."""
    return trainer.fit_loop.epoch_loop.batch_progress


def last_saved_step(saver: ModelCheckpoint) -> int:
    """Returns the `global_step` at which a checkpoint callback last saved."""
    return saver._last_global_step_saved
