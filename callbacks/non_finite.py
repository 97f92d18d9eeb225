"""`NonFiniteGuard`: a run whose loss is lost stops, and says where."""

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

    On the CPU each loss is looked at as it comes. On other devices that would make the host wait for every step, so
    they are marked there and read together every `every` batches, before validation, before a whole checkpoint is saved
    and at the end: the run stops up to that many batches late, the step and the samples named are still those of the
    first bad loss.

    Args:
        every: batches between two looks, on other devices than the CPU.
    """

    def __init__(self, every: PositiveInt = 50) -> None:
        self.every = every
        self._marks: list[Tensor] = []
        self._where: list[tuple[int, tuple[str, ...]]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._marks, self._where = [], []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        if not outputs:
            return
        loss = outputs["loss"].detach()
        names = tuple(" ".join(part for part in (item.source, item.id) if part) for item in batch.samples)
        self._marks.append(torch.isfinite(loss))
        self._where.append((trainer.global_step, names))
        if loss.device.type == "cpu" or len(self._marks) >= self.every:
            self._look()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_together(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look_together(trainer)  # before the file is written: it would take the place of a good one

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_together(trainer)

    def _look_together(self, trainer: L.Trainer) -> None:
        """In all processes at once: one bad loss spoils the weights of all."""
        told = self._told()
        if not trainer.strategy.reduce_boolean_decision(not told, all=True):
            raise SailError(told or "the loss is not finite in another process, which says where")

    def _look(self) -> None:
        if told := self._told():
            raise SailError(told)

    def _told(self) -> str:
        """What is wrong with the losses that were marked; empty if nothing is."""
        if not self._marks:
            return ""
        finite, where = torch.stack(self._marks).tolist(), self._where
        self._marks, self._where = [], []
        if all(finite):
            return ""
        step, names = where[finite.index(False)]
        return (
            f"the loss is not finite at step {step}, samples {', '.join(names) or 'without names'}; lower the "
            "learning rate, clip gradients (trainer.gradient_clip_val) or look at these samples"
        )
