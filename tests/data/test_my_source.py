"""The data source of CONTRIBUTING: a table of images, masks and phrases, in one file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sail_lightning import registry
from sail_lightning.cli import main
from sail_lightning.data.sources import Source
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import load_image, load_mask

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_source.py"
CONFIG = "data: {train: {class_path: MySource, init_args: {table: mine.csv}}}\n"


@pytest.fixture
def my_source(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Source]]:
    """The example's class, loaded as `--plugins` loads it, and forgotten again if it was not known before."""
    known = registry.SWAP_POINTS[Source].registry.module_dict
    before, loaded = dict(known), dict(registry.SOURCES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry.load(str(EXAMPLE))
    yield known["MySource"]
    known.clear()
    known.update(before)
    registry.SOURCES.clear()
    registry.SOURCES.update(loaded)
    if "MySource" not in before:
        sys.modules.pop("my_source")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of two objects of one image, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAIL_CACHE", str(tmp_path / "cache"))
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save("a.png")
    for name, column in (("left", 0), ("right", 6)):
        mask = np.zeros((8, 12), np.uint8)
        mask[2:5, column : column + 4] = 255
        Image.fromarray(mask).save(f"{name}.png")
    path = tmp_path / "mine.csv"
    path.write_text("image,mask,phrase\na.png,left.png,the left block\na.png,right.png,the right block\n")
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return path


def test_each_line_is_a_question_with_its_mask(my_source: type[Source], table: Path) -> None:
    source = my_source(str(table))
    assert source.length == 2
    sample = source[1]
    assert sample.turns[0].question == "Please segment the right block."
    assert load_image(sample.images[0]).shape == (8, 12, 3)
    assert load_mask(sample.masks[0]).sum() == 12 and load_mask(sample.masks[0])[:, :6].sum() == 0


def test_a_line_without_a_phrase_is_named_and_the_others_are_read(my_source: type[Source], table: Path) -> None:
    with table.open("a") as file:
        file.write("a.png,left.png,\n")
    source = my_source(str(table))
    assert source[0].turns
    with pytest.raises(SailError, match=r"mine\.csv line 4: it has no phrase; write one into the column phrase"):
        source[2]


def test_a_table_without_a_column_is_a_fault_of_each_line(my_source: type[Source], table: Path) -> None:
    table.write_text("image,phrase\na.png,the left block\n")
    with pytest.raises(SailError, match=r"mine\.csv line 2: the key 'mask' is missing; fix the record"):
        my_source(str(table))[0]


def test_data_check_reads_the_table_and_finds_no_fault(
    my_source: type[Source], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", "-c", "mine.yaml", "--workers=0", "--plugins", str(EXAMPLE)]) == 0
    assert "No fault." in capsys.readouterr().out


def test_data_check_names_a_mask_of_another_size(
    my_source: type[Source], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save("left.png")
    assert main(["data", "check", "-c", "mine.yaml", "--workers=0", "--plugins", str(EXAMPLE)]) == 1
    out = capsys.readouterr().out
    assert "mask_size" in out and "mine.csv line 2" in out
