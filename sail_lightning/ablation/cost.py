"""What a training cost, from the files that it left."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from sail_lightning.evaluate.curves import read_curves


@dataclass(frozen=True)
class Cost:
    """The cost of one training.

    `seconds` is the time of its process, validation and start included. `tokens_per_s` and `samples_per_s` are medians
    of the values that `Throughput` logged. `parameters` counts those of the model as it is stored, without what only
    teachers need. `peak_memory_gib` is that of the process, or of the device. None: the run was too short for a value.
    """

    seconds: float
    parameters: int
    tokens_per_s: float | None
    samples_per_s: float | None
    peak_memory_gib: float | None


def measure(checkpoint: Path, metrics_csv: Path, seconds: float) -> Cost:
    """The cost of a training that took `seconds`, from its `last.ckpt` and `metrics.csv`."""
    curves = read_curves(metrics_csv) if metrics_csv.is_file() else {}

    def entries(name: str) -> list[float]:
        return curves.get(f"train/{name}", ([], []))[1]

    def middle(name: str) -> float | None:
        values = entries(name)
        return statistics.median(values) if values else None

    return Cost(
        seconds=seconds,
        parameters=stored_parameters(checkpoint),
        tokens_per_s=middle("tokens_per_s"),
        samples_per_s=middle("samples_per_s"),
        peak_memory_gib=max(entries("peak_memory_gib"), default=None),
    )


def stored_parameters(checkpoint: Path) -> int:
    """Number of parameters in a checkpoint's model; tensors that share memory, as tied embeddings do, count once."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    kept = {
        (tensor.untyped_storage().data_ptr(), tensor.storage_offset()): tensor.numel()
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    return sum(kept.values())
