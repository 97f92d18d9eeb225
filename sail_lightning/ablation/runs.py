"""One run of a study: a variant trained with a seed, then tested, each in a process of its own.

Files of a run's folder:

- `config.yaml`: the resolved config that it is trained with;
- `fit/version_N/`: the run folder of the training; `fit.log`: what it printed;
- `NAME.yaml`, `NAME/`, `NAME.log`: the patch of each evaluation, its report and what it printed;
- `fit.json`, `result.json`: what is done, with a fingerprint of what it was done with.

A run whose `result.json` has the right fingerprint is never run again. A training that was killed starts again, so that
its curve and its cost are those of one that ran through. One that ended is not repeated because its test was killed,
and the test goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import yaml

from sail_lightning import __version__
from sail_lightning.ablation.cost import Cost, measure
from sail_lightning.ablation.study import Patch, TableMetric
from sail_lightning.errors import SailError

CHECKPOINT, METRICS = Path("checkpoints", "last.ckpt"), "metrics.csv"
REPORT, ANSWERS = "report.json", "per_sample.jsonl"
POLL_S = 0.2
QUICK_REPORT: Patch = {"evaluation": {"bootstrap": 0, "gallery": 0}}
"""Under an evaluation's own patch: a study draws its own intervals, over all seeds together."""


class Stopped(Exception):
    """The study was interrupted."""


@dataclass(frozen=True)
class Run:
    """One run that the study asks for.

    `config` is the resolved config of the training, `evaluate` holds the patches on it for the tests, and `threads` is
    the number of CPU threads of each process; 0 lets torch choose.
    """

    variant: str
    seed: int
    folder: Path
    config: Patch
    evaluate: Mapping[str, Patch]
    threads: int = 0

    @property
    def name(self) -> str:
        """The name of the run in messages."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def training(self) -> str:
        """Fingerprint of the training."""
        return fingerprint(self.config)

    @property
    def whole(self) -> str:
        """Fingerprint of training and tests."""
        return fingerprint([self.config, dict(self.evaluate)])


@dataclass(frozen=True)
class Result:
    """The result of a run: `metrics` by evaluation, benchmark and name; files relative to the run's folder."""

    variant: str
    seed: int
    metrics: dict[str, dict[str, dict[str, float]]]
    cost: Cost
    curves: str
    answers: dict[str, str]

    def value(self, metric: TableMetric) -> float | None:
        """A metric of the table; None if the test did not give it."""
        return self.metrics.get(metric.evaluation, {}).get(metric.benchmark, {}).get(metric.name)


def fingerprint(content: Any) -> str:
    """The sha256 of plain values and of the package's version."""
    text = json.dumps([__version__, content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def finished(run: Run) -> Result | None:
    """The stored result of an earlier run with exactly this config, or None. The variant may have another name now."""
    stored = _read(run.folder / "result.json")
    if stored.get("fingerprint") != run.whole:
        return None
    values = {key: stored[key] for key in ("metrics", "curves", "answers")}
    return Result(run.variant, run.seed, **values, cost=Cost(**stored["cost"]))


def execute(run: Run, stop: Event) -> Result:
    """Trains and tests, as far as that is not done yet.

    Args:
        run: The run.
        stop: Set it from another thread to end the processes.

    Raises:
        SailError: A process failed; the message is its last error.
        Stopped: The event `stop` was set.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "result.json").unlink(missing_ok=True)
    trained = _read(run.folder / "fit.json")
    if trained.get("fingerprint") != run.training or not (run.folder / trained["folder"] / CHECKPOINT).is_file():
        trained = _train(run, stop)
    folder = run.folder / trained["folder"]
    metrics = {name: _test(run, name, patch, folder / CHECKPOINT, stop) for name, patch in run.evaluate.items()}
    result = Result(
        variant=run.variant,
        seed=run.seed,
        metrics=metrics,
        cost=measure(folder / CHECKPOINT, folder / METRICS, trained["seconds"]),
        curves=str((folder / METRICS).relative_to(run.folder)),
        answers={name: f"{name}/{ANSWERS}" for name in run.evaluate},
    )
    _write(run.folder / "result.json", {"fingerprint": run.whole, **asdict(result)})
    return result


def _train(run: Run, stop: Event) -> dict[str, Any]:
    for name in ("fit", *run.evaluate):  # of another config, or of a training that was killed
        shutil.rmtree(run.folder / name, ignore_errors=True)
    (run.folder / "fit.json").unlink(missing_ok=True)
    _dump(run.folder / "config.yaml", run.config)
    config = str(run.folder / "config.yaml")
    start = time.perf_counter()
    printed = _process(run, "fit", ["fit", "-c", config, f"--runs={run.folder}", "--name=fit"], stop)
    seconds = time.perf_counter() - start
    found = re.search(r"^run folder: (.+)$", printed, re.MULTILINE)
    if found is None or not (Path(found[1]) / CHECKPOINT).is_file():
        raise SailError(f"the training left no {CHECKPOINT.name}; see {run.folder / 'fit.log'}")
    trained = {
        "fingerprint": run.training,
        "seconds": seconds,
        "folder": os.path.relpath(found[1], run.folder),
    }
    _write(run.folder / "fit.json", trained)
    return trained


def _test(run: Run, name: str, patch: Patch, checkpoint: Path, stop: Event) -> dict[str, dict[str, float]]:
    """The metrics of one evaluation, by benchmark."""
    folder, asked = run.folder / name, fingerprint([run.training, patch])
    if _read(folder / "asked.json").get("fingerprint") != asked:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    _write(folder / "asked.json", {"fingerprint": asked})
    if "benchmarks" not in _read(folder / REPORT):
        own = run.folder / f"{name}.yaml"
        _dump(own, {**patch, "evaluation": {**QUICK_REPORT["evaluation"], **(patch.get("evaluation") or {})}})
        places = [f"--ckpt_path={checkpoint}", f"--evaluation.out={folder}", f"--runs={folder}", "--name=log"]
        _process(run, name, ["test", "-c", str(run.folder / "config.yaml"), "-c", str(own), *places], stop)
    report = _read(folder / REPORT)
    return {benchmark: dict(part["metrics"]) for benchmark, part in report["benchmarks"].items()}


def _process(run: Run, name: str, words: Sequence[str], stop: Event) -> str:
    """Runs a command of sail-lightning in a process; returns what it printed, which also goes to NAME.log."""
    log = run.folder / f"{name}.log"
    log.unlink(missing_ok=True)  # a process that outlived an earlier study may still write into it
    threads = {"OMP_NUM_THREADS": str(run.threads)} if run.threads else {}
    environment = {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}
    environment.pop("SAIL_RUN_FOLDER", None)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sail_lightning", *words], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                if stop.wait(POLL_S):
                    raise Stopped
        finally:
            if process.poll() is None:
                _end(process)
    printed = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise SailError(f"{words[0]}: {last_error(printed) or f'ended with code {process.returncode}'} (see {log})")
    return printed


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_error(printed: str) -> str:
    """The last line of a log that begins with `error: `, or else the last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing, or was cut short when its writer was killed."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _dump(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
