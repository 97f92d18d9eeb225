"""The learning curve that is drawn from a metrics.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from sail_lightning.callbacks import draw_learning_curve
from sail_lightning.errors import SailError
from sail_lightning.evaluate.curves import read_curves


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """As CSVLogger writes it: rows of training and of validation apart, empty cells between."""
    lines = ["epoch,step,lr,train/loss,train/mask,val/ciou", "0,19,,,,0.25", "0,9,0.1,nan,1.5,", "0,29,0.1,1.0,0.5,"]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_empty_and_not_finite_cells_are_left_out_and_steps_are_in_order(table: Path) -> None:
    curves = read_curves(table)
    assert curves["train/loss"] == ([29.0], [1.0])
    assert curves["train/mask"] == ([9.0, 29.0], [1.5, 0.5])
    assert curves["val/ciou"] == ([19.0], [0.25])


def test_losses_and_metrics_get_a_labelled_panel_each(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels: list[Axes] = []
    legend = Axes.legend

    def watched(axes: Axes, *args: object, **kwargs: object) -> object:
        panels.append(axes)
        return legend(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, "legend", watched)
    out = draw_learning_curve(table, tmp_path / "figures" / "curve.png")
    left, right = panels
    assert [line.get_label() for line in left.lines] == ["loss", "mask"]
    assert [line.get_label() for line in right.lines] == ["ciou"]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("step", "training loss", "validation")
    assert np.asarray(Image.open(out)).std() > 0


def test_columns_choose_what_is_drawn(table: Path, tmp_path: Path) -> None:
    one = Image.open(draw_learning_curve(table, tmp_path / "one.png", ["val/ciou"]))
    both = Image.open(draw_learning_curve(table, tmp_path / "both.png", ["val/ciou", "train/mask"]))
    assert both.width == 2 * one.width


def test_a_long_noisy_curve_is_smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(1, 0.5, 300)
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n" + "".join(f"0,{step},{value}\n" for step, value in enumerate(noise)))
    drawn: dict[str, np.ndarray] = {}
    plot = Axes.plot
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda axes, x, y, **k: drawn.update({k.get("label", "faint"): np.asarray(y)}) or plot(axes, x, y, **k),
    )
    draw_learning_curve(path, tmp_path / "curve.png")
    np.testing.assert_array_equal(drawn["faint"], noise)
    assert drawn["loss"].std() < 0.5 * noise.std()
    assert abs(drawn["loss"].mean() - noise.mean()) < 0.05


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (None, None, "no file .*CSVLogger"),
        ("a,b\n1,2\n", None, "no column step"),
        ("epoch,step\n0,1\n", None, "nothing to draw"),
        ("epoch,step,train/loss\n0,1,2\n", ["train/los"], "no column train/los; it has train/loss"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    text: str | None, columns: list[str] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SailError, match=message):
        draw_learning_curve(path, tmp_path / "curve.png", columns)
