"""Commands of the command line: a command is one function under `@command()`.

Its signature is its options and its docstring is its help (`cli/command_parser.py`), so that a new command touches one
file. Commands are found in `cli/commands/`, in installed packages (entry points of the group `sail_lightning.commands`)
and in plugin files (`--plugins FILE`, `$SAIL_PLUGINS`). Neither torch nor jsonargparse is imported here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TypeVar

from sail_lightning.cli.words import HELP, comma_list
from sail_lightning.errors import SailUsageError

Function = TypeVar("Function", bound=Callable[..., "int | None"])
ENTRY_POINTS = "sail_lightning.commands"


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Args:
        name: What is typed after `sail-lightning`: `convert`, or `data check` in a group.
        function: Runs it. Returns the exit code; None is 0.
        section: Heading under which the general help lists it.
        page: Help page of a command that parses its own words; None takes the docstring.
    """

    name: str
    function: Callable[..., int | None]
    section: str
    page: str | None = None

    @property
    def summary(self) -> str:
        """The first line of the docstring, without its period."""
        return first_line(self.function.__doc__)

    @property
    def reads_words(self) -> bool:
        """Whether the function takes only `*words`, which are the command line as it was written."""
        kinds = [parameter.kind for parameter in inspect.signature(self.function).parameters.values()]
        return kinds == [inspect.Parameter.VAR_POSITIONAL]

    def run(self, words: Sequence[str]) -> int:
        """Runs the command on the words that follow its name, or prints its help, and returns the exit code.

        Raises:
            SailUsageError: An option or a value is wrong.
        """
        if not self.reads_words:
            from sail_lightning.cli.command_parser import run_parsed  # imported late: jsonargparse takes half a second

            return run_parsed(self.name, self.function, words)
        if any(word in HELP for word in words):
            print(self.page or inspect.cleandoc(self.function.__doc__ or ""))
            return 0
        return self.function(*words) or 0


COMMANDS: dict[str, Command] = {}
"""All commands that are known so far, by name."""
FAULTS: dict[str, str] = {}
"""Installed commands that cannot be imported, with the reason."""


def command(
    name: str | None = None, *, section: str = "your own", page: str | None = None
) -> Callable[[Function], Function]:
    """Returns a decorator that makes a function a command.

    Args:
        name: What is typed, `group verb` within a group; the function's name (with dashes) if None.
        section: Heading of the general help.
        page: Help page of a function that takes `*words` only; its docstring if None.

    Raises:
        SailUsageError: The name is taken or not valid.
    """
    if callable(name):
        raise SailUsageError(f"write @command() with parentheses above {getattr(name, '__name__', name)}")

    def add(function: Function) -> Function:
        typed = name or function.__name__.replace("_", "-")
        if not re.fullmatch(r"[a-z][\w-]*( [a-z][\w-]*)?", typed):
            raise SailUsageError(f"{typed!r} is not a name for a command; write 'verb' or 'group verb' in lower case")
        known = COMMANDS.get(typed)
        if known and (known.function.__module__, known.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise SailUsageError(
                f"the command {typed} is taken by {known.function.__module__}; rename it in {function.__module__}"
            )
        COMMANDS[typed] = Command(typed, function, section, page)
        return function

    return add


def load_packaged() -> None:
    """Imports every module of `cli/commands/`."""
    from sail_lightning.cli import commands

    for found in pkgutil.walk_packages(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(found.name)


def load_users(words: Sequence[str] = ()) -> None:
    """Imports commands of installed packages, of `$SAIL_PLUGINS` and of `--plugins` on a command line.

    A broken installed package is recorded in `FAULTS`, not raised: it must not break the tool.

    Raises:
        SailUsageError: A plugin file cannot be imported.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            FAULTS[f"{entry.name} ({entry.dist.name if entry.dist else '?'})"] = f"{type(error).__name__}: {error}"
    sources = [source for source in os.environ.get("SAIL_PLUGINS", "").split(os.pathsep) if source]
    if sources := [*sources, *_plugin_option(words)]:
        from sail_lightning import registry

        for source in sources:
            registry.load(source)


def find(args: Sequence[str]) -> tuple[Command | None, str, list[str]]:
    """Finds the command that a command line names.

    Returns:
        The command (None for a group without a verb), its name or that of the group, and the words that follow.

    Raises:
        SailUsageError: There is no such command; the message names the nearest one.
    """
    load_packaged()
    found = _match(args)
    if found is None:
        load_users(args[1:])
        found = _match(args)
    if found is not None:
        return found
    members = groups().get(args[0])
    asked = " ".join(args[:2]) if members else args[0]
    known = [one.name for one in members] if members else verbs()
    near = difflib.get_close_matches(asked, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    broken = [f"{name} cannot be imported: {fault}" for name, fault in FAULTS.items() if name.split()[0] == args[0]]
    raise SailUsageError(broken[0] if broken else f"no command {asked}; {hint}")


def _match(args: Sequence[str]) -> tuple[Command | None, str, list[str]] | None:
    pair, first = " ".join(args[:2]), args[0]
    if len(args) > 1 and pair in COMMANDS:
        return COMMANDS[pair], pair, list(args[2:])
    if first in COMMANDS:
        return COMMANDS[first], first, list(args[1:])
    if first in groups() and (len(args) == 1 or args[1].startswith("-")):
        return None, first, list(args[1:])
    return None


def groups() -> dict[str, list[Command]]:
    """Returns the commands of two words, by the first of them."""
    found: dict[str, list[Command]] = {}
    for one in COMMANDS.values():
        if " " in one.name:
            found.setdefault(one.name.split()[0], []).append(one)
    return found


def verbs() -> list[str]:
    """Returns the words that can follow `sail-lightning`, in the order in which commands were found."""
    return list(dict.fromkeys(name.split()[0] for name in COMMANDS))


def module_of_group(group: str) -> str:
    """Returns the docstring of the module or package that has the group's name and holds its commands, empty if there
    is none."""
    for one in groups().get(group, []):
        home = one.function.__module__
        for module in (home, home.rpartition(".")[0]):
            if module.rpartition(".")[2] == group:
                return inspect.cleandoc(sys.modules[module].__doc__ or "")
    return ""


def first_line(text: str | None) -> str:
    """Returns the first line of a docstring, without its period."""
    return (inspect.cleandoc(text or "").splitlines() or [""])[0].rstrip(".")


def _plugin_option(words: Sequence[str]) -> list[str]:
    """Returns the files and modules that `--plugins` names."""
    given = [word.partition("=")[2] for word in words if word.startswith("--plugins=")]
    given += [words[index + 1] for index, word in enumerate(words[:-1]) if word == "--plugins"]
    return comma_list(given)
