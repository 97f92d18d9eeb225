"""What all tests share: a quiet, deterministic, single-threaded process in which every plugin is registered."""

from __future__ import annotations

import os

# Before the libraries are imported: nothing is fetched, nothing draws on a screen, workers do not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import logging
import random
from pathlib import Path

# Plugin files are looked up again by each command, and tests run commands in folders of their own.
if listed := os.environ.get("SAIL_PLUGINS"):
    sources = listed.split(os.pathsep)
    found = [os.path.abspath(source) if source.endswith(".py") else source for source in sources]
    os.environ["SAIL_PLUGINS"] = os.pathsep.join(found)

import numpy as np
import pytest
from hypothesis import settings

# torch and the package are imported below, where tests are collected: xdist's controller, which runs none, need not.

settings.register_profile("sail", deadline=None)  # the first example of a property pays for imports and kernels
settings.load_profile("sail")


def pytest_configure() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Registers all plugins, `$SAIL_PLUGINS` included, before the first test module is imported."""
    if isinstance(collector, pytest.Directory):
        import torch

        from sail_lightning import registry

        torch.set_num_threads(1)
        registry.discover()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one during the test, for code that writes `runs/` where it stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
