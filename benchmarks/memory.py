"""`python -m sail_lightning.benchmarks.memory SETTINGS CASE VARIANT`: the peak memory of one run, in MiB, on stdout."""

from __future__ import annotations

import json
import sys

import torch

from sail_lightning.benchmarks.cases import CASES
from sail_lightning.benchmarks.measure import peak_memory
from sail_lightning.benchmarks.settings import Settings


def main(settings: str, case: str, variant: str) -> None:
    """Makes the case and measures its first run; `settings` as JSON."""
    given = Settings.from_dict(json.loads(settings))
    torch.set_num_threads(given.threads)
    made = CASES[case].make(given)
    print(peak_memory(made.variants[variant], torch.device(given.device)))


if __name__ == "__main__":
    main(*sys.argv[1:])
