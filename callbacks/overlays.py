"""`OverlayLogger`: what the model answers during validation and test, as one picture in the logger."""

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

WIDTH = 256


@register
class OverlayLogger(Checked, L.Callback):
    """Draws the first answers of each validation and test run as one grid and hands it to every logger.

    The picture goes through the logger's own image call: TensorBoard (`add_image`), Weights & Biases (`log_image`),
    MLflow (`log_image` of its client). For a logger without one, as CSV, and without any logger, it is written to
    `overlays/<stage>-step<k>.png` in the run's folder. The check before training (`sanity_checking`) draws nothing.

    Args:
        count: how many answers are drawn.
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
            # Drawn at once: a thumbnail is small, a prediction keeps its picture and masks at full size.
            self._drawn += [thumbnail(item.overlay()) for item in predictions[: self.count - len(self._drawn)]]

    def _send(self, trainer: L.Trainer, stage: str) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asked on all ranks: Lightning broadcasts it
        if not self._drawn:
            return
        picture = grid(self._drawn)
        self._drawn = []
        step = trainer.global_step
        taken = [log_picture(logger, f"{stage}/overlays", picture, step) for logger in trainer.loggers]
        if not all(taken) or not taken:
            path = folder / "overlays" / f"{stage}-step{step}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


def log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> bool:
    """Hands a picture to a logger by the image call that it has; whether it had one.

    Told apart by their methods, so that no logging package has to be installed.
    """
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):  # TensorBoardLogger
        experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif hasattr(logger, "log_image"):  # WandbLogger
        logger.log_image(key=name, images=[picture], step=step)
    elif hasattr(logger, "run_id") and hasattr(experiment, "log_image"):  # MLFlowLogger
        experiment.log_image(logger.run_id, picture, key=name, step=step)
    else:
        return False
    return True


def thumbnail(picture: Image.Image) -> Image.Image:
    """A picture at most `WIDTH` wide; smaller ones are left alone."""
    if picture.width <= WIDTH:
        return picture
    return picture.resize((WIDTH, max(1, round(picture.height * WIDTH / picture.width))))
