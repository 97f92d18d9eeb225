"""Help pages of swap points, and of a class with its arguments, defaults and source."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterable
from typing import Any

from sail_lightning.errors import SailUsageError, choice

if typing.TYPE_CHECKING:
    from sail_lightning.registry import SwapPoint

WIDTH = 110


def show(name: str | None = None) -> None:
    """Prints what can be swapped.

    Args:
        name: A swap point, a class or a wildcard pattern; None lists all swap points.

    Raises:
        SailUsageError: Nothing has this name.
    """
    from sail_lightning import registry  # after --help: it takes seconds

    registry.load_shipped()
    registry.discover()
    print(page(name))
    for source, state in registry.SOURCES.items():
        if state != "ok":
            sys.stderr.write(f"note: the installed plugins of {source} are left out: {state}\n")


def page(name: str | None) -> str:
    """Returns the text that `show` prints, of all classes that are loaded."""
    from sail_lightning import registry

    if name is None:
        return _overview(registry.swap_points())
    if any(mark in name for mark in "*?["):
        if not (matches := registry.matching(name)):
            raise SailUsageError(f"no class matches {name}; sail-lightning plugins lists all")
        return "\n\n".join(_members(point, names) for point, names in matches)
    pages = [_members(point, list(point.members)) for point in registry.swap_points() if _is_called(point, name)]
    if found := registry.find(name):
        pages.append(_class_page(registry.SWAP_POINTS[found[0]], found[1]))
    if pages:
        return "\n\n".join(pages)
    if registry.unregistered(name):
        raise SailUsageError(registry.unknown(name))
    known = [point.name for point in registry.swap_points()]
    known += [member for point in registry.swap_points() for member in point.members]
    raise SailUsageError(f"no swap point or class named {name}; {choice(name, known, 'there are')}")


def _is_called(point: SwapPoint, name: str) -> bool:
    """Whether a name stands for a swap point: `PromptEncoder`, `prompt_encoders`, `losses` (all of them), `sockets`."""
    from sail_lightning import registry

    plain = _plain(name)
    if plain == "socket":
        return point.base in registry.SOCKETS
    last_word = re.findall("[A-Z][a-z]*", point.name)[-1:]
    return plain in [_plain(word) for word in (point.name, point.base.__name__, *last_word)]


def _plain(name: str) -> str:
    """Returns a name in a form in which `prompt_encoders` equals `PromptEncoder`, and `optimisers` `optimizer`."""
    plain = name.replace("_", "").replace("-", "").lower().replace("optimis", "optimiz")
    if plain.endswith("ss"):
        return plain
    return plain.removesuffix("es") if plain.endswith("sses") else plain.removesuffix("s")


def _overview(points: list[SwapPoint]) -> str:
    """Returns the text on all swap points, each with its config key and the names of its classes."""
    rows = [("swap point", "config key", "classes")]
    for point in points:
        own = [name for name in point.members if name not in point.library_members]
        others = [name for name in point.members if name in point.library_members]
        listed = ", ".join([*own, *others] if len(others) < 4 else own)
        rows.append((point.name, point.where, listed if len(others) < 4 else f"{listed}, {point.library}.*"))
    first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    lines = []
    for name, where, listed in rows:
        lines += textwrap.wrap(
            listed or "none",
            WIDTH,
            initial_indent=f"{name:{first}}{where:{second}}",
            subsequent_indent=" " * (first + second),
        )
    return "\n".join([*lines, "", "sail-lightning plugins NAME describes a swap point or a class."])


def _members(point: SwapPoint, names: Iterable[str]) -> str:
    """Returns the text on a swap point and some of its classes, one class per line."""
    members = {name: point.members[name] for name in names}
    width = max((len(name) for name in members), default=0)
    lines = [f"{point.name} ({point.where}): {_summary(point.base)}"]
    for name, cls in members.items():
        origin = "" if cls.__module__.startswith("sail_lightning.") else f"  [{cls.__module__}]"
        lines.append(f"  {name:{width}}  {_summary(cls)}{origin}")
    return "\n".join(lines)


def _class_page(point: SwapPoint, cls: type) -> str:
    """Returns the text on a class: its docstring, arguments and source."""
    from sail_lightning.settings.signatures import EMPTY, arguments_of, body_of

    body, arguments = body_of(cls), arguments_of(cls)
    if cls in point.library_members.values():  # the docstring of a library's class may fill pages
        body = body[: body.index("")] if "" in body else body
    lines = [f"{cls.__name__} ({point.name}, {point.where})", "", *body, ""]
    if arguments:
        lines.append("arguments:")
    for name, one in arguments.items():
        default = "required" if one.default is EMPTY else f"default {one.default!r}"
        lines.append(f"  {name}: {_type_name(one.hint)}, {default}")
        if one.help:
            lines += textwrap.wrap(one.help, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(
        [*lines, "", f"class: {cls.__module__}.{cls.__qualname__}", f"file:  {inspect.getsourcefile(cls)}"]
    )


def _summary(cls: type) -> str:
    from sail_lightning.registry import summary

    return textwrap.shorten(summary(cls), 100, placeholder=" ...")


def _type_name(hint: Any) -> str:
    """Returns a type as people write it, with ranges in words."""
    from sail_lightning.settings.ranges import is_range
    from sail_lightning.settings.signatures import parts_of

    if hint is inspect.Parameter.empty:
        return "any"
    plain = isinstance(hint, type) and not typing.get_args(hint)
    text = hint.__name__ if plain else str(hint).replace("typing.", "").replace("NoneType", "None")
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text)
    for part in filter(is_range, parts_of(hint)):
        text = re.sub(rf"\b{part.__name__}\b", f"{part.base.__name__} ({part.words})", text)
    return text
