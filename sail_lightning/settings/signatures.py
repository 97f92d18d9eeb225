"""Finds the arguments of a class, including those of its parents that it passes on as `**kwargs`.

They are found as jsonargparse finds them: what is listed and checked is what its parser takes.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sail_lightning.compat.jsonargparse import get_signature_parameters

EMPTY = inspect.Parameter.empty
"""Default of a required argument, and the type of one that has none."""


@dataclass(frozen=True)
class Argument:
    """One argument: its type, its default (`inspect.Parameter.empty` if it has none) and its description."""

    name: str
    hint: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@functools.cache
def arguments_of(cls: type) -> dict[str, Argument]:
    """Returns the arguments of a class by name: its own, then those of parents that it takes as `**kwargs`.

    What a class decides for its parent (`super().__init__(separate=False, **kwargs)`) is not among them.
    """
    if not inspect.isfunction(cls.__init__):  # type: ignore[misc]
        return {}  # it has none of its own, as an exception
    found = get_signature_parameters(cls, "__init__", logger=False)
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        one.name: Argument(one.name, one.annotation, one.default, " ".join((one.doc or "").split()))
        for one in found
        if one.kind not in open_ended
    }


def is_open_ended(cls: type) -> bool:
    """Returns whether a class takes `**kwargs` that no parent of it names.

    A class without an `__init__` takes none. That of torch's `Module` is left out: it has `**kwargs` to refuse them.
    """
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    parents = [parent for parent in cls.__mro__[:-1] if "__init__" in parent.__dict__ and parent is not module]
    inits = [parent.__dict__["__init__"] for parent in parents]
    return bool(inits) and all(
        any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(init).parameters.values())
        for init in inits
    )


def parts_of(hint: Any) -> Iterator[Any]:
    """Yields the parts of a type: those of a union and of a container, and the result of a callable."""
    inner = typing.get_args(hint)
    if not inner or typing.get_origin(hint) is Literal:
        yield hint
        return
    for part in inner:
        if isinstance(part, list):  # the arguments of a callable
            continue
        yield from parts_of(part)


def body_of(cls: type) -> list[str]:
    """Returns the lines of a class's own docstring up to its `Args` section."""
    return inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("\nArgs:\n")[0].rstrip().splitlines()
