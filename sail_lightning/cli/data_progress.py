"""Shows how far a `data` command has come, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 10
"""Least number of seconds between two lines; the first and the last line are always written."""

Report = Callable[[int, int], None]
"""Called with the number of things that are done and that of all."""


@contextmanager
def progress(things: str) -> Iterator[Report]:
    """Gives what is called after each step; the bar goes when the block ends."""
    if not sys.stderr.isatty():
        yield _lines(things)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn(things), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(things)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(things: str) -> Report:
    last = -float("inf")

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            sys.stderr.write(f"{done:,} of {total:,} {things}\n")

    return report
