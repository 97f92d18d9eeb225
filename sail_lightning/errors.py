"""Faults that are the user's to mend: one clear sentence each, shown without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class SailError(Exception):
    """A fault at run time (exit code 1): the message names the file, record, key or plugin, and the mend."""


class PictureError(SailError):
    """A fault of some pictures of a batch, by their `places` in it: whoever knows their records can name these."""

    def __init__(self, message: str, places: Sequence[int]) -> None:
        super().__init__(message)
        self.places = tuple(places)


class SailUsageError(SailError):
    """A fault in how a command or a call was written (exit code 2)."""
