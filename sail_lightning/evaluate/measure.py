"""Measuring a model on a source from Python, as `sail-lightning test` does."""

from __future__ import annotations

import lightning as L

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import Source


def measure(model: L.LightningModule, source: Source, callbacks: list[L.Callback] | None = None) -> dict[str, float]:
    """Answers all questions of a finite source and judges them.

    Args:
        model: Any `PixelSAIL`; built if it is not yet.
        source: with a length.
        callbacks: of the Trainer, such as a progress bar.

    Returns:
        metrics of `evaluate.Judge` by their plain names, each 0 to 1.
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
