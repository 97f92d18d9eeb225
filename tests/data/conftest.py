"""Data sets in the published formats, written once; indices go to a folder of the test session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test writes to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SAIL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of all written sets; `data_root` makes it `$SAIL_DATA`."""
    import pkgutil
    from importlib import import_module

    import dataset_writers

    root = tmp_path_factory.mktemp("sets")
    for module in pkgutil.iter_modules(dataset_writers.__path__):
        if write := getattr(import_module(f"dataset_writers.{module.name}"), "write", None):
            write(root)
    return root


@pytest.fixture
def data_root(sets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$SAIL_DATA` for one test."""
    monkeypatch.setenv("SAIL_DATA", str(sets))
    return sets
