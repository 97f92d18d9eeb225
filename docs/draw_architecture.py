"""Draws docs/architecture.svg, on a scene of the laboratory: `.venv/bin/python docs/draw_architecture.py [FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import NDArray

from sail_lightning.data.synthetic.scenes import Scene, draw_scene

OUT = Path(__file__).with_name("architecture.svg")
INK, GREY, LINE = "#1f2933", "#66727f", "#44515e"
VISION, WORD, SEG, TEACHER = "#cfe3fb", "#fdebc8", "#f9c6c0", "#eeeeee"
SOCKET = "#2563a8"
"""Colour of the outline of sockets; everything else is fixed."""
SEED = 2
TARGET = 0
"""Index of the object that the question names."""


def draw_architecture(out: Path = OUT) -> Path:
    """Writes the drawing; the file's ending gives the format."""
    scene = draw_scene(np.random.default_rng(SEED), min_objects=4, max_objects=4)
    target = scene.objects[TARGET]
    # Paths instead of fonts look the same everywhere; the salt and the absent date keep the file the same.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "sail", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(13, 6.6), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 13), ylim=(0, 6.6))
        axes.axis("off")
        _inputs(axes, scene, f"segment the {target.colour} {target.shape}.")
        _network(axes)
        _outputs(axes, scene.image, target.mask)
        metadata = {"Date": None, "Creator": None, "Title": "Pixel-SAIL"} if out.suffix == ".svg" else None
        figure.savefig(out, dpi=110, metadata=metadata)
    return out


def _inputs(axes: Axes, scene: Scene, question: str) -> None:
    _image(axes, scene.image, (0.3, 3.0), 2.0)
    for step in range(1, 8):
        at = 2.0 * step / 8
        axes.plot([0.3 + at] * 2, [3.0, 5.0], color="white", linewidth=0.5, alpha=0.6)
        axes.plot([0.3, 2.3], [3.0 + at] * 2, color="white", linewidth=0.5, alpha=0.6)
    other = scene.objects[1].mask
    rows, columns = np.flatnonzero(other.any(1)), np.flatnonzero(other.any(0))
    scale = 2.0 / len(other)
    corner = (0.3 + columns[0] * scale, 5.0 - (rows[-1] + 1) * scale)
    size = ((np.ptp(columns) + 1) * scale, (np.ptp(rows) + 1) * scale)
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=1.8, linestyle=(0, (3, 2))))
    _say(axes, 1.3, 2.78, "raw patches, no vision encoder")
    _box(axes, (0.3, 1.0), (2.0, 0.62), question, WORD)
    _say(axes, 1.3, 0.78, "text")
    _box(axes, (0.3, 5.62), (2.0, 0.62), "region, if any: mask,\nbox, point, scribble", "white")
    _box(axes, (3.0, 5.62), (1.7, 0.62), "PromptEncoder", VISION, socket=True)
    _arrow(axes, (2.3, 5.93), (3.0, 5.93))
    _arrow(axes, (3.85, 5.62), (3.85, 5.12), "+", (4.02, 5.37))
    _arrow(axes, (2.3, 4.0), (3.2, 4.0), "one linear\nlayer", (2.75, 4.33))
    _arrow(axes, (2.3, 1.31), (3.2, 1.31), "lookup", (2.75, 1.48))


def _network(axes: Axes) -> None:
    frame = FancyBboxPatch((3.2, 0.62), 1.3, 4.48, boxstyle="round,pad=0", facecolor="#f6f7f8", edgecolor="#d5dae0")
    axes.add_patch(frame)
    _tokens(axes, 3.85, ["", "", "", "", ""], VISION, 5.0)
    _tokens(axes, 3.85, ["segment", "the", "..."], WORD, 1.95)
    _say(axes, 3.85, 2.45, "one\nsequence", INK, 11)
    _box(axes, (5.1, 0.62), (1.9, 4.45), "", "white", socket=True)
    axes.text(6.05, 4.55, "Backbone", ha="center", va="center", fontsize=12, color=SOCKET, weight="bold")
    _say(axes, 6.05, 3.95, "one decoder-only\ntransformer", INK, 11)
    _box(axes, (5.32, 1.45), (1.46, 1.75), "", "#f3f7fc", socket=True)
    axes.text(6.05, 2.88, "Attention", ha="center", va="center", fontsize=11, color=SOCKET, weight="bold")
    _say(axes, 6.05, 2.1, "image: all of it,\nboth ways\ntext: what came\nbefore")
    _say(axes, 6.05, 1.02, "language head")
    for y in (4.0, 1.31):
        _arrow(axes, (4.5, y), (5.1, y))


def _outputs(axes: Axes, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    _tokens(axes, 7.8, ["", "", "", "", ""], VISION, 5.0, 0.7)
    _arrow(axes, (7.0, 4.0), (7.45, 4.0))
    _arrow(axes, (7.0, 1.31), (7.45, 1.31))
    for index, (word, colour) in enumerate((("it", WORD), ("is", WORD), ("[SEG]", SEG), (".", WORD))):
        _box(axes, (7.45 + 0.72 * index, 1.05), (0.66, 0.52), word, colour)
    _say(axes, 8.86, 0.78, "answer in text; one [SEG] per mask")
    _arrow(axes, (8.15, 4.0), (8.6, 4.0))
    _box(axes, (8.6, 3.5), (1.6, 1.0), "Upsampler", VISION, socket=True)
    _arrow(axes, (10.2, 4.0), (10.7, 4.0))
    _grid(axes, (10.7, 3.0), 2.0)
    _say(axes, 11.7, 5.18, "mask features, stride 4")
    _box(axes, (9.0, 2.16), (0.46, 0.46), ".", SEG)
    axes.texts[-1].set_fontsize(24)
    axes.texts[-1].set_position((9.23, 2.47))
    _arrow(axes, (9.22, 1.57), (9.22, 2.16))
    _arrow(axes, (10.7, 3.2), (9.46, 2.5))
    _say(axes, 8.55, 2.39, "dot\nproduct")
    _image(axes, _tinted(image, mask), (10.95, 0.78), 1.75)
    _arrow(axes, (9.46, 2.32), (10.95, 1.9), "mask", (10.35, 2.3))
    _box(axes, (8.6, 5.62), (1.6, 0.62), "Teachers", TEACHER, socket=True, dashed=True)
    _say(axes, 11.6, 5.93, "training only,\nnever in a checkpoint")
    _arrow(axes, (7.8, 5.02), (8.6, 5.8), dashed=True)
    _arrow(axes, (10.85, 5.02), (10.2, 5.7), dashed=True)
    axes.add_patch(Rectangle((0.3, 0.12), 0.26, 0.2, facecolor="white", edgecolor=SOCKET, linewidth=2))
    axes.text(0.68, 0.21, "socket: what you can swap", ha="left", va="center", fontsize=10, color=SOCKET)


def _box(
    axes: Axes,
    corner: tuple[float, float],
    size: tuple[float, float],
    text: str,
    colour: str,
    *,
    socket: bool = False,
    dashed: bool = False,
) -> None:
    style = "round,pad=0,rounding_size=0.08"
    edge, width = (SOCKET, 2.0) if socket else (LINE, 1.0)
    line = "--" if dashed else "-"
    box = FancyBboxPatch(
        corner, *size, boxstyle=style, facecolor=colour, edgecolor=edge, linewidth=width, linestyle=line
    )
    axes.add_patch(box)
    look = {"fontsize": 12, "weight": "bold", "color": SOCKET} if socket else {"fontsize": 10, "color": INK}
    centre = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
    axes.text(*centre, text, ha="center", va="center", **look)


def _tokens(axes: Axes, x: float, texts: list[str], colour: str, top: float, width: float = 1.0) -> None:
    for index, text in enumerate(texts):
        _box(axes, (x - width / 2, top - 0.4 * (index + 1)), (width, 0.34), text, colour)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    place: tuple[float, float] = (0, 0),
    *,
    dashed: bool = False,
) -> None:
    line = (0, (4, 3)) if dashed else "-"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            color=LINE,
            linewidth=1.3,
            linestyle=line,
            shrinkA=0,
            shrinkB=0,
        )
    )
    if text:
        _say(axes, *place, text)


def _say(axes: Axes, x: float, y: float, text: str, colour: str = GREY, size: float = 9.5) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour)


def _image(axes: Axes, image: NDArray[np.uint8], corner: tuple[float, float], side: float) -> None:
    extent = (corner[0], corner[0] + side, corner[1], corner[1] + side)
    axes.imshow(image, extent=extent, interpolation="none", aspect="auto", zorder=1)
    axes.set(xlim=(0, 13), ylim=(0, 6.6))


def _grid(axes: Axes, corner: tuple[float, float], side: float, cells: int = 16) -> None:
    axes.add_patch(Rectangle(corner, side, side, facecolor=VISION, edgecolor=LINE))
    for step in range(1, cells):
        at = side * step / cells
        axes.plot([corner[0] + at] * 2, [corner[1], corner[1] + side], color="white", linewidth=0.8)
        axes.plot([corner[0], corner[0] + side], [corner[1] + at] * 2, color="white", linewidth=0.8)


def _tinted(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image in grey, with the masked pixels in colour."""
    grey = (image.mean(-1, keepdims=True) * 0.35).astype(np.uint8)
    return np.where(mask[..., None], image, grey)


if __name__ == "__main__":
    print(draw_architecture(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT))
