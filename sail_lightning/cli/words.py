"""Words of the command line that every command knows: those that ask for help, and lists with commas."""

from __future__ import annotations

from collections.abc import Sequence

HELP = ("-h", "--help")


def comma_list(values: Sequence[str]) -> list[str]:
    """The parts of a repeatable option whose values may be lists: `a,b` and `[a, b]`."""
    return [part.strip() for value in values for part in value.strip().strip("[]").split(",") if part.strip()]
