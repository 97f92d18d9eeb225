"""`Throughput`: how fast training goes and how much memory it takes."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
import torch

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.registry import register
from sail_lightning.settings.ranges import Checked, PositiveInt


@register
class Throughput(Checked, L.Callback):
    """Logs `train/tokens_per_s`, `train/samples_per_s` (of all ranks together), `train/fill` and
    `train/peak_memory_gib` (of this rank).

    The fill is the share of the data module's token budget that batches hold, on average; a batch over the budget
    counts 1. Rates are averages over the wall time since the entry before, reading of data included, validation and
    the saving that follows it left out. Memory is the most that CUDA has allocated since the start, or without CUDA
    the most that this process has held (resident set; not logged on Windows, where Python cannot tell it). The device
    is waited for only when an entry is written.

    Args:
        every: optimiser steps between two entries; the trainer's `log_every_n_steps` if null.
    """

    def __init__(self, every: PositiveInt | None = None) -> None:
        self.every = every
        self._tokens = self._samples = 0
        self._fills: list[float] = []
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
            self._fills.append(min(1.0, len(batch) / budget))
        step, every = trainer.global_step, self.every or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._last or not every or step % every:  # within an accumulation window, or not yet due
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
        if self._fills:
            values["train/fill"] = sum(self._fills) / len(self._fills)
        # Straight to the loggers: `log` keeps nothing between the trainer's own entries. They count steps from zero.
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        self._restart()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def _restart(self) -> None:
        self._tokens = self._samples = 0
        self._fills.clear()
        self._start = time.perf_counter()


def peak_memory(device: torch.device) -> int | None:
    """Most bytes allocated on a CUDA device, or else held by this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
