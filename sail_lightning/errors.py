"""Faults that the user can fix: one clear sentence each, shown without a traceback."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any


class SailError(Exception):
    """A fault at run time (exit code 1): the message names the file, record, key or plugin, and how to fix it."""


class ImageError(SailError):
    """A fault of some images of a batch.

    Args:
        message: What is wrong with them.
        indices: Their indices in the batch, by which a caller that knows their records can name these.
    """

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = tuple(indices)


class SailUsageError(SailError):
    """A fault in how a command or a call was written (exit code 2)."""


def refusal_within(error: BaseException) -> SailError | None:
    """Returns the fault that a library wrapped in errors of its own, once or more; None if there is none.

    jsonargparse does so with what the constructor of an optional argument raises, once for each union around it.
    """
    queue: list[BaseException | None] = [error]
    seen: set[int] = set()
    while queue:
        one = queue.pop(0)
        if one is None or id(one) in seen:
            continue
        if isinstance(one, SailError):
            return one
        seen.add(id(one))
        queue += [one.__cause__, one.__context__]
    return None


def choice(name: str, names: Iterable[str], verb: str, shown: int = 12) -> str:
    """What to write in place of a wrong name: the nearest one, and all there are unless that list is long.

    Args:
        name: The wrong name; empty if there is none to compare with.
        names: The right names.
        verb: The words before the list, such as `there are`.
        shown: How many names the list holds at most.
    """
    every = list(names)
    plain = {other.lower(): other for other in every}
    found = difflib.get_close_matches(name.lower(), plain, 1, 0.5)
    near = f"did you mean {plain[found[0]]}?" if found else ""
    if near and len(every) > shown:
        return near
    rest = f" and {len(every) - shown} more" if len(every) > shown else ""
    return f"{near} {verb} {', '.join(every[:shown]) or 'none'}{rest}".strip()


def __getattr__(name: str) -> Any:
    """Returns what an old name is today, with a warning; `settings.renames` does the same for all other modules, but
    imports this one."""
    if name != "PictureError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"{__name__}.PictureError is now {__name__}.ImageError; the old name goes with the next version"
    warnings.warn(message, FutureWarning, stacklevel=2)
    return ImageError
