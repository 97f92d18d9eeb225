"""`EMA`: a moving average of the weights, which is validated and saved in their place."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sail_lightning.compat.lightning import Averaging
from sail_lightning.compat.torch import lerp_
from sail_lightning.errors import SailUsageError
from sail_lightning.registry import register
from sail_lightning.settings.ranges import BelowOne, Checked, NonNegativeInt


@register
class EMA(Checked, Averaging):
    """Keeps an exponential moving average of the weights: average = decay * average + (1 - decay) * weights.

    Validation runs on the average. A checkpoint's `state_dict` is the average, so that `load_from_checkpoint` returns
    it; the weights in training are stored as `current_model_state` for resume. After training the model holds the
    average. Buffers are copied; teachers are neither averaged nor copied. Sharded models (FSDP) are not supported.
    Weights in half precision (`bf16-true`) are refused, because one step's contribution to the average is below their
    precision, and so are checkpoints of weights only, to which callbacks cannot add.

    Args:
        decay: decay of the average, 0 to 1; about 1 / (1 - decay) steps are averaged.
        start_step: optimiser step until which the average equals the weights.
    """

    def __init__(self, decay: BelowOne = 0.999, start_step: NonNegativeInt = 0) -> None:
        self.decay, self.start_step = decay, start_step
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, count: Tensor | int) -> None:
        # Updated at every step from the first, so `count` is the number of steps taken before this one.
        keep = self.decay if int(count) >= self.start_step else 0.0
        lerp_(averages, weights, 1 - keep)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if str(trainer.precision) in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
            raise SailUsageError(
                f"EMA cannot average weights in half precision (trainer.precision {trainer.precision}); "
                f"use {'bf16-mixed' if 'bf16' in str(trainer.precision) else '16-mixed'}"
            )
        if any(getattr(saver, "save_weights_only", False) for saver in trainer.checkpoint_callbacks):
            raise SailUsageError(
                "EMA stores its average in whole checkpoints; set checkpoint.save_weights_only to false"
            )
        pl_module.configure_model()
        self.place(trainer.strategy.root_device)  # the model itself is moved there later
        # The average is a copy of the whole module, and teachers may be large: they are left out of it.
        distill = getattr(pl_module, "distill", None)
        teachers = getattr(distill, "teachers", None)
        if teachers is not None:
            distill.teachers = {}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model")
                super().setup(trainer, pl_module, stage)
        finally:
            if teachers is not None:
                distill.teachers = teachers

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Does nothing yet: checkpoints are saved later, and hold the weights in training too."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.settle(pl_module)
