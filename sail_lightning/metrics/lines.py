"""A metric that needs all samples at once: its state is lines of JSON as bytes, gathered from all ranks."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class Lines(Metric):
    """Base of metrics that are no sum over samples. Lines are read sorted: batches and ranks change no result."""

    full_state_update = False
    is_differentiable = False
    lines: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("lines", [], dist_reduce_fx="cat")
        self._begin()

    def _begin(self) -> None:
        # A rank without samples takes part in the gathering all the same, with no bytes of the right type.
        self.lines = [torch.zeros(0, dtype=torch.uint8, device=self.device)]

    def reset(self) -> None:
        """Forgets all lines."""
        super().reset()
        self._begin()

    def write(self, line: Any) -> None:
        """Adds a sample, as anything that JSON holds."""
        code = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        assert isinstance(self.lines, list)
        self.lines.append(torch.tensor(list(code), dtype=torch.uint8, device=self.device))

    def read(self) -> list[Any]:
        """The samples of all ranks, in an order that depends on nothing but themselves."""
        code = bytes(dim_zero_cat(self.lines).cpu().numpy())
        return [json.loads(line) for line in sorted(code.splitlines())]
