"""What Lightning says that helps nobody."""

from __future__ import annotations

import logging
import warnings

NOISE = (
    ".*does not have many workers.*",
    ".*treespec, LeafSpec.*",
    ".*GPU available but not used.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from.*",
    ".*could not find the monitored key.*",
    ".*The `srun` command is available.*",
    ".*Please add the following callbacks.*Timer.*",
    ".*when logging on epoch level in distributed setting.*",  # our metrics are summed over ranks themselves
)
"""Warnings about what is meant so."""


def quiet() -> None:
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
