"""`sail-lightning bench`: speed and memory against a baseline in the style of the official code, in one run."""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from sail_lightning.benchmarks.report import Report, Result
    from sail_lightning.benchmarks.settings import Settings

EXAMPLES = """\
Cases: see `--list`. Each is run in our form and in the baseline's (padded batch, dense mask, all logits, all hidden
states, pictures upsampled one by one, questions answered one by one), with the same weights, alternated.
Memory is measured in a fresh process each. Close other programs first.

examples:
  sail-lightning bench
  sail-lightning bench --only step-single,questions --repeats 5 --out runs/bench
  sail-lightning bench --device cuda --compile
  sail-lightning bench --device cuda --only throughput --preset 3b --checkpointing"""

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
OTHERS = {
    "throughput": "training on a packed batch: tokens/s, FLOP/s",
    "profile": "why a training step takes what it takes: operations by part, speed of matrix products",
    "data": "reading training samples: samples/s of one worker, and where the time goes",
    "index": "a million records: making and opening their index, memory of a reader",
}
"""What is measured beside the cases."""


def run(args: list[str]) -> int:
    """Measures, prints the tables and writes bench.md, bench.json and bench.png; returns the exit code."""
    given = _parser().parse_args(args)
    presets = _presets(given)

    import torch

    from sail_lightning.benchmarks import data_path, profile, record_index, throughput
    from sail_lightning.benchmarks.cases import CASES
    from sail_lightning.benchmarks.measure import environment
    from sail_lightning.benchmarks.report import Report
    from sail_lightning.benchmarks.settings import ModelSizes

    names = [*CASES, *OTHERS]
    if given.list:
        for name, title in ({name: entry.title for name, entry in CASES.items()} | OTHERS).items():
            print(f"{name:22}{title}")
        return 0
    chosen = comma_list(given.only) or names
    if unknown := [name for name in chosen if name not in names]:
        raise SailUsageError(f"no case {unknown[0]}; there are {', '.join(names)}")
    if given.preset and "throughput" not in chosen:
        raise SailUsageError("--preset is for the case throughput, which --only leaves out")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave --device out")
    torch.set_num_threads(given.threads or torch.get_num_threads())
    settings, folder = _settings(given, torch.get_num_threads()), _folder(given.out)
    command = shlex.join(["sail-lightning", "bench", *args])
    report = Report(command, environment(torch.device(given.device)), settings.to_dict())
    for name in (name for name in chosen if name in CASES):
        result = _compare(name, settings, given.repeats, memory=not given.no_memory)
        report = _kept(replace(report, results=(*report.results, result)), folder)
        ratio = f", {result.memory_ratio:.2f} of the memory" if result.memory_ratio else ""
        print(f"{name:22}{result.speedup:6.2f} times faster{ratio}", flush=True)
    if "profile" in chosen:
        report = _kept(replace(report, profile=profile.measure(settings, given.repeats)), folder)
    if "data" in chosen:
        report = _kept(replace(report, data_path=data_path.measure(given.repeats)), folder)
    if "index" in chosen:
        report = _kept(replace(report, record_index=record_index.measure(1_000 if given.small else 1_000_000)), folder)
    if "throughput" in chosen:  # the last: the largest model may not fit
        models = [ModelSizes(vocabulary=151_936, preset=preset) for preset in presets] or [settings.sizes]
        for sizes in models:
            measured = throughput.measure(replace(settings, sizes=sizes), given.repeats)
            report = _kept(replace(report, throughput=(*report.throughput, *measured)), folder)
    written = report.write(folder)
    print(f"\n{report.to_markdown()}\n{', '.join(map(str, written))}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="sail-lightning bench", description="Speed and memory, against a named baseline.", epilog=EXAMPLES
    )
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", action="append", metavar="CASES", help="cases to run, with commas (all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both forms (cuda: bfloat16; cpu: float32)")
    parser.add_argument(
        "--preset", action="append", metavar="SIZES", help="models of `throughput` (cuda: 0.5b,3b; cpu: a middling one)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers in `throughput`")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the layers in `throughput`")
    parser.add_argument(
        "--budget", type=int, metavar="N", help="tokens a batch in `throughput` (cuda: 16384; cpu: 4096)"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed repetitions (5)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU (as torch chooses)")
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny pictures: to try the command")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out; it takes a process each")
    parser.add_argument("--out", metavar="DIR", default="runs/bench", help="where results go (runs/bench)")
    return parser


def _presets(given: argparse.Namespace) -> list[str]:
    """Checks what was given; the presets of `throughput`, none for the settings' own model."""
    if given.repeats < 1 or (given.budget is not None and given.budget < 1) or given.threads < 0:
        raise SailUsageError("--repeats and --budget must be at least 1, --threads at least 0")
    for name in ("budget", "preset"):
        if given.small and getattr(given, name) is not None:
            raise SailUsageError(f"--small has sizes of its own; leave --{name} or --small out")
    presets = comma_list(given.preset)
    if unknown := [preset for preset in presets if preset not in PRESETS]:
        raise SailUsageError(f"no preset {unknown[0]}; there are {', '.join(PRESETS)}")
    if given.device == "cuda" and not given.small and not presets:
        return list(PRESETS)
    return presets


def _settings(given: argparse.Namespace, threads: int) -> Settings:
    from sail_lightning.benchmarks.settings import ModelSizes, Settings

    cuda = given.device == "cuda"
    settings = Settings(
        device=given.device,
        dtype=given.dtype or ("bfloat16" if cuda else "float32"),
        threads=threads,
        budget=given.budget or (16_384 if cuda else 4_096),
        compile=given.compile,
        checkpointing=given.checkpointing,
    )
    return replace(settings, **SMALL, sizes=ModelSizes(64, 2, 4, 2, 96, 500)) if given.small else settings


def _folder(name: str) -> Path:
    """The folder of results, made and tried before anything is measured."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SailUsageError(
            f"cannot write results to {name} ({error.strerror}); give another folder with --out"
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
    """The report, written: what is measured is kept, whatever comes."""
    report.write(folder)
    return report
