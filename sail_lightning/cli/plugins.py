"""`sail-lightning plugins`: what can be plugged in; a plugin's arguments, defaults and source."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import textwrap
import typing
from typing import Any

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailUsageError

USAGE = """\
without a name: all sockets; with a socket (Upsampler): its plugins; with a plugin: its arguments
example: sail-lightning plugins MyUpsampler --plugins my_upsampler.py
check NAME: whether a plugin does what its socket asks; see sail-lightning plugins check --help"""


def run(args: list[str]) -> int:
    """Prints a listing, or checks a plugin; returns the exit code."""
    if args[:1] == ["check"]:
        from sail_lightning.cli import plugins_check

        return plugins_check.run(args[1:])
    parser = Parser(prog="sail-lightning plugins", description="What can be plugged in.", epilog=USAGE)
    parser.add_argument("name", nargs="?", help="a socket or a plugin")
    parser.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    given = parser.parse_args(args)

    from sail_lightning import registry  # after --help: it takes seconds

    registry.discover(comma_list(given.plugins))
    sockets = {base.__name__: base for base in registry.SOCKETS}
    socket = sockets.get(given.name) or next(
        (base for name, base in sockets.items() if given.name and _plain(name) == _plain(given.name)), None
    )
    if given.name is None or socket is not None:
        for base in [socket] if socket else sockets.values():
            print(_socket_page(base))
        for source, state in registry.SOURCES.items():
            if state != "ok":
                sys.stderr.write(f"note: the installed plugins of {source} are left out: {state}\n")
    elif found := registry.find(given.name):
        print(_plugin_page(*found))
    else:
        known = [*sockets, *(name for base in registry.SOCKETS for name in registry.plugins_of(base))]
        near = difflib.get_close_matches(given.name, known, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"sockets are {', '.join(sockets)}"
        raise SailUsageError(f"no socket or plugin named {given.name}; {hint}")
    return 0


def _plain(name: str) -> str:
    """`prompt_encoders`, `PromptEncoder`: one socket."""
    return name.replace("_", "").lower().removesuffix("s")


def _socket_page(base: type) -> str:
    from sail_lightning import registry

    plugins = registry.plugins_of(base)
    width = max((len(name) for name in plugins), default=0)
    lines = [f"{base.__name__}: {_summary(base)}"]
    for name, cls in plugins.items():
        origin = "" if cls.__module__.startswith("sail_lightning.plugins.") else f"  [{cls.__module__}]"
        lines.append(f"  {name:{width}}  {_summary(cls)}{origin}")
    return "\n".join(lines) + "\n"


def _plugin_page(base: type, cls: type) -> str:
    from sail_lightning.settings.signatures import arguments_of

    body = _docs(cls)
    lines = [f"{cls.__name__} ({base.__name__})", "", *body, ""]
    arguments = arguments_of(cls)
    if arguments:
        lines.append("arguments:")
    for name, argument in arguments.items():
        default = "required" if argument.required else f"default {argument.default!r}"
        lines.append(f"  {name}: {_type_name(argument.hint)}, {default}")
        lines += textwrap.wrap(argument.doc, 110, initial_indent="      ", subsequent_indent="      ")
    lines += ["", f"class: {cls.__module__}.{cls.__qualname__}", f"file:  {inspect.getsourcefile(cls)}"]
    return "\n".join(lines)


def _summary(cls: type) -> str:
    return textwrap.shorten((inspect.cleandoc(cls.__doc__ or "").splitlines() or [""])[0], 100, placeholder=" ...")


def _docs(cls: type) -> list[str]:
    """The docstring without its `Args` section, and what follows that."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:\n")[0].rstrip().splitlines()


def _type_name(hint: Any) -> str:
    """A type as people write it, ranges in words."""
    from sail_lightning.settings.ranges import is_range, parts

    if hint is inspect.Parameter.empty:
        return "any"
    plain = isinstance(hint, type) and not typing.get_args(hint)
    text = hint.__name__ if plain else str(hint).replace("typing.", "").replace("NoneType", "None")
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text)
    for part in filter(is_range, parts(hint)):
        text = re.sub(rf"\b{part.__name__}\b", f"{part.base.__name__} ({part.words})", text)
    return text
