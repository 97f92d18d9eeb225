"""Arguments that a class hands on to its parents are its own, with their types, defaults and descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from torch import nn

from sail_lightning.callbacks import GradNorm
from sail_lightning.plugins.attention import SDPAAttention
from sail_lightning.plugins.backbones import EncoderBackbone, SailQwen
from sail_lightning.settings.signatures import arguments_of, body_of, is_open_ended, parts_of


class Parent:
    """A parent.

    Args:
        size: how large
            it is.
        separate: whether it is alone.
    """

    def __init__(self, size: int = 3, separate: bool = False) -> None:
        self.size, self.separate = size, separate


class Child(Parent):
    """A child.

    Args:
        name: of it.
        kwargs: arguments of `Parent`.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(separate=True, **kwargs)
        self.name = name


def test_arguments_of_parents_follow_a_classs_own() -> None:
    assert list(arguments_of(Child)) == ["name", "size"]


def test_what_a_class_decides_for_its_parent_is_no_argument() -> None:
    assert "separate" not in arguments_of(Child)


def test_an_inherited_argument_keeps_type_default_and_description() -> None:
    size = arguments_of(Child)["size"]
    assert (size.hint, size.default, size.help) == (int, 3, "how large it is.")
    assert arguments_of(Child)["name"].required and not size.required


def test_the_body_of_a_docstring_is_what_stands_before_its_arguments() -> None:
    assert body_of(Parent) == ["A parent."]


def test_a_preset_s_arguments_are_an_encoders_too() -> None:
    assert set(arguments_of(SailQwen)) < set(arguments_of(EncoderBackbone))


class Wrapper(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(**kwargs)


class WithoutInit:
    pass


@pytest.mark.parametrize(
    ("cls", "result"),
    [
        (Child, False),
        (EncoderBackbone, False),
        (SDPAAttention, False),
        (GradNorm, False),
        (WithoutInit, False),
        (Wrapper, True),
    ],
)
def test_whether_a_class_takes_names_that_nobody_lists(cls: type, result: bool) -> None:
    assert is_open_ended(cls) is result


@pytest.mark.parametrize(
    ("hint", "parts"),
    [
        (int | None, [int, type(None)]),
        (dict[str, list[Parent]], [str, Parent]),
        (Callable[[int, str], Parent], [Parent]),
        (Literal["a", "b"] | None, [Literal["a", "b"], type(None)]),
    ],
)
def test_parts_of_a_type(hint: Any, parts: list[Any]) -> None:
    assert list(parts_of(hint)) == parts
