"""The plugin of the README, and the picture of the architecture."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from sail_lightning import registry
from sail_lightning.interfaces import Dims, Upsampler

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "my_upsampler.py"
DIMS = Dims(vocab_size=50, hidden_size=12, patch_size=16)


def imported(path: Path) -> ModuleType:
    """A file as a module that nothing else sees."""
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def my_upsampler(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Upsampler]]:
    """The example's class, loaded as `--plugins` loads it; forgotten again if it was not known before."""
    known = registry.SOCKETS[Upsampler].module_dict
    before, sources = dict(known), dict(registry.SOURCES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry.load(str(EXAMPLE))
    yield known["MyUpsampler"]
    known.clear()
    known.update(before)
    registry.SOURCES.clear()
    registry.SOURCES.update(sources)
    if "MyUpsampler" not in before:
        sys.modules.pop("my_upsampler")


def test_the_example_is_no_longer_than_25_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 25


def test_the_example_publishes_what_it_gives(my_upsampler: type[Upsampler]) -> None:
    upsampler = my_upsampler(channels=7)
    dims = upsampler.build(DIMS)
    features = upsampler(torch.randn(2, 12, 3, 5))
    side = DIMS.patch_size // dims.feature_stride
    assert dims.feature_stride == 8
    assert features.shape == (2, dims.feature_channels, 3 * side, 5 * side) == (2, 7, 6, 10)


@pytest.mark.parametrize("pictures", [2, 0])
def test_every_weight_of_the_example_has_a_gradient(my_upsampler: type[Upsampler], pictures: int) -> None:
    upsampler = my_upsampler()
    upsampler.build(DIMS)
    upsampler(torch.randn(pictures, 12, 3, 5)).square().sum().backward()
    sizes = [parameter.grad.abs().max() for parameter in upsampler.parameters() if parameter.grad is not None]
    assert len(sizes) == len(list(upsampler.parameters())) == 2
    assert all((size > 0) == (pictures > 0) for size in sizes)


def test_the_architecture_is_drawn(tmp_path: Path) -> None:
    module = imported(ROOT / "docs" / "draw_architecture.py")
    pixels = np.asarray(Image.open(module.draw_architecture(tmp_path / "drawn.png")).convert("RGB"))
    assert pixels.shape[1] > 1000
    assert (pixels == 255).all(-1).mean() > 0.3  # a page with something on it
    assert (pixels != 255).any(-1).mean() > 0.1
    vector = module.draw_architecture(tmp_path / "drawn.svg").read_text(encoding="utf-8")
    assert vector.startswith("<?xml") and "<image" in vector
