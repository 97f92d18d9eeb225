"""What we take from jsonargparse and argparse beyond their plain use."""

from __future__ import annotations

import inspect
import operator
from argparse import Action
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sail_lightning.compat import jsonargparse as compat

NAMED = f"jsonargparse {version('jsonargparse')}"


class Base:
    """A base.

    Args:
        width: How wide.
        separate: Whether it stands alone.
    """

    def __init__(self, width: int = 3, separate: bool = True) -> None:
        self.width, self.separate = width, separate


class Derived(Base):
    """A class.

    Args:
        name: What it is called.
        kwargs: Arguments of `Base`.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(separate=False, **kwargs)
        self.name = name


def test_arguments_are_followed_through_kwargs_but_for_those_that_a_class_decides() -> None:
    found = compat.get_signature_parameters(Derived, "__init__", logger=False)
    listed = [(one.name, one.annotation, one.default, one.doc) for one in found]
    empty = inspect.Parameter.empty
    assert listed == [("name", str, empty, "What it is called."), ("width", int, 3, "How wide.")], NAMED
    assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in found), NAMED


def read(source: str, *, out: Path | None = None, sizes: list[int] = [1]) -> None:  # noqa: B006 - only its signature is read
    """A function that is never called.

    Args:
        source: Where from.
        out: Where to.
        sizes: How large.
    """


def test_a_parser_gives_its_options_and_their_types() -> None:
    parser = compat.ListedParser(add_help=False)
    parser.add_function_arguments(read, as_group=False)
    options = {one.dest: compat.type_of(one) for one in parser.options()}
    assert options == {"source": str, "out": Path | None, "sizes": list[int]}, NAMED


class Formatter(compat.HelpFormatter):
    def spelling(self, action: Action) -> str:
        return f"<{action.dest}>"

    def explanation(self, action: Action) -> str:
        return f"about {action.dest}"


def test_a_help_page_spells_and_explains_options_as_it_is_told_to() -> None:
    parser = compat.ListedParser(add_help=False, formatter_class=Formatter)
    parser.add_argument("--size", type=int, default=3, help="How large.")
    text = parser.format_help()
    assert "<size>" in text and "about size" in text and "How large." not in text, NAMED


def test_a_type_with_limits_keeps_them_where_the_librarys_own_types_do() -> None:
    from jsonargparse.typing import PositiveInt

    kind = compat.limited_type("AtLeastTwo", int, [(operator.ge, 2)], words="2 or more")
    assert compat.limits_of(kind) == [(operator.ge, 2)] and kind.words == "2 or more"
    assert compat.limits_of(PositiveInt) == [(operator.gt, 0)], NAMED


def test_a_type_that_is_not_defined_is_known_as_such() -> None:
    def function(times: NotDefined = 1, name: str = "") -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    parser = compat.ListedParser()
    parser.add_function_arguments(function, as_group=False)
    found = {action.dest: compat.is_unresolved(compat.type_of(action)) for action in parser.options()}
    assert found["times"] and not found["name"], NAMED
