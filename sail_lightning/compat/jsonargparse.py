"""Private names of jsonargparse and argparse: how `**kwargs` are followed, a parser's options, hooks of the help."""

from __future__ import annotations

from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse._parameter_resolvers import get_signature_parameters

__all__ = [
    "HelpFormatter",
    "ListedParser",
    "get_signature_parameters",
    "is_unresolved",
    "limited_type",
    "limits_of",
    "type_of",
]


class ListedParser(ArgumentParser):
    """A parser that can list its options."""

    def options(self) -> list[Action]:
        """Returns all options that were added, in order."""
        return list(self._actions)


Limit = tuple[Callable[[Any, Any], bool], float]
"""A comparison such as `operator.ge`, and the number on its right side."""


def limited_type(name: str, base: type, limits: Sequence[Limit], /, **attributes: Any) -> Any:
    """Returns a number type with limits, which jsonargparse finds when it makes a JSON schema.

    Args:
        name: Name of the type.
        base: `int` or `float`.
        limits: The limits.
        attributes: Other attributes of the type.
    """
    return type(name, (base,), {"_restrictions": list(limits), **attributes})


def limits_of(kind: Any) -> list[Limit]:
    """Returns the limits of a type that `limited_type` made."""
    limits: list[Limit] = kind._restrictions
    return limits


def type_of(action: Action) -> Any:
    """Returns the type by which the values of an option are checked; jsonargparse stores it elsewhere if it is not a
    plain class."""
    return getattr(action, "_typehint", action.type)


def is_unresolved(kind: Any) -> bool:
    """Whether `type_of` returned a type that jsonargparse could not find, for which it takes any text."""
    return repr(kind).startswith("Unvalidated<")


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """A formatter of help pages, whose subclasses define how an option is spelled and explained."""

    def spelling(self, action: Action) -> str:
        """Returns an option with the placeholder of its value, such as `--out PATH`."""
        raise NotImplementedError

    def explanation(self, action: Action) -> str:
        """Returns the help text of an option."""
        raise NotImplementedError

    def _format_action_invocation(self, action: Action) -> str:
        return self.spelling(action)

    def _get_help_string(self, action: Action) -> str:
        return self.explanation(action)
