"""The progress bar of the command line."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Rich's bar, named by the verb instead of the epoch (our runs have one endless epoch), with the loss beside it."""

    def __init__(self, verb: str) -> None:
        super().__init__(refresh_rate=5)
        self.verb = verb

    def _get_train_description(self, current_epoch: int) -> str:
        return self.verb  # Lightning's would be "Epoch 0/-2"; if this hook goes, only that text comes back

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = dict(super().get_metrics(trainer, pl_module))
        shown.pop("v_num", None)
        if trainer.training and (loss := trainer.callback_metrics.get("train/loss")) is not None:
            shown["loss"] = f"{float(loss):.3f}"
        return shown
