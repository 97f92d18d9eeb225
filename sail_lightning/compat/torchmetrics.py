"""Private names of torchmetrics: a metric's states, their defaults, and whether it waits for other ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum


def all_metrics(metric: torchmetrics.Metric) -> Iterator[torchmetrics.Metric]:
    """Yields a metric and all metrics within it."""
    return (one for one in metric.modules() if isinstance(one, torchmetrics.Metric))


def alone(metric: torchmetrics.Metric) -> torchmetrics.Metric:
    """Returns a copy of a metric that never waits for other ranks."""
    other = copy.deepcopy(metric)
    for one in all_metrics(other):
        one.sync_on_compute = one._to_sync = False
    return other


def is_additive(metric: torchmetrics.Metric) -> bool:
    """Whether all states of a metric are tensors that are summed over batches and ranks."""
    return all(
        isinstance(default, Tensor) and metric._reductions[name] is dim_zero_sum
        for name, default in metric._defaults.items()
    )


def added(metric: torchmetrics.Metric) -> NDArray[np.float64]:
    """Returns what was added to the tensor states of a metric since `reset`, all states in one float64 vector."""
    parts = [(getattr(metric, name) - default.to(metric.device)).flatten() for name, default in _tensors(metric)]
    return torch.cat([part.double() for part in parts]).cpu().numpy() if parts else np.zeros(0)


def set_added(metric: torchmetrics.Metric, sums: NDArray[np.float64]) -> None:
    """Sets the states of a metric as if these sums, in the form of `added`, were added to it since `reset`."""
    start = 0
    for name, default in _tensors(metric):
        value = torch.from_numpy(sums[start : start + default.numel()]).reshape(default.shape)
        setattr(metric, name, (default.cpu() + value).to(default.dtype).to(metric.device))
        start += default.numel()
    metric._update_count, metric._computed = 1, None


def _tensors(metric: torchmetrics.Metric) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in metric._defaults.items() if isinstance(value, Tensor)]
