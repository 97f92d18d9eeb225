"""`sail-lightning bench`: speed and memory against a baseline in the style of the official code, in one run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailUsageError

EXAMPLES = """\
Cases: see `--list`. Each is run in our form and in the baseline's (padded batch, dense mask, all logits, all hidden
states, pictures upsampled one by one, questions answered one by one), with the same weights, alternated.
Memory is measured in a fresh process each. Close other programs first.

examples:
  sail-lightning bench
  sail-lightning bench --only step-single,questions --repeats 5 --out runs/bench
  sail-lightning bench --device cuda --preset 0.5b --compile"""

SMALL: dict[str, Any] = {
    "single": ((64, 64),),
    "mixed": ((32, 32), (48, 32), (64, 48), (64, 64)),
    "words": 8,
    "questions": 3,
    "new_tokens": 4,
    "budget": 100,
}
"""Settings that run in a second."""


def run(args: list[str]) -> int:
    """Measures, prints the tables and writes bench.md, bench.json and bench.png; returns the exit code."""
    parser = Parser(
        prog="sail-lightning bench", description="Speed and memory, against a named baseline.", epilog=EXAMPLES
    )
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", action="append", metavar="CASES", help="cases, `throughput`, `data`; with commas")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("0.5b", "3b"), help="sizes of the paper, instead of a middling model")
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers in `throughput`")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the layers in `throughput`")
    parser.add_argument("--budget", type=int, metavar="N", help="tokens a batch in `throughput` (16384; CPU: 4096)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed repetitions (5)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU (as torch chooses)")
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny pictures: to try the command")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out; it takes a process each")
    parser.add_argument("--out", metavar="DIR", default="runs/bench", help="where results go (runs/bench)")
    given = parser.parse_args(args)
    if given.repeats < 1 or (given.budget is not None and given.budget < 1) or given.threads < 0:
        raise SailUsageError("--repeats and --budget must be at least 1, --threads at least 0")

    import torch  # after --help: it takes seconds

    from sail_lightning.benchmarks import data_path, throughput
    from sail_lightning.benchmarks.cases import CASES
    from sail_lightning.benchmarks.measure import alternate, environment, peak_in_a_fresh_process
    from sail_lightning.benchmarks.report import Report, Result
    from sail_lightning.benchmarks.settings import ModelSizes, Settings

    if given.list:
        for name, entry in CASES.items():
            print(f"{name:22}{entry.title}")
        print(f"{'throughput':22}training on a packed batch: tokens/s, FLOP/s")
        print(f"{'data':22}reading training samples: samples/s of one worker, and where the time goes")
        return 0
    names = [*CASES, "throughput", "data"]
    chosen = comma_list(given.only) or (names if given.device == "cpu" else ["throughput"])
    if unknown := [name for name in chosen if name not in names]:
        raise SailUsageError(f"no case {unknown[0]}; there are {', '.join(names)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave --device out")
    torch.set_num_threads(given.threads or torch.get_num_threads())
    settings = Settings(
        device=given.device,
        threads=torch.get_num_threads(),
        sizes=ModelSizes(vocabulary=151_936 if given.preset else 32_000, preset=given.preset),
        budget=given.budget or (16_384 if given.device == "cuda" else 4_096),
        compile=given.compile,
        checkpointing=given.checkpointing,
    )
    if given.small:
        settings = replace(settings, **SMALL, sizes=ModelSizes(64, 2, 4, 2, 96, 500))
    device = torch.device(given.device)
    command, folder = shlex.join(["sail-lightning", "bench", *args]), Path(given.out)
    report = Report(command, environment(device), settings.to_dict())
    for name in (name for name in chosen if name in CASES):
        case = CASES[name].make(settings)
        difference = case.difference()
        timings = alternate(case.variants, given.repeats, device)
        memory: dict[str, float | None] = {}
        if not given.no_memory:
            words = json.dumps(settings.to_dict())
            memory = {variant: peak_in_a_fresh_process([words, name, variant]) for variant in case.variants}
        result = Result(name, timings, memory, difference, case.tokens)
        del case
        report = replace(report, results=(*report.results, result))
        report.write(folder)  # what is measured is kept, whatever comes
        ratio = f", {result.memory_ratio:.2f} of the memory" if result.memory_ratio else ""
        print(f"{name:22}{result.speedup:6.2f} times faster{ratio}", flush=True)
    if "throughput" in chosen:
        report = replace(report, throughput=throughput.measure(settings, given.repeats))
    if "data" in chosen:
        report = replace(report, data_path=data_path.measure(given.repeats))
    written = report.write(folder)
    print(f"\n{report.to_markdown()}\n{', '.join(map(str, written))}")
    return 0
