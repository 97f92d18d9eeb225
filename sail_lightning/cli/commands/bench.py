"""`sail-lightning bench`: speed and memory against a baseline in the style of the official code, in one run."""

from __future__ import annotations

import inspect
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_lightning.cli.command import command
from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from sail_lightning.benchmarks.report import Report, Result
    from sail_lightning.benchmarks.settings import Settings

SMALL: dict[str, Any] = {
    "single": ((64, 64),),
    "mixed": ((32, 32), (48, 32), (64, 48), (64, 64)),
    "words": 8,
    "questions": 3,
    "new_tokens": 4,
    "budget": 100,
}
"""Settings that run in a second."""
PRESETS = ("0.5b", "3b")
Device = Literal["cpu", "cuda"]
Preset = Literal["0.5b", "3b"]
OTHERS = {
    "throughput": "training on a packed batch: tokens/s, FLOP/s",
    "profile": "where the time of a training step goes: operations by part, speed of matrix products",
    "data": "reading training samples: samples/s of one worker, and where the time goes",
    "index": "a million records: making and opening their index, memory of a reader",
}
"""Measurements that can be chosen in addition to the cases."""


@command(section="compare")
def bench(
    *,
    list: bool = False,
    only: list[str] | None = None,
    device: Device = "cpu",
    dtype: Literal["float32", "bfloat16"] | None = None,
    preset: list[Preset] | None = None,
    compile: bool = False,
    checkpointing: bool = False,
    budget: PositiveInt | None = None,
    repeats: PositiveInt = 5,
    threads: NonNegativeInt = 0,
    small: bool = False,
    no_memory: bool = False,
    out: Path = Path("runs/bench"),
) -> None:
    """Measures speed and memory against a baseline in the style of the official code.

    Cases: see --list. Each runs in this package's form and in the baseline's (padded batch, dense mask, all logits, all
    hidden states, images upsampled one by one, questions answered one by one), alternating, with the same weights.
    Memory is measured in a new process for each. Close other programs first. Writes bench.md, bench.json and bench.png.

    Examples:
        sail-lightning bench
        sail-lightning bench --only step-single,questions --repeats 5 --out runs/bench
        sail-lightning bench --device cuda --compile
        sail-lightning bench --device cuda --only throughput --preset 3b --checkpointing

    Args:
        list: Name the cases and stop.
        only: Cases to run; all if left out.
        device: Device of both forms.
        dtype: Type of both forms; bfloat16 on cuda and float32 on the CPU if left out.
        preset: Models of throughput; both on cuda and a medium-sized one on the CPU if left out.
        compile: Compile the decoder's layers in throughput.
        checkpointing: Recompute the layers in throughput.
        budget: Tokens a batch in throughput; 16384 on cuda and 4096 on the CPU if left out.
        repeats: Timed repetitions.
        threads: CPU threads; 0 lets torch choose.
        small: A tiny model and tiny images, to try the command.
        no_memory: Skip the memory measurements, which need a process each.
        out: Folder of the results.
    """
    import torch

    asked = _as_typed(locals())
    if small and (given := [name for name, value in (("budget", budget), ("preset", preset)) if value is not None]):
        raise SailUsageError(f"--small sets its own sizes; leave out --{given[0]} or --small")
    titles = _titles()
    if list:
        print("\n".join(f"{name:22}{title}" for name, title in titles.items()))
        return
    chosen = _chosen(only, titles, preset)
    if device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave out --device")
    torch.set_num_threads(threads or torch.get_num_threads())
    settings = _settings(device, dtype, torch.get_num_threads(), budget, compile, checkpointing, small)
    presets = preset or (PRESETS if device == "cuda" and not small else ())
    report = _measured(asked, settings, chosen, presets, repeats, not no_memory, small, _folder(out))
    print(f"\n{report.to_markdown()}\n{', '.join(map(str, report.write(out)))}")


def _titles() -> dict[str, str]:
    """Returns the titles of all cases and other measurements by name, in order."""
    from sail_lightning.benchmarks.cases import CASES

    return {name: case.title for name, case in CASES.items()} | OTHERS


def _chosen(only: Sequence[str] | None, titles: Mapping[str, str], preset: Sequence[str] | None) -> Sequence[str]:
    """Returns the names of what is measured: those asked for, or all.

    Raises:
        SailUsageError: There is no such case, or `--preset` has no effect.
    """
    chosen = only or [*titles]
    if unknown := [name for name in chosen if name not in titles]:
        raise SailUsageError(f"no case {unknown[0]}; there are {', '.join(titles)}")
    if preset and "throughput" not in chosen:
        raise SailUsageError("--preset is for the case throughput, which --only leaves out")
    return chosen


def _as_typed(given: dict[str, Any]) -> str:
    """The command that gives these arguments."""
    words = ["sail-lightning", "bench"]
    for name, parameter in inspect.signature(bench).parameters.items():
        if (value := given[name]) != parameter.default:
            words.append(f"--{name.replace('_', '-')}")
            if not isinstance(value, bool):
                words.append(",".join(value) if isinstance(value, list) else str(value))
    return shlex.join(words)


def _settings(
    device: Device,
    dtype: str | None,
    threads: int,
    budget: int | None,
    compiled: bool,
    checkpointing: bool,
    small: bool,
) -> Settings:
    from sail_lightning.benchmarks.settings import ModelSizes, Settings

    cuda = device == "cuda"
    settings = Settings(
        device=device,
        dtype=dtype or ("bfloat16" if cuda else "float32"),
        threads=threads,
        budget=budget or (16_384 if cuda else 4_096),
        compile=compiled,
        checkpointing=checkpointing,
    )
    return replace(settings, **SMALL, sizes=ModelSizes(64, 2, 4, 2, 96, 500)) if small else settings


def _measured(
    asked: str,
    settings: Settings,
    chosen: Sequence[str],
    presets: Sequence[str],
    repeats: int,
    memory: bool,
    small: bool,
    folder: Path,
) -> Report:
    """The report of all cases, written after each: what is measured is kept, whatever comes."""
    import torch

    from sail_lightning.benchmarks import data_path, profile, record_index, throughput
    from sail_lightning.benchmarks.cases import CASES
    from sail_lightning.benchmarks.measure import environment
    from sail_lightning.benchmarks.report import Report
    from sail_lightning.benchmarks.settings import ModelSizes

    report = Report(asked, environment(torch.device(settings.device)), settings.to_dict())
    for name in (name for name in chosen if name in CASES):
        result = _compare(name, settings, repeats, memory)
        report = _kept(replace(report, results=(*report.results, result)), folder)
        ratio = f", {result.memory_ratio:.2f} of the memory" if result.memory_ratio else ""
        print(f"{name:22}{result.speedup:6.2f} times faster{ratio}", flush=True)
    if "profile" in chosen:
        report = _kept(replace(report, profile=profile.measure(settings, repeats)), folder)
    if "data" in chosen:
        report = _kept(replace(report, data_path=data_path.measure(repeats)), folder)
    if "index" in chosen:
        report = _kept(replace(report, record_index=record_index.measure(1_000 if small else 1_000_000)), folder)
    if "throughput" in chosen:  # the last: the largest model may not fit
        models = [ModelSizes(vocabulary=151_936, preset=preset) for preset in presets] or [settings.sizes]
        for sizes in models:
            measured = throughput.measure(replace(settings, sizes=sizes), repeats)
            report = _kept(replace(report, throughput=(*report.throughput, *measured)), folder)
    return report


def _folder(folder: Path) -> Path:
    """The folder of results, made and tried before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SailUsageError(
            f"cannot write results to {folder} ({error.strerror}); give another folder with --out"
        ) from None
    return folder


def _compare(name: str, settings: Settings, repeats: int, memory: bool) -> Result:
    """One case: difference of the results, time of both forms, and the memory of each in a process of its own."""
    import torch

    from sail_lightning.benchmarks.cases import CASES
    from sail_lightning.benchmarks.measure import alternate, peak_in_a_fresh_process
    from sail_lightning.benchmarks.report import Result

    case = CASES[name].make(settings)
    difference = case.difference()
    timings = alternate(case.variants, repeats, torch.device(settings.device))
    peaks: dict[str, float | None] = {}
    if memory:
        words = json.dumps(settings.to_dict())
        peaks = {variant: peak_in_a_fresh_process([words, name, variant]) for variant in case.variants}
    return Result(name, timings, peaks, difference, case.tokens)


def _kept(report: Report, folder: Path) -> Report:
    """The report, written."""
    report.write(folder)
    return report
