"""`NonFiniteGuard`: stops a run at the first loss that is not finite, and reports where it was."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.errors import SailError
from sail_lightning.registry import register
from sail_lightning.settings.ranges import Checked, PositiveInt


@register
class NonFiniteGuard(Checked, L.Callback):
    """Stops training when a loss is NaN or infinite; the error names the step and the samples of that batch.

    On the CPU each loss is checked at once. On other devices that would make the host wait for every step, so losses
    are checked there and the results read together every `every` batches, before validation, before a whole checkpoint
    is saved, and at the end: the run stops up to that many batches late, but the error names the step and the samples
    of the first bad loss.

    Args:
        every: number of batches between two checks on devices other than the CPU.
    """

    def __init__(self, every: PositiveInt = 50) -> None:
        self.every = every
        self._finite: list[Tensor] = []
        self._where: list[tuple[int, tuple[str, ...]]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finite, self._where = [], []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        if not outputs:
            return
        loss = outputs["loss"].detach()
        names = tuple(" ".join(part for part in (item.source, item.id) if part) for item in batch.samples)
        self._finite.append(torch.isfinite(loss))
        self._where.append((trainer.global_step, names))
        if loss.device.type == "cpu" or len(self._finite) >= self.every:
            self._check()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_together(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_together(trainer)  # before the file is written, which would replace a good one

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_together(trainer)

    def _check_together(self, trainer: L.Trainer) -> None:
        """Stops all processes at once: one bad loss damages the weights of all."""
        fault = self._fault()
        if not trainer.strategy.reduce_boolean_decision(not fault, all=True):
            raise SailError(fault or "the loss is not finite in another process; see its error for the samples")

    def _check(self) -> None:
        if fault := self._fault():
            raise SailError(fault)

    def _fault(self) -> str:
        """Returns the message about the losses since the last check; empty if all are finite."""
        if not self._finite:
            return ""
        finite, where = torch.stack(self._finite).tolist(), self._where
        self._finite, self._where = [], []
        if all(finite):
            return ""
        step, names = where[finite.index(False)]
        return (
            f"the loss is not finite at step {step}, samples {', '.join(names) or 'without names'}; lower the "
            "learning rate, clip gradients (trainer.gradient_clip_val) or check these samples"
        )
