"""`OverlayLogger`: one image a run, through each logger's own image call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
from callback_harness import tiny_data, tiny_model
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from sail_lightning.callbacks import OverlayLogger
from sail_lightning.callbacks.overlays import grid, log_image

MakeTrainer = Callable[..., L.Trainer]
PICTURE = Image.new("RGB", (30, 20), (200, 10, 10))


class WandbLike:
    """The image call of `WandbLogger`."""

    experiment = SimpleNamespace(log=None)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.got = (key, images, step)


class MLflowLike:
    """`MLFlowLogger`, whose experiment is an `MlflowClient`."""

    run_id = "run"

    def __init__(self) -> None:
        self.experiment = SimpleNamespace(log_image=self._log_image)

    def _log_image(self, run_id: str, image: Any, key: str | None = None, step: int | None = None) -> None:
        self.got = (run_id, image, key, step)


def test_weights_and_biases_gets_the_image() -> None:
    logger: Any = WandbLike()
    assert log_image(logger, "val/overlays", PICTURE, 7)
    assert logger.got == ("val/overlays", [PICTURE], 7)


def test_mlflow_gets_the_image() -> None:
    logger: Any = MLflowLike()
    assert log_image(logger, "val/overlays", PICTURE, 7)
    assert logger.got == ("run", PICTURE, "val/overlays", 7)


def test_tensorboard_gets_the_image(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    assert log_image(logger, "val/overlays", PICTURE, 7)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    (event,) = events.Images("val/overlays")
    assert (event.step, event.width, event.height) == (7, 30, 20)


def test_csv_has_no_image_call(tmp_path: Path) -> None:
    assert not log_image(CSVLogger(tmp_path), "val/overlays", PICTURE, 7)


def test_validation_within_fit_draws_each_run_but_not_the_check_before_it(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    runner = trainer(OverlayLogger(), logger=logger, limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=1)
    runner.fit(tiny_model(), datamodule=tiny_data())
    names = sorted(path.name for path in Path(logger.log_dir, "overlays").iterdir())
    assert names == ["val-step1.png", "val-step2.png", "val-step3.png"]


def test_test_draws_no_more_than_count_and_without_a_logger_to_the_run_folder(
    trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        "sail_lightning.callbacks.overlays.grid", lambda pictures: drawn.append(len(pictures)) or grid(pictures)
    )
    trainer(OverlayLogger(count=5)).test(tiny_model(), datamodule=tiny_data(), verbose=False)
    assert drawn == [5]  # of six samples, in batches of four
    assert Image.open(tmp_path / "overlays/test-step0.png").width > 256


def test_a_logger_with_images_leaves_no_file(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer(OverlayLogger(), logger=logger).test(tiny_model(), datamodule=tiny_data(), verbose=False)
    assert not list(Path(logger.log_dir).rglob("*.png"))


def test_a_grid_holds_all_images_side_by_side() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    sheet = np.asarray(grid([Image.new("RGB", (10, 6 + place), colour) for place, colour in enumerate(colours)]))
    for place, colour in enumerate(colours):
        assert (sheet == colour).all(-1).sum() == 10 * (6 + place)
