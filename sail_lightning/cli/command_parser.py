"""Makes the options and the help of a command from its function's signature and docstring.

jsonargparse resolves the signature (also arguments that `**options` passes on to another function or class), reads the
docstring and checks each value by its type. The rules are:

- a parameter before `*` is a word (`SOURCE`), one after it is an option (`--max-shard-size`, also with underscores);
- a trailing underscore is left out (`from_` is `--from`);
- a `bool` is a flag; `bool | str` is a flag that may have a value;
- a `list` may be repeated or hold several values with commas; a `list[Path]` is never split at commas;
- `*words` takes every option that the function does not know, as it was written (`--data.train.size=64`);
- a first line, a body and `Examples:` of the docstring are the help, `Args:` the help of each option.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from argparse import Action
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from sail_lightning.cli.words import HELP, comma_list
from sail_lightning.compat.jsonargparse import HelpFormatter, ListedParser, is_unresolved, type_of
from sail_lightning.errors import SailUsageError

WANTED = {
    "PositiveInt": "1 or more",
    "NonNegativeInt": "0 or more",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number, 0 or more",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
"""Names under which messages call types."""


def run_parsed(name: str, function: Callable[..., int | None], words: Sequence[str]) -> int:
    """Runs a command whose function has named parameters, or prints its help.

    Args:
        name: What is typed after `sail-lightning`.
        function: What the command runs; it has named parameters.
        words: The words that follow the name.

    Returns:
        The exit code.

    Raises:
        SailUsageError: An option or a value is wrong; the message names it.
    """
    parser = CommandParser(name, function)
    if any(word in HELP for word in words):
        print(parser.format_help(), end="")
        return 0
    arguments, options, plugins = parser.read(words)
    if plugins:
        from sail_lightning import registry

        registry.discover(plugins)
    return function(*arguments, **options) or 0


class CommandParser(ListedParser):
    """The parser of a command's words.

    Args:
        name: What is typed after `sail-lightning`.
        function: What the command runs; it has named parameters.
    """

    def __init__(self, name: str, function: Callable[..., int | None]) -> None:
        text = re.split(r"\n(?:Args|Returns|Raises):\n", inspect.cleandoc(function.__doc__ or ""))[0]
        body, _, examples = text.partition("\nExamples:\n")
        super().__init__(
            prog=f"sail-lightning {name}",
            description=body.strip(),
            epilog=f"examples:\n{inspect.cleandoc(examples)}".replace("\n", "\n  ") if examples else None,
            formatter_class=_Help,
            add_help=False,
        )
        parameters = inspect.signature(function).parameters.values()
        self.name = name
        self.words = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        self.open_ended = any(one.kind is one.VAR_POSITIONAL for one in parameters)
        self.own_plugins = any(one.name == "plugins" for one in parameters)
        self.add_function_arguments(function, as_group=False)
        if not self.own_plugins:
            text = "Your own file or module, loaded first; may be repeated."
            self.add_argument("--plugins", type=list[str], default=[], help=text)
        self.actions: dict[str, Action] = {action.dest: action for action in self.options()}
        for one in parameters:
            if one.name in self.actions and is_unresolved(type_of(self.actions[one.name])):
                raise SailUsageError(
                    f"{self.prog}: the type {one.annotation!s} of {one.name} is not defined in its file"
                )
        self.given: dict[str, str] = {}
        for name in self.words:
            self.actions[name].option_strings = []  # type: ignore[misc]
        self.usage = self._usage()

    def read(self, words: Sequence[str]) -> tuple[list[Any], dict[str, Any], list[str]]:
        """Reads words as arguments, options and plugin sources.

        Raises:
            SailUsageError: A word is unknown or missing, or a value has another type.
        """
        given, rest = self._split(words)
        if missing := [name for name, one in self.actions.items() if one.required and name not in given]:
            raise SailUsageError(f"{self.name} needs {' and '.join(self.shown(name) for name in missing)}")
        self.given = {name: ",".join(values) for name, values in given.items()}
        parsed = self.parse_args([f"--{name}={self._text(name, values)}" for name, values in given.items()])
        options = {name: parsed[name] for name in self.actions}
        plugins = [] if self.own_plugins else options.pop("plugins")
        arguments = [options.pop(name) for name in self.words]
        return [*arguments, *rest], options, plugins

    def shown(self, name: str) -> str:
        """Returns a parameter as it is written on the command line: `SOURCE`, `--out`."""
        return name.upper() if name in self.words else f"--{_dashed(name)}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a `SailUsageError` with jsonargparse's message as one sentence."""
        flat = " ".join(message.split())
        if (match := re.match(r'Parser key "(\w+)"', flat)) and match[1] in self.given:
            name = match[1]
            wanted = _wanted(type_of(self.actions[name]))
            raise SailUsageError(f"{self.shown(name)} must be {wanted}, not {self.given[name]}") from None
        raise SailUsageError(flat) from None

    def _split(self, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
        """Returns the values of each parameter, and the options that are not the function's own."""
        given: dict[str, list[str]] = {}
        rest: list[str] = []
        free = list(self.words)
        queue = list(words)
        while queue:
            word = queue.pop(0)
            if not word.startswith("-") or word == "-":
                if not free:
                    raise SailUsageError(f"unexpected {word!r}; {self.usage}")
                given[free.pop(0)] = [word]
                continue
            name, value = _option(word)
            name = name if name in self.actions else f"{name}_"
            if name in self.actions and name not in self.words:
                hint = type_of(self.actions[name])
                values = [value] if value is not None else self._values(word, hint, queue)
                given[name] = given.get(name, []) + values if _element(hint) else values
            elif self.open_ended and word.startswith("--"):
                rest.append(word)
                while queue and not queue[0].startswith("-"):
                    rest.append(queue.pop(0))
            else:
                self._refuse(word)
        return given, rest

    def _values(self, word: str, hint: Any, queue: list[str]) -> list[str]:
        """Takes the values of an option from the words that follow it."""
        if _parts(hint) == [bool]:
            return ["true"]
        follows = bool(queue) and not re.match(r"--|-[a-z]", queue[0])
        if not follows:
            if bool in _parts(hint):
                return ["true"]
            raise SailUsageError(f"{word} needs a value")
        values = [queue.pop(0)]
        while _element(hint) and not self.words and queue and not queue[0].startswith("-"):
            values.append(queue.pop(0))
        return values

    def _refuse(self, word: str) -> NoReturn:
        known = [self.shown(name) for name in self.actions if name not in self.words]
        near = difflib.get_close_matches(word.partition("=")[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise SailUsageError(f"unknown option {word.partition('=')[0]}; {hint}")

    def _text(self, name: str, values: list[str]) -> str:
        """Returns values as one word that jsonargparse reads as this type."""
        element = _element(type_of(self.actions[name]))
        if element is None:
            return values[-1]
        if element is not Path:
            values = [part for value in values for part in ([value] if "{" in value else comma_list([value]))]
        is_number = inspect.isclass(element) and issubclass(element, int | float)
        return f"[{','.join(values)}]" if is_number else json.dumps(values)

    def _usage(self) -> str:
        named = [name.upper() if self.actions[name].required else f"[{name.upper()}]" for name in self.words]
        needed = [
            f"{_spelled(one).partition(',')[0]} {_metavar(one)}"
            for one in self.actions.values()
            if one.required and one.option_strings
        ]
        return " ".join([self.prog, *named, *needed, "[options]"])


class _Help(HelpFormatter):
    """Formats help as options are typed: with dashes, flags without a value, and defaults where there are any."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=30, width=118)

    def spelling(self, action: Action) -> str:
        if not action.option_strings:
            return action.dest.upper()
        return f"{_spelled(action)} {_metavar(action)}".rstrip()

    def explanation(self, action: Action) -> str:
        text = (action.help or "").strip()
        default = action.default
        if action.required or not action.option_strings or default is None or default is False or default == []:
            return text
        shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{text.rstrip('.')} (default: {shown})"


def _spelled(action: Action) -> str:
    """Returns an option as it is typed."""
    return f"{'-c, ' if action.dest == 'config' else ''}--{_dashed(action.dest)}"


def _dashed(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _option(word: str) -> tuple[str, str | None]:
    """Splits a word such as `--max-side=3` into `max_side` and `3`; the value is None if it is not in the same word."""
    if match := re.fullmatch(r"-c=?(.*)", word, re.DOTALL):
        return "config", match[1] or None
    name, equals, value = word.removeprefix("--").partition("=")
    return name.replace("-", "_"), value if equals else None


def _metavar(action: Action) -> str:
    """Returns the placeholder of an option's value in the help."""
    parts = _parts(type_of(action))
    if parts == [bool]:
        return ""
    if bool in parts:
        return "[NAME]"
    element = _element(type_of(action))
    kind = element or parts[0]
    if typing.get_origin(kind) is Literal:
        return f"{{{','.join(map(str, typing.get_args(kind)))}}}"
    if inspect.isclass(kind) and issubclass(kind, int | float):
        name = "N" if issubclass(kind, int) else "X"
    elif action.dest == "config":
        name = "CONFIG"
    elif kind is Path or action.dest == "plugins":
        name = "PATH" if kind is Path else "FILE"
    else:
        name = action.dest.upper() if element is None else "NAME"
    return f"{name},..." if element not in (None, Path) else name


def _parts(hint: Any) -> list[Any]:
    """Returns the types that a value may have, without None."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [part for part in typing.get_args(hint) if part is not type(None)]
    return [hint]


def _element(hint: Any) -> Any:
    """Returns the type of a list's elements, or None if the type is not a list."""
    return next((typing.get_args(part)[0] for part in _parts(hint) if typing.get_origin(part) is list), None)


def _wanted(hint: Any) -> str:
    """Returns the name of a type in messages."""
    element = _element(hint)
    if element is not None:
        return f"{_wanted(element)}, several with commas"
    said = []
    for part in _parts(hint):
        if typing.get_origin(part) is Literal:
            said.append(f"one of {', '.join(map(str, typing.get_args(part)))}")
        else:
            name = getattr(part, "__name__", str(part))
            said.append(WANTED.get(name, f"a {name}"))
    return " or ".join(said)
