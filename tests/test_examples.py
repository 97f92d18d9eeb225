"""The examples of CONTRIBUTING and README, run as a user runs them, and the drawing of the architecture."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from sail_lightning import registry
from sail_lightning.cli import main
from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.model.losses import MaskLoss

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


def test_the_example_refuses_channels_that_cannot_be(my_upsampler: type[Upsampler]) -> None:
    with pytest.raises(SailUsageError, match="^MyUpsampler: channels must be 1 or more, not -1"):
        my_upsampler(channels=-1)


@pytest.mark.parametrize("pictures", [2, 0])
def test_every_weight_of_the_example_has_a_gradient(my_upsampler: type[Upsampler], pictures: int) -> None:
    upsampler = my_upsampler()
    upsampler.build(DIMS)
    upsampler(torch.randn(pictures, 12, 3, 5)).square().sum().backward()
    sizes = [parameter.grad.abs().max() for parameter in upsampler.parameters() if parameter.grad is not None]
    assert len(sizes) == len(list(upsampler.parameters())) == 2
    assert all((size > 0) == (pictures > 0) for size in sizes)


# -- one example per page of CONTRIBUTING -----------------------------------------------------------------------------

PAGES = {
    "Add a prompt encoder": "my_prompt_encoder.py",
    "Add a teacher": "my_teacher.py",
    "Add a backbone": "my_backbone.py",
    "Add a loss": "my_loss.py",
    "Add a callback": "my_callback.py",
}


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets what a test registers and imports from examples."""
    points = {point.base: dict(point.registry.module_dict) for point in registry.swap_points()}
    sources = dict(registry.SOURCES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for base, members in points.items():
        registry.SWAP_POINTS[base].registry.module_dict.clear()
        registry.SWAP_POINTS[base].registry.module_dict.update(members)
    registry.SOURCES.clear()
    registry.SOURCES.update(sources)
    for name in PAGES.values():
        sys.modules.pop(Path(name).stem, None)


@pytest.mark.parametrize(("page", "name"), PAGES.items())
def test_a_page_shows_its_example_and_counts_its_lines(page: str, name: str) -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = (ROOT / "examples" / name).read_text(encoding="utf-8")
    section = re.search(rf"^## {page}\n(.*?)(?=^## |\Z)", contributing, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert f"```python\n{code}```" in section[1]
    lines = code.count("\n")
    assert lines <= 32
    assert f"files opened: 1, lines written: {lines}." in " ".join(section[1].split())


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("plugin", "name"),
    [
        ("MyPromptEncoder", "my_prompt_encoder.py"),
        ("MyTeacher", "my_teacher.py"),
        ("MyBackbone", "my_backbone.py"),
    ],
)
def test_an_example_of_a_plugin_keeps_the_contract_of_its_socket(
    plugin: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "check", plugin, "--plugins", str(ROOT / "examples" / name)]) == 0
    assert ": all ok" in capsys.readouterr().out


TINY = (
    "--model.backbone.hidden_size=32",
    "--model.backbone.num_layers=1",
    "--model.backbone.num_heads=2",
    "--model.backbone.num_key_value_heads=2",
    "--model.backbone.intermediate_size=64",
    "--data.token_budget=400",
)


def trained(name: str, *options: str) -> dict[str, float]:
    """Trains two steps with an example loaded; returns the last logged value of each column."""
    plugin = ROOT / "examples" / name
    steps = ("--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0")
    words = ["fit", "-c", "quickstart", "--plugins", str(plugin), "--trainer.accelerator=cpu", *steps, *TINY, *options]
    assert main(words) == 0
    with Path("runs/quickstart/version_0/metrics.csv").open(encoding="utf-8") as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


@pytest.mark.usefixtures("forgotten", "workdir")
def test_the_loss_of_the_example_trains() -> None:
    logged = trained("my_loss.py", "--model.mask_loss=FocalMaskLoss", "--model.mask_loss.gamma=1.5")
    assert 0 < logged["train/mask"] < float("inf")


@pytest.mark.usefixtures("forgotten")
def test_the_loss_of_the_example_is_plain_cross_entropy_at_gamma_0() -> None:
    focal = imported(ROOT / "examples" / "my_loss.py").FocalMaskLoss
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 4, 5, generator=generator), torch.zeros(0, 3, 3)]
    targets = [torch.rand(2, 8, 10, generator=generator) > 0.5, torch.zeros(0, 6, 6, dtype=torch.bool)]
    plain = MaskLoss()(logits, targets)
    assert torch.allclose(focal(gamma=0.0)(logits, targets).bce, plain.bce)
    assert focal(gamma=2.0)(logits, targets).bce < plain.bce


@pytest.mark.usefixtures("forgotten", "workdir")
def test_the_callback_of_the_example_logs() -> None:
    assert 0 < trained("my_callback.py", "--trainer.callbacks+=SlowestBatch")["train/slowest_batch_s"] < 600


# -- the drawing of the architecture ----------------------------------------------------------------------------------


def test_the_architecture_is_drawn(tmp_path: Path) -> None:
    module = imported(ROOT / "docs" / "draw_architecture.py")
    pixels = np.asarray(Image.open(module.draw_architecture(tmp_path / "drawn.png")).convert("RGB"))
    assert pixels.shape[1] > 1000
    assert (pixels == 255).all(-1).mean() > 0.3  # a page with something on it
    assert (pixels != 255).any(-1).mean() > 0.1
    vector = module.draw_architecture(tmp_path / "drawn.svg").read_text(encoding="utf-8")
    assert vector.startswith("<?xml") and "<image" in vector
