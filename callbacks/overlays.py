"""`OverlayLogger`: logs the model's answers in validation and test as one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger
from PIL import Image

from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.drawing import grid
from sail_lightning.registry import register
from sail_lightning.settings.ranges import Checked, NonNegativeInt
from sail_lightning.settings.renames import renamed

WIDTH = 256
"""Largest width of a drawn answer in pixels."""


@register
class OverlayLogger(Checked, L.Callback):
    """Draws the first answers of each validation and test run as one grid and logs it with every logger.

    The image is logged by the logger's own method: TensorBoard (`add_image`), Weights & Biases (`log_image`), MLflow
    (`log_image` of its client). With a logger that has none, such as CSV, and without any logger, it is written to
    `overlays/<stage>-step<k>.png` in the run's folder. Nothing is drawn in the sanity check before training.

    Args:
        count: number of answers that are drawn.
    """

    def __init__(self, count: NonNegativeInt = 8) -> None:
        self.count = count
        self._drawn: list[Image.Image] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._drawn = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._drawn = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        self._collect(trainer, outputs)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        self._collect(trainer, outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._send(trainer, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._send(trainer, "test")

    def _collect(self, trainer: L.Trainer, predictions: Sequence[Prediction]) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            # Drawn at once: a thumbnail is small, a prediction holds its image and masks at full size.
            self._drawn += [thumbnail(item.overlay()) for item in predictions[: self.count - len(self._drawn)]]

    def _send(self, trainer: L.Trainer, stage: str) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # read on all ranks: Lightning broadcasts it
        if not self._drawn:
            return
        image = grid(self._drawn)
        self._drawn = []
        step = trainer.global_step
        logged = [log_image(logger, f"{stage}/overlays", image, step) for logger in trainer.loggers]
        if not all(logged) or not logged:
            path = folder / "overlays" / f"{stage}-step{step}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def log_image(logger: Logger, name: str, image: Image.Image, step: int) -> bool:
    """Logs an image with the method that a logger has for it; returns whether it has one.

    Loggers are recognised by their methods, so that no logging package has to be installed.
    """
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):  # TensorBoardLogger
        experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
    elif hasattr(logger, "log_image"):  # WandbLogger
        logger.log_image(key=name, images=[image], step=step)
    elif hasattr(logger, "run_id") and hasattr(experiment, "log_image"):  # MLFlowLogger
        experiment.log_image(logger.run_id, image, key=name, step=step)
    else:
        return False
    return True


def thumbnail(image: Image.Image) -> Image.Image:
    """Returns an image of at most `WIDTH` pixels width; smaller ones are unchanged."""
    if image.width <= WIDTH:
        return image
    return image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))))


__getattr__ = renamed(__name__, {"log_picture": "log_image"})
