"""Faults that are the user's to mend: one clear sentence each, shown without a traceback."""

from __future__ import annotations


class SailError(Exception):
    """A fault at run time (exit code 1): the message names the file, record, key or plugin, and the mend."""


class SailUsageError(SailError):
    """A fault in how a command or a call was written (exit code 2)."""
