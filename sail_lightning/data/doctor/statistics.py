"""How much there is of what: tokens, masks, prompts and picture sizes of samples drawn from each source."""

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

from sail_lightning.data.doctor.leaf_sources import Leaf
from sail_lightning.data.doctor.report import columns
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import image_size, load_mask, resized_size
from sail_lightning.sample import Sample

QUANTITIES = {
    "tokens": "tokens per sample",
    "masks": "masks per sample",
    "prompts": "prompts per sample",
    "mask_area": "mask area, share of the picture",
    "picture_side": "longer side of pictures, pixels",
}
"""What is counted, and how it is called on the picture."""
BINS = 30
NAMED = 9
"""Sources that have a colour of their own; the smallest of more are drawn as one."""


@dataclass
class LeafStatistics:
    """Of one source. `values` are those of its samples, or of its masks for `mask_area`, by quantity."""

    name: str
    records: int | None
    samples: int = 0
    skipped: int = 0
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in QUANTITIES})

    def add(self, sample: Sample, encoder: Encoder | None) -> None:
        """Counts one sample.

        Raises:
            SailError: its picture, a mask or its words cannot be read.
        """
        sizes = [image_size(image) for image in sample.images]
        found: dict[str, list[float]] = {"masks": [len(sample.masks)], "prompts": [len(sample.prompts)]}
        if encoder is not None:
            patch = encoder.patch_size
            resized = [resized_size(size, patch, encoder.max_side, encoder.resize) for size in sizes]
            grids = tuple((height // patch, width // patch) for height, width in resized)
            found["tokens"] = [len(encoder.lay_out(sample.turns, grids))]
        found["mask_area"] = [float(load_mask(mask).mean()) for mask in sample.masks]
        found["picture_side"] = [max(size) for size in sizes]
        for name, values in found.items():
            self.values[name] += values
        self.samples += 1


@dataclass(frozen=True)
class Statistics:
    """Of all sources of a split."""

    leaves: tuple[LeafStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Per source and quantity: count, mean, median, 95th percentile and largest."""
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
        """A table: one line per source; means, and of tokens the largest too."""
        rows = [["source", "records", "samples", "skipped", "tokens", "most", "masks", "prompts", "mask area", "side"]]
        for leaf in self.leaves:
            means = {name: f"{np.mean(values):.1f}" if values else "-" for name, values in leaf.values.items()}
            most = f"{max(leaf.values['tokens']):.0f}" if leaf.values["tokens"] else "-"
            area = leaf.values["mask_area"]
            share = f"{100 * np.mean(area):.1f}%" if area else "-"
            records = "endless" if leaf.records is None else f"{leaf.records:,}"
            row = [leaf.name, records, f"{leaf.samples:,}", f"{leaf.skipped:,}", means["tokens"], most]
            rows.append([*row, means["masks"], means["prompts"], share, means["picture_side"]])
        return "\n".join(columns(rows, texts=1))

    def write(self, path: Path) -> list[Path]:
        """The picture, a PNG where its name has no ending, and the figures as JSON beside it; returns both.

        Raises:
            SailError: an ending that matplotlib does not know, or a place that cannot be written to.
        """
        path = path if path.suffix else path.with_name(f"{path.name}.png")
        figures = path.with_suffix(".json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.draw(path)
            figures.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise SailError(f"{path} cannot be written ({error.strerror or error}); name another file") from None
        return [path, figures]

    def draw(self, path: Path) -> None:
        """Histograms, sources in colours on top of each other.

        Raises:
            SailError: an ending that matplotlib does not know.
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
        """Names and values, the largest sources first and the others as one."""
        ordered = sorted(self.leaves, key=lambda leaf: -leaf.samples)
        parts = [(leaf.name, leaf.values) for leaf in ordered[:NAMED]]
        if rest := ordered[NAMED:]:
            joined = {name: [value for leaf in rest for value in leaf.values[name]] for name in QUANTITIES}
            parts.append((f"{len(rest)} others", joined))
        return parts


def gather(
    read: Sequence[Leaf],
    count: int,
    encoder: Encoder | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Counts samples drawn at random, the same in every run; records that cannot be read are skipped, and counted.

    Args:
        read: the sources.
        count: most samples of each.
        encoder: of the model that shall read them; without one, tokens are not counted.
        tell: called with the number of samples that are done and that of all.
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


def _drawn(leaf: Leaf, count: int) -> Iterator[int]:
    """Places of a leaf's records, in their order."""
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
    axis.set_ylabel("masks" if name == "mask_area" else "pictures" if name == "picture_side" else "samples")
