"""Measuring a model on a source from Python, as `sail-lightning test` does."""

from __future__ import annotations

import lightning as L

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import Source


def measure(model: L.LightningModule, source: Source, callbacks: list[L.Callback] | None = None) -> dict[str, float]:
    """Lets a model answer all questions of a finite source, and judges the answers.

    Args:
        model: Any `PixelSAIL`; built if it is not yet.
        source: A source with a length.
        callbacks: Callbacks of the Trainer, such as a progress bar.

    Returns:
        The metrics of `evaluate.Judge` by their plain names, each in [0, 1].
    """
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bool(callbacks),
        use_distributed_sampler=False,
    )
    result = trainer.test(model, datamodule=SailDataModule(test=source), verbose=False)[0]
    return {name.removeprefix("test/"): float(value) for name, value in result.items()}
