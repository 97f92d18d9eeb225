"""A Trainer of three steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Makes a Trainer of three steps, without validation, that writes to `tmp_path` and logs each step."""

    def make(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
        arguments: dict[str, Any] = {
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "default_root_dir": tmp_path,
            "enable_checkpointing": any(isinstance(item, L.pytorch.callbacks.ModelCheckpoint) for item in callbacks),
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "logger": False,
            "max_steps": 3,
            "use_distributed_sampler": False,
        }
        return L.Trainer(**(arguments | settings))

    return make
