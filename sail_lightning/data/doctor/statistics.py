"""Statistics of samples drawn from each source: tokens, masks, prompts and image sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sail_lightning.data.doctor.leaf_sources import LeafSource
from sail_lightning.data.doctor.report import columns
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import image_size, load_mask, resized_size
from sail_lightning.sample import Sample

QUANTITIES = {
    "tokens": "tokens per sample",
    "masks": "masks per sample",
    "prompts": "prompts per sample",
    "mask_area": "mask area, share of the image",
    "image_side": "longer side of images, pixels",
}
"""Quantities that are counted, each with its label in the figure."""
BINS = 30
"""Number of histogram bins."""
NAMED = 9
"""Number of sources that have a colour of their own; the smallest of more are drawn as one."""


@dataclass
class LeafStatistics:
    """Statistics of one source; `values` has one value per sample, or per mask for `mask_area`, by quantity."""

    name: str
    records: int | None
    samples: int = 0
    skipped: int = 0
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in QUANTITIES})

    def add(self, sample: Sample, encoder: Encoder | None) -> None:
        """Counts one sample.

        Raises:
            SailError: The image, a mask or the text cannot be read.
        """
        sizes = [image_size(image) for image in sample.images]
        found: dict[str, list[float]] = {"masks": [len(sample.masks)], "prompts": [len(sample.prompts)]}
        if encoder is not None:
            patch = encoder.patch_size
            resized = [resized_size(size, patch, encoder.max_side, encoder.resize) for size in sizes]
            grids = tuple((height // patch, width // patch) for height, width in resized)
            found["tokens"] = [len(encoder.lay_out(sample.turns, grids))]
        found["mask_area"] = [float(load_mask(mask).mean()) for mask in sample.masks]
        found["image_side"] = [max(size) for size in sizes]
        for name, values in found.items():
            self.values[name] += values
        self.samples += 1


@dataclass(frozen=True)
class Statistics:
    """Statistics of all sources of a split."""

    leaves: tuple[LeafStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns count, mean, median, 95th percentile and maximum by source and quantity."""
        return {
            "sources": [
                {
                    "name": leaf.name,
                    "records": leaf.records,
                    "samples": leaf.samples,
                    "skipped": leaf.skipped,
                    **{name: _summary(values) for name, values in leaf.values.items()},
                }
                for leaf in self.leaves
            ]
        }

    def to_text(self) -> str:
        """Returns a table with one line per source: means, and also the largest number of tokens."""
        rows = [["source", "records", "samples", "skipped", "tokens", "most", "masks", "prompts", "mask area", "side"]]
        for leaf in self.leaves:
            means = {name: f"{np.mean(values):.1f}" if values else "-" for name, values in leaf.values.items()}
            most = f"{max(leaf.values['tokens']):.0f}" if leaf.values["tokens"] else "-"
            area = leaf.values["mask_area"]
            share = f"{100 * np.mean(area):.1f}%" if area else "-"
            records = "endless" if leaf.records is None else f"{leaf.records:,}"
            row = [leaf.name, records, f"{leaf.samples:,}", f"{leaf.skipped:,}", means["tokens"], most]
            rows.append([*row, means["masks"], means["prompts"], share, means["image_side"]])
        return "\n".join(columns(rows, texts=1))

    def write(self, path: Path) -> list[Path]:
        """Writes the figure, a PNG if `path` has no suffix, and the values as JSON beside it; returns both paths.

        Raises:
            SailError: Matplotlib does not know the suffix, or the file cannot be written.
        """
        path = path if path.suffix else path.with_name(f"{path.name}.png")
        values = path.with_suffix(".json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.draw(path)
            values.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise SailError(f"{path} cannot be written ({error.strerror or error}); name another file") from None
        return [path, values]

    def draw(self, path: Path) -> None:
        """Draws stacked histograms with a colour per source.

        Raises:
            SailError: Matplotlib does not know the suffix.
        """
        shown = [name for name in QUANTITIES if any(leaf.values[name] for leaf in self.leaves)]
        figure = Figure(figsize=(12, 7), layout="constrained")
        FigureCanvasAgg(figure)
        parts = self._parts()
        axes = figure.subplots(2, 3).ravel()
        for name, axis in zip(shown, axes, strict=False):
            _histogram(axis, name, [values[name] for _, values in parts])
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        handles = axes[0].get_legend_handles_labels()[0] if shown else []
        axes[-1].legend(handles, [name for name, _ in parts], loc="center", title="sources", frameon=False)
        try:
            figure.savefig(path, dpi=120)
        except ValueError as error:
            raise SailError(f"{path}: {error}") from None

    def _parts(self) -> list[tuple[str, dict[str, list[float]]]]:
        """Returns names and values, the largest sources first and the others as one."""
        ordered = sorted(self.leaves, key=lambda leaf: -leaf.samples)
        parts = [(leaf.name, leaf.values) for leaf in ordered[:NAMED]]
        if rest := ordered[NAMED:]:
            joined = {name: [value for leaf in rest for value in leaf.values[name]] for name in QUANTITIES}
            parts.append((f"{len(rest)} others", joined))
        return parts


def gather(
    read: Sequence[LeafSource],
    count: int,
    encoder: Encoder | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Returns statistics of randomly drawn samples, the same in every run; unreadable records are skipped and counted.

    Args:
        read: Leaf sources.
        count: Largest number of samples per source.
        encoder: Encoder of the model that will read them; without one, tokens are not counted.
        tell: Called with the number of samples that are done and the number of all.
    """
    chosen = [list(_drawn(leaf, count)) for leaf in read]
    done, total = 0, sum(map(len, chosen))
    found = []
    for leaf, places in zip(read, chosen, strict=True):
        one = LeafStatistics(leaf.name, None if leaf.endless else len(leaf))
        for place in places:
            try:
                one.add(leaf.source[leaf.record(place)], encoder)
            except SailError:
                one.skipped += 1
            done += 1
            tell(done, total)
        found.append(one)
    return Statistics(tuple(found))


def _drawn(leaf: LeafSource, count: int) -> Iterator[int]:
    """Yields positions of a leaf source's records in ascending order."""
    places: NDArray[np.int64] = np.arange(len(leaf))
    if len(places) > count:
        places = np.sort(np.random.default_rng(0).choice(places, count, replace=False))
    return map(int, places)


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(max(values)),
    }


def _histogram(axis: Axes, name: str, values: Sequence[Sequence[float]]) -> None:
    every = np.concatenate([np.asarray(some, float) for some in values])
    if name in ("masks", "prompts"):  # whole numbers, a bar each while they are few
        edges = np.arange(every.max() + 2) - 0.5 if every.max() < BINS else np.linspace(-0.5, every.max() + 0.5, BINS)
    elif name == "mask_area":
        edges = np.geomspace(1e-4, 1, BINS)
        values = [np.clip(some, 1e-4, 1).tolist() for some in values]
        axis.set_xscale("log")
    else:
        edges = np.linspace(every.min() - 0.5, max(every.max(), every.min() + BINS - 1) + 0.5, BINS + 1)
    axis.hist(values, edges.tolist(), stacked=True, label=[str(place) for place in range(len(values))])
    axis.set_xlabel(QUANTITIES[name])
    axis.set_ylabel("masks" if name == "mask_area" else "images" if name == "image_side" else "samples")
