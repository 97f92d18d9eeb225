"""`Throughput`: logs the speed and the memory of training."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
import torch

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.registry import register
from sail_lightning.settings.ranges import Checked, PositiveInt

OLD_EFFICIENCY = "train/fill"
"""The log key of the packing efficiency in version 0.1, logged too until the next version."""


@register
class Throughput(Checked, L.Callback):
    """Logs `train/tokens_per_s` and `train/samples_per_s` of all ranks, `train/packing_efficiency` and
    `train/peak_memory_gib` of this rank.

    The packing efficiency is the mean share of the data module's token budget that batches use, 0 to 1; a batch over
    the budget counts as 1. It is also logged as `train/fill`, its name in version 0.1, until the next version. Rates
    are averages over the wall time since the last entry, with the reading of data, without validation and the saving
    that follows it. Memory is the peak that CUDA has allocated since the start, or without CUDA the peak resident set
    of this process (not logged on Windows, where Python has no such value). The device is synchronised only when an
    entry is written.

    Args:
        every: optimiser steps between two entries; null is the trainer's `log_every_n_steps`.
    """

    def __init__(self, every: PositiveInt | None = None) -> None:
        self.every = every
        self._tokens = self._samples = 0
        self._efficiencies: list[float] = []
        self._start = 0.0
        self._paused: float | None = None
        self._last = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last, self._paused = trainer.global_step, None
        self._restart()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PackedBatch, batch_idx: int
    ) -> None:
        if self._paused is not None:
            self._start += time.perf_counter() - self._paused
            self._paused = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        self._tokens += len(batch)
        self._samples += len(batch.samples)
        budget = getattr(trainer.datamodule, "token_budget", None)  # type: ignore[attr-defined]
        if budget:  # a user's own data module need not have one
            self._efficiencies.append(min(1.0, len(batch) / budget))
        step, every = trainer.global_step, self.every or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._last or not every or step % every:  # within an accumulation window, or no entry is due
            return
        self._last = step
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "train/tokens_per_s": self._tokens * trainer.world_size / seconds,
            "train/samples_per_s": self._samples * trainer.world_size / seconds,
        }
        if (peak := peak_memory(pl_module.device)) is not None:
            values["train/peak_memory_gib"] = peak / 2**30
        if (faults := getattr(trainer.datamodule, "faults", None)) is not None:  # type: ignore[attr-defined]
            values["train/broken_records"] = float(faults)
        if self._efficiencies:
            efficiency = sum(self._efficiencies) / len(self._efficiencies)
            values |= {"train/packing_efficiency": efficiency, OLD_EFFICIENCY: efficiency}
        # Directly to the loggers: `log` would drop values between the trainer's own entries. Loggers count from zero.
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        self._restart()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def _restart(self) -> None:
        self._tokens = self._samples = 0
        self._efficiencies.clear()
        self._start = time.perf_counter()


def peak_memory(device: torch.device) -> int | None:
    """Returns the peak bytes allocated on a CUDA device, or held by this process; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
