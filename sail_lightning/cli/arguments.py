"""An argument parser for our own commands that complains in one sentence."""

from __future__ import annotations

import argparse
from typing import NoReturn

from sail_lightning.errors import SailUsageError


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command is a `SailUsageError` instead of a dump of the usage."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise SailUsageError(message)


def comma_list(values: list[str] | None) -> list[str]:
    """The parts of a repeatable option whose values may be lists: `a,b` and `[a, b]`."""
    return [part.strip() for value in values or [] for part in value.strip().strip("[]").split(",") if part.strip()]
