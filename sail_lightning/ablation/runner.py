"""Runs all of a study: results that exist are kept, and a run that fails does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event, Lock

from sail_lightning.ablation.runs import Result, Run, execute, finished
from sail_lightning.ablation.study import TableMetric
from sail_lightning.errors import SailError


@dataclass
class Outcome:
    """Results in the order of the runs, and the last error of each run that failed, by variant and seed."""

    results: list[Result] = field(default_factory=list)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)


def run_all(runs: Sequence[Run], jobs: int, metric: TableMetric, report: Callable[[str], None]) -> Outcome:
    """Runs what is not done yet.

    Args:
        runs: The runs, in the order in which they are started.
        jobs: Number of processes at a time.
        metric: The metric that progress lines show.
        report: Called with each progress line.

    Raises:
        KeyboardInterrupt: Passed on, after all processes have ended.
    """
    stop, lock = Event(), Lock()
    done: dict[int, Result | SailError] = {}
    waiting: dict[Future[Result], int] = {}
    start: dict[int, float] = {}

    def note(index: int, text: str) -> None:
        with lock:
            report(f"[{index + 1}/{len(runs)}] {runs[index].name}: {text}")

    def begin(index: int) -> Result:
        start[index] = time.perf_counter()
        note(index, "started")
        return execute(runs[index], stop)

    def take(future: Future[Result], index: int) -> None:
        try:
            done[index] = result = future.result()
        except SailError as error:
            done[index] = error
            note(index, f"failed: {error}")
        else:
            note(index, f"{_shown(result, metric)} after {time.perf_counter() - start[index]:.0f} s")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for index, run in enumerate(runs):
                earlier = finished(run)
                if earlier is not None:
                    done[index] = earlier
                    note(index, f"{_shown(earlier, metric)}, done before")
                else:
                    waiting[pool.submit(begin, index)] = index
            while waiting:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    take(future, waiting.pop(future))
        except BaseException:
            stop.set()  # running ones end their processes; those that have not begun see it at once
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    outcome = Outcome()
    for index, run in enumerate(runs):
        found = done[index]
        if isinstance(found, Result):
            outcome.results.append(found)
        else:
            outcome.failures[run.variant, run.seed] = str(found)
    return outcome


def _shown(result: Result, metric: TableMetric) -> str:
    value = result.value(metric)
    return f"no {metric}" if value is None else f"{metric} {value:.4f}"
