"""Keeps out of the output of a command what Lightning and its libraries log and nobody needs."""

from __future__ import annotations

import logging
import warnings

from sail_lightning.settings.renames import renamed

NOISE = (
    ".*does not have many workers.*",
    ".*treespec, LeafSpec.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # ours begin where a run was stopped
    ".*GPU available but not used.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from.*",
    ".*could not find the monitored key.*",
    ".*The `srun` command is available.*",
    ".*Please add the following callbacks.*Timer.*",
    ".*when logging on epoch level in distributed setting.*",  # our metrics are summed over ranks themselves
)
"""Warnings about settings that are intended here."""


def silence_lightning() -> None:
    """Lets Lightning log warnings only, and leaves out the warnings that are in `NOISE`."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


__getattr__ = renamed(__name__, {"quiet": "silence_lightning"})
