"""Checks names, choices and ranges of a config before the parser sees them, and reports a fault in one sentence.

Other types are checked by jsonargparse; `explain` shortens its messages.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from sail_lightning import registry
from sail_lightning.cli.compose import class_of
from sail_lightning.errors import SailUsageError, choice
from sail_lightning.settings import ranges
from sail_lightning.settings.signatures import EMPTY, arguments_of, is_open_ended, parts_of


def check_config(config: Mapping[str, Any], sections: Mapping[str, type], others: Collection[str]) -> None:
    """Checks every name in a config: sections, arguments, plugins and their arguments.

    Args:
        config: The composed config, with the options in it.
        sections: Top-level keys, and the class that takes the arguments of each.
        others: Top-level keys with a plain value.

    Raises:
        SailUsageError: A name is not known; the message says where it is, the nearest name and all valid names.
    """
    for key, value in config.items():
        if key not in sections and key not in others:
            raise SailUsageError(f"no setting {key}; {choice(key, [*sections, *others], 'there are')}")
        if key in sections and isinstance(value, dict):
            _check_arguments(sections[key], value, key, key)


def _check_arguments(cls: type, arguments: Mapping[str, Any], path: str, owner: str, given: int = 0) -> None:
    """Checks the arguments of a class; the caller fills in its first `given` parameters, as a model does for its
    optimiser."""
    known = dict(list(arguments_of(cls).items())[given:])
    for key, value in arguments.items():
        name = key.removesuffix("+")
        if name not in known and not is_open_ended(cls):
            at = "" if owner == path else f" (at {path})"
            raise SailUsageError(f"{owner} has no argument {name!r}{at}; {choice(name, known, 'it takes')}")
        if name in known and known[name].hint is not EMPTY and not isinstance(known[name].hint, str):
            check_value(known[name].hint, value, f"{path}.{name}", known[name].default)


def check_value(hint: Any, value: Any, path: str, default: Any = EMPTY) -> None:
    """Checks the value of an argument.

    A plain value is checked against its type. Class names are checked where the type is a swap point, or a function
    that makes an optimiser or the like.

    Raises:
        SailUsageError: The value has another type, or a class or an argument is not known.
    """
    bases, filled = _bases(hint)
    if not bases:
        _check_plain(hint, value, path)
        return
    if value in _literals(hint):
        return
    if value is None:
        if type(None) not in parts_of(hint) and default is not None:
            raise SailUsageError(f"{path} cannot be null; there are {', '.join(sorted(candidates(bases)))}")
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_value(bases[0], item, f"{path}[{index}]")
        return
    if isinstance(value, dict) and "class_path" not in value and _is_mapping(hint):
        for key, item in value.items():
            if item is not None:
                check_value(bases[0], item, f"{path}.{key}")
        return
    name = class_of(value)
    if name is None and isinstance(value, dict) and inspect.isclass(default):
        name = default.__name__  # arguments only, for the default class
    cls = None if name is None else _loaded(name, bases)
    if name is None or (cls is None and "." in name and not _is_of_a_library(name, bases)):
        return  # a full path is imported by the parser
    if cls is None:
        raise SailUsageError(_unknown(name, bases, path))
    if isinstance(value, dict):
        bare = {key: item for key, item in value.items() if key not in ("class_path", "init_args", "dict_kwargs")}
        _check_arguments(cls, {**(value.get("init_args") or {}), **bare}, path, cls.__name__, filled)


def _bases(hint: Any) -> tuple[list[type], int]:
    """Returns the classes that an argument's type accepts, and how many of their arguments come from elsewhere."""
    if typing.get_origin(hint) is Callable:
        arguments, made = typing.get_args(hint)
        return ([made], len(arguments)) if inspect.isclass(made) else ([], 0)
    classes = [part for part in dict.fromkeys(parts_of(hint)) if inspect.isclass(part) and not ranges.is_range(part)]
    return [part for part in classes if registry.is_swap_point(part) or part.__module__.startswith("sail_lightning")], 0


def _check_plain(hint: Any, value: Any, path: str) -> None:
    """Checks numbers, switches and choices; other types are left to the parser."""
    parts, choices = list(parts_of(hint)), _literals(hint)
    if any(map(ranges.is_range, parts)) or (choices and _is_container(hint)):
        if (message := ranges.fault(hint, value, path, texts=True)) is not None:
            raise SailUsageError(message)
        return
    plain = [part for part in parts if part in PLAIN]
    if _is_container(hint) or len(plain) + sum(typing.get_origin(part) is Literal for part in parts) < len(parts):
        return
    if str(value) in map(str, choices) or any(PLAIN[part](value) for part in plain):
        return
    wanted = [f"one of {', '.join(dict.fromkeys(map(str, choices)))}"] if choices else []
    wanted += ["null" if part is type(None) else part.__name__ for part in plain]
    raise SailUsageError(f"{path} must be {' or '.join(wanted)}, not {value!r}")


def _is_int(value: Any) -> bool:
    return not isinstance(value, bool) and bool(re.fullmatch(r"[+-]?\d[\d_]*", str(value)))


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


PLAIN: dict[Any, Callable[[Any], bool]] = {
    int: _is_int,
    float: _is_float,
    bool: lambda value: str(value).lower() in ("true", "false"),
    type(None): lambda value: value is None,
}
"""Functions that check values, by type."""


def _unknown(name: str, bases: list[type], path: str) -> str:
    if all(registry.is_swap_point(base) for base in bases):
        return f"{path}: {registry.unknown(name, bases)}"
    kind = " or ".join(base.__name__ for base in bases)
    return f"{path}: no {kind} named {name}; {choice(name, sorted(candidates(bases)), 'there are')}"


def candidates(bases: Iterable[type]) -> dict[str, type]:
    """Returns the classes that can be used where one of `bases` is required, by short name.

    These are the members of a swap point; a class that is none can only be used itself.
    """
    found: dict[str, type] = {}
    for base in bases:
        found |= registry.members_of(base) if registry.is_swap_point(base) else {base.__name__: base}
    return found


def _loaded(name: str, bases: list[type]) -> type | None:
    cls = candidates(bases).get(name.rpartition(".")[2])
    if cls is None or "." not in name:
        return cls
    # The full path may go through a package that re-exports the class.
    return cls if cls.__module__.startswith(name.rpartition(".")[0]) else None


def _is_of_a_library(name: str, bases: list[type]) -> bool:
    """Whether a full path names a class of a library with members of its swap point, of which only these can be
    used."""
    home = name.rpartition(".")[0]
    return any(registry.is_swap_point(base) and registry.SWAP_POINTS[base].library == home for base in bases)


def _literals(hint: Any) -> list[Any]:
    return [word for part in parts_of(hint) if typing.get_origin(part) is Literal for word in typing.get_args(part)]


def _is_container(hint: Any) -> bool:
    """Whether a value of this type holds other values, as in `tuple[float, float]` or `list[int] | None`."""
    held = typing.get_origin(hint) in (list, tuple, dict, set)
    return held or any(_is_container(part) for part in typing.get_args(hint))


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict or any(_is_mapping(part) for part in typing.get_args(hint))


def explain(message: str) -> str:
    """Returns a message of jsonargparse as one sentence; of an unknown message only the line breaks are removed."""
    flat = " ".join(message.split())
    key = match[1] if (match := re.search(r'[Kk]ey "([\w.]+)"', flat)) else ""
    within = r"class_path '(?:\w+\.)*(\w+)': the following arguments are required: (\w+(?:, \w+)*)"
    if match := re.search(within, flat):
        several = "arguments" if "," in match[2] else "argument"
        return f"{key + ': ' if key else ''}{match[1]} needs the {several} {match[2]}"
    if match := re.search(r"the following arguments are required: (.+)", flat):
        names = [name.partition(".")[2] for name in match[1].split(", ")]
        return f"{', '.join(names)} must be set; use a config such as -c quickstart"
    if match := re.search(r"Expected a (?:typing\.)?(.+?)\. Got value: (.+)", flat):
        return f"{key or 'a setting'} must be {_type(match[1])}, not {match[2]}"
    if match := re.search(r"Not of type \w+: (must be .+?)(?: - | Given value|$)", flat):
        path = ".".join(dict.fromkeys(re.findall(r'[Kk]ey "([\w.]+)"', flat)))
        return f"{path or 'a setting'} {match[1]}"
    if match := re.search(r"Expected a dot import path string: (\S+)", flat):
        return f"{key or 'a setting'}: no class named {match[1]}"
    if match := re.search(r"Given value: (.+)$", flat):
        wanted = re.search(r"Subtypes: [\[(](.+?)[\])] Errors:", flat)
        return f"{key or 'a setting'} must be {_type(wanted[1]) if wanted else 'of another type'}, not {match[1]}"
    if match := re.search(r"[Uu]nrecognized arguments: (.+)", flat):
        return f"unknown option {match[1]}"
    return re.sub(r"^Parser key \"([\w.]+)\":", r"\1:", flat)


def _type(text: str) -> str:
    """Returns a type as people write it."""
    if match := re.fullmatch(r"(?:typing\.)?Literal\[(.+)\]", text):
        return f"one of {match[1]}"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "").replace("NoneType", "null")
    return " or ".join(part.strip() for part in text.split(", ")) if "[" not in text else text
