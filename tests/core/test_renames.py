"""Module paths and names of version 0.1.0 before the move: they work, and name what replaces them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from sail_lightning.settings import renames


@pytest.mark.parametrize(("old", "new"), sorted(renames.MODULES.items()))
def test_an_old_module_path_is_the_module_of_today(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"sail_lightning.{old}", raising=False)
    with pytest.warns(FutureWarning, match=f"sail_lightning.{new};"):
        module = importlib.import_module(f"sail_lightning.{old}")
    assert module is importlib.import_module(f"sail_lightning.{new}")
    assert module.__name__ == f"sail_lightning.{new}"


@pytest.mark.parametrize(
    "path", ["generation.generate", "model.SailModel", "sequence.SequenceBuilder", "data.sample.Sample"]
)
def test_an_old_name_is_the_class_of_today(path: str) -> None:
    module, _, name = f"sail_lightning.{path}".rpartition(".")
    with pytest.warns(FutureWarning, match="is now"):
        found = getattr(importlib.import_module(module), name)
        assert found is not None
        sys.modules.pop("sail_lightning.data.sample", None)


def test_an_unknown_module_is_still_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="sail_lightning.nonsense"):
        importlib.import_module("sail_lightning.nonsense")


def test_a_stored_class_path_is_rewritten() -> None:
    assert renames.new_path("sail_lightning.losses.MaskLoss") == "sail_lightning.model.losses.MaskLoss"
    assert renames.new_path("torch.optim.AdamW") == "torch.optim.AdamW"
    assert renames.new_path("sail_lightning.model.losses.MaskLoss") == "sail_lightning.model.losses.MaskLoss"


def test_the_old_paths_work_in_a_fresh_process_before_anything_else() -> None:
    code = (
        "from sail_lightning.data.sample import Sample; import sail_lightning; assert Sample is sail_lightning.Sample"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
