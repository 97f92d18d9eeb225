"""A tiny model, a run of two steps, and the command line in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_harness import FIT, Command, Result
from PIL import Image

from sail_lightning import registry
from sail_lightning.cli import main


@pytest.fixture
def sail(capsys: pytest.CaptureFixture[str], workdir: Path) -> Command:
    """Runs a command in an empty folder."""

    def run(*args: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, validated once."""
    root = tmp_path_factory.mktemp("trained")
    assert main([*FIT, f"--runs={root}", "--trainer.val_check_interval=1", "--data.val.samples=6"]) == 0
    return root / "quickstart" / "version_0"


@pytest.fixture(scope="session")
def ckpt(run_folder: Path) -> Path:
    """Its last checkpoint."""
    return run_folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def model_folder(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a model folder."""
    from sail_lightning import PixelSAIL

    return PixelSAIL.load_from_checkpoint(ckpt).save_pretrained(tmp_path_factory.mktemp("folder") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three small images of different sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 48 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def user_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with an upsampler of the user's own, forgotten again after the test."""
    import sys

    from sail_lightning.interfaces import Upsampler

    path = tmp_path / "users_upsampler.py"
    path.write_text(
        "from sail_lightning.plugins.upsamplers import BilinearUpsampler\n"
        "from sail_lightning.registry import register\n\n\n"
        "@register\nclass MyCliUpsampler(BilinearUpsampler):\n"
        '    """Made by a user.\n\n    Args:\n        stride: pixels per mask feature.\n    """\n\n'
        "    def __init__(self, stride: int = 8) -> None:\n        super().__init__(stride)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield path
    registry.SOCKETS[Upsampler].module_dict.pop("MyCliUpsampler", None)
    registry.SOURCES.pop(str(path), None)
    sys.modules.pop("users_upsampler", None)
