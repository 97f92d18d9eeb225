"""A command of your own: `sail-lightning greet sun --times 2 --plugins examples/greet_command.py`."""

from __future__ import annotations

from typing import Literal

from jsonargparse.typing import PositiveInt

from sail_lightning.cli.command import command


@command()
def greet(name: str, *, times: PositiveInt = 1, tone: Literal["plain", "loud"] = "plain") -> None:
    """Greets somebody.

    Args:
        name: Who is greeted.
        times: How often.
        tone: How it is said.
    """
    words = f"hello, {name}"
    for _ in range(times):
        print(words.upper() if tone == "loud" else words)
