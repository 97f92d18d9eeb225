"""Timing: variants alternate in one process, medians are reported; memory is measured in a fresh process each."""

from __future__ import annotations

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sail_lightning.errors import SailError

MIB = 2**20
PACKAGES = ("torch", "transformers", "xformers", "lightning", "numpy")


@dataclass(frozen=True)
class Timing:
    """The duration of each repetition in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest repetition in seconds."""
        return min(self.seconds), max(self.seconds)


def alternate(
    variants: Mapping[str, Callable[[], Any]], repetitions: int, device: torch.device, warmup: int = 1
) -> dict[str, Timing]:
    """Runs the variants in turn, so that other load of the machine affects all of them equally."""
    for run in variants.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, run in variants.items():
            gc.collect()
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_memory(run: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that one run needs at its peak beyond what lay there before it; None where the system has no such value.

    On the CPU only the first run of a process says the truth: afterwards the allocator keeps what it has.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        idle = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - idle) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of what was built
        idle = _status("VmRSS")
        run()
        return (_status("VmHWM") - idle) / MIB
    except OSError:
        return None


def peak_allocated(run: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that CUDA tensors take at the peak of one run, whatever lay there before it (weights) included; None on the
    CPU, where `peak_memory` is measured instead."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / MIB


def peak_in_a_fresh_process(arguments: Sequence[str]) -> float | None:
    """`peak_memory` of `python -m sail_lightning.benchmarks.memory ARGUMENTS`, which prints it."""
    command = [sys.executable, "-m", "sail_lightning.benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SailError(f"the memory of {' '.join(arguments)} could not be measured: {lines[-1]}")
    value = done.stdout.split()[-1]
    return None if value == "None" else float(value)


def environment(device: torch.device) -> dict[str, str]:
    """Returns the machine and the versions of libraries."""
    found = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(field: str) -> int:
    """Reads a line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
