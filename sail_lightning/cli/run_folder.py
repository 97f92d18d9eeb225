"""The folder of a run, `runs/NAME/version_N`, and what is written into it by default."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from sail_lightning.compat.lightning import last_saved_step
from sail_lightning.evaluate.table import markdown_table
from sail_lightning.settings.ranges import Checked, CountOrAll, PositiveInt

Validation = tuple[int, dict[str, float]]
"""The step, and the metrics by the names they are logged by."""
SHARED = "SAIL_RUN_FOLDER"
"""Environment variable with the run folder, for the processes that this one starts (one per device)."""


def next_run_folder(root: str | Path, name: str) -> Path:
    """The first free `root/name/version_N`; in a process that another rank started, the folder of that one."""
    if "LOCAL_RANK" in os.environ and SHARED in os.environ:
        return Path(os.environ[SHARED])
    parent = Path(root) / name
    taken = [re.fullmatch(r"version_(\d+)", path.name) for path in parent.glob("version_*")]
    number = max((int(match[1]) for match in taken if match), default=-1) + 1
    folder = parent / f"version_{number}"
    os.environ[SHARED] = str(folder)
    return folder


def default_loggers(folder: Path, tensorboard: bool = True) -> list[Logger]:
    """The loggers of a run: TensorBoard and CSV, into one folder."""
    path: dict[str, Any] = {"save_dir": str(folder.parent.parent), "name": folder.parent.name, "version": folder.name}
    curves: list[Logger] = [TensorBoardLogger(**path, default_hp_metric=False)] if tensorboard else []
    return [*curves, CSVLogger(**path)]


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config to the run folder, whatever logger there is, and sends it to the loggers."""

    def __init__(self, parser: LightningArgumentParser, config: Any, folder: Path) -> None:
        super().__init__(parser, config, overwrite=True, save_to_log_dir=False)
        self.folder = folder

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.config_filename
        self.parser.save(self.config, str(path), skip_unset=False, overwrite=True, multifile=False)
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger | TensorBoardLogger):
                logger.log_hyperparams({"config": path.read_text(encoding="utf-8")})


class RunCheckpoint(Checked, ModelCheckpoint):
    """Keeps the best checkpoint by a metric, and the last one always: also when a run ends between two validations.

    Args:
        monitor: Metric of the best checkpoint.
        mode: Whether more or less of it is better.
        filename: File name of the best checkpoint.
        save_top_k: How many of the best are kept; -1 keeps all.
        every_n_train_steps: Also save the last one every so many steps; null saves it at validation only.
        save_weights_only: Leave out what resuming needs.
    """

    def __init__(
        self,
        monitor: str | None = "val/ciou",
        mode: Literal["min", "max"] = "max",
        filename: str = "best-{step}",
        save_top_k: CountOrAll = 1,
        every_n_train_steps: PositiveInt | None = None,
        save_weights_only: bool = False,
    ) -> None:
        self.every, self._seen = every_n_train_steps, 0
        self.last: Validation | None = None
        self.best: Validation | None = None
        """The metrics of the newest validation, and those of the validation that gave the best checkpoint."""
        super().__init__(  # not given the steps: it would then save after them alone, and not after a validation
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=save_top_k,
            save_weights_only=save_weights_only,
            save_last=True,
            auto_insert_metric_name=True,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == self._seen:  # within an accumulation window
            return
        self._seen = trainer.global_step
        if self.every and self._seen % self.every == 0 and not getattr(trainer, "fast_dev_run", False):
            self._save_newest(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        best = self.best_model_path
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if found and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.last = (trainer.global_step, found)
            self.best = self.last if self.best_model_path != best else self.best
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking and not getattr(trainer, "fast_dev_run", False)
        if fits and last_saved_step(self) != trainer.global_step:
            self._save_newest(trainer)  # not among the best, or the metric does not apply to this data

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            self._save_newest(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_metrics": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best = state_dict.get("best_metrics")

    def summary(self) -> str:
        """The last and the best validation metrics as a table, and where the best checkpoint is; empty if nothing was
        validated."""
        if self.last is None:
            return ""
        shown = {f"last (step {self.last[0]})": self.last[1]}
        if self.best is not None and self.monitor is not None:
            shown[f"best {self.monitor} (step {self.best[0]})"] = self.best[1]
        names = list(dict.fromkeys(name for values in shown.values() for name in values))
        rows = {name: {head: values[name] for head, values in shown.items() if name in values} for name in names}
        where = f"best checkpoint: {self.best_model_path}"
        if not self.best_model_path:
            where = f"no best checkpoint: {self.monitor or 'checkpoint.monitor'} was not measured"
            if self.save_top_k == 0:
                where = "no best checkpoint: checkpoint.save_top_k is 0"
        return f"{markdown_table(rows, corner='metric')}\n\n{where}"

    def _save_newest(self, trainer: L.Trainer) -> None:
        assert self.dirpath is not None
        path = os.path.join(self.dirpath, f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        self.last_model_path = path
        trainer.save_checkpoint(path, self.save_weights_only)
