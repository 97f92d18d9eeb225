"""Logs the slowest training batch: a whole callback."""

import time
from typing import Any

import lightning as L

from sail_lightning.registry import register


@register
class SlowestBatch(L.Callback):
    """Logs `train/slowest_batch_s`, the longest time that a training batch has taken so far, in seconds."""

    def __init__(self) -> None:
        self.start, self.slowest = 0.0, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.slowest = max(self.slowest, time.perf_counter() - self.start)
        pl_module.log("train/slowest_batch_s", self.slowest)
