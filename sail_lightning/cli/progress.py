"""The progress bar of the command line."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from sail_lightning.compat.lightning import NamedRichProgressBar


def progress_bar(verb: str) -> ProgressBar:
    """The bar of a verb: Rich's on a terminal, plain text where output goes to a file or another program."""
    return TerminalProgress(verb) if sys.stdout.isatty() else PlainProgress(verb)


class _NamedProgress(ProgressBar):
    """Named by the verb instead of the epoch (our runs have one endless epoch), with the loss beside it."""

    verb = ""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = dict(super().get_metrics(trainer, pl_module))
        shown.pop("v_num", None)
        if trainer.training and (loss := trainer.callback_metrics.get("train/loss")) is not None:
            shown["loss"] = f"{float(loss):.3f}"
        return shown


class TerminalProgress(_NamedProgress, NamedRichProgressBar):
    """Rich's bar."""

    def __init__(self, verb: str) -> None:
        super().__init__(refresh_rate=5)
        self.verb = verb


class PlainProgress(_NamedProgress, TQDMProgressBar):
    """A line of text now and then: for logs."""

    def __init__(self, verb: str) -> None:
        super().__init__(refresh_rate=100)
        self.verb = verb
