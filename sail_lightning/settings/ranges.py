"""Ranges of numbers as types for signatures: known to the parser, to the JSON schema, and enforced for Python callers.

`def __init__(self, stride: PositiveInt = 4)` in a `Checked` class, or in a plugin, refuses `stride=0` with one sentence
wherever it comes from. To a type checker the types are plain numbers, and so are the values: a parser that reads a
range gives an `int` or a `float`, which checkpoints and YAML can hold. NaN and infinity are in no range.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from jsonargparse.typing import register_type

from sail_lightning.compat.jsonargparse import limited_type, limits_of
from sail_lightning.errors import SailUsageError
from sail_lightning.settings.renames import current_arguments
from sail_lightning.settings.signatures import arguments_of, parts_of

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
KINDS = {int: "a whole number", float: "a number"}


def number_range(name: str, base: type, *limits: tuple[str, float]) -> Any:
    """Returns a type of the numbers within limits.

    Args:
        name: Name of the type, which `sail-lightning plugins` shows.
        base: `int` or `float`.
        limits: Comparisons with a number, such as `(">=", 1)`, the lower limit first.
    """
    restrictions = [(COMPARISONS[sign], limit) for sign, limit in limits]
    kind = limited_type(name, base, restrictions, base=base, limits=dict(limits), words=_words(dict(limits)))
    kind.__module__ = __name__

    def read(value: Any) -> Any:
        if (message := fault(kind, value, "", texts=True)) is not None:
            raise ValueError(message.strip())
        return base(value)

    def is_plain(value: Any, _: Any) -> bool:
        return type(value) is base and _fits(kind, value)

    register_type(kind, base, read, type_check=is_plain)
    return kind


def _words(limits: Mapping[str, float]) -> str:
    """Returns the limits in words."""
    least, above, most, below = (limits.get(sign) for sign in (">=", ">", "<=", "<"))
    if most is not None:
        return f"from {least} to {most}"
    if below is not None:
        return f"at least {least} and less than {below}"
    return f"more than {above}" if least is None else f"{least} or more"


if TYPE_CHECKING:
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    CountOrAll: TypeAlias = int
    Octaves: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    OneOrMore: TypeAlias = float
    UnitInterval: TypeAlias = float
    BelowOne: TypeAlias = float
else:
    PositiveInt = number_range("PositiveInt", int, (">=", 1))
    NonNegativeInt = number_range("NonNegativeInt", int, (">=", 0))
    CountOrAll = number_range("CountOrAll", int, (">=", -1))
    Octaves = number_range("Octaves", int, (">=", 1), ("<=", 24))
    PositiveFloat = number_range("PositiveFloat", float, (">", 0))
    NonNegativeFloat = number_range("NonNegativeFloat", float, (">=", 0))
    OneOrMore = number_range("OneOrMore", float, (">=", 1))
    UnitInterval = number_range("UnitInterval", float, (">=", 0), ("<=", 1))
    BelowOne = number_range("BelowOne", float, (">=", 0), ("<", 1))


def is_range(hint: Any) -> bool:
    """Whether a type is one of the ranges."""
    return inspect.isclass(hint) and hasattr(hint, "words") and issubclass(hint, int | float)


def schema_limits(kind: Any) -> dict[str, Any]:
    """Returns the limits of a range as keywords of a JSON schema."""
    words = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}
    return {words[sign]: limit for sign, limit in kind.limits.items()}


def is_limited(hint: Any) -> bool:
    """Whether a type holds a range or a choice of words."""
    return any(is_range(part) or typing.get_origin(part) is Literal for part in parts_of(hint))


class Fault(typing.NamedTuple):
    """The name of a value, what it must be, and what it is."""

    where: str
    wanted: str
    value: Any


def fault(hint: Any, value: Any, name: str, texts: bool = False) -> str | None:
    """Returns the fault of a value, as a clause such as `stride must be 1 or more, not 0`; None if nothing is.

    Ranges and choices (`Literal`) are checked, alone, in a union, or within a list, tuple or mapping. A type without
    them accepts any value.

    Args:
        hint: The type.
        value: The value of the argument.
        name: The name of the argument.
        texts: Whether a number, a list or a mapping may be given as text, as on a command line.
    """
    found = _fault(hint, value, name, texts) if is_limited(hint) else None
    return None if found is None else f"{found.where} must be {found.wanted}, not {found.value!r}"


def _fault(hint: Any, value: Any, name: str, texts: bool) -> Fault | None:
    origin = typing.get_origin(hint)
    if is_range(hint):
        number = _number(hint.base, value, texts)
        if number is None:
            return Fault(name, f"{KINDS[hint.base]}, {hint.words}", value)
        return None if _fits(hint, number) else Fault(name, hint.words, value)
    if origin is Literal:
        choices = typing.get_args(hint)
        known = any(value is one or (type(value) is type(one) and value == one) for one in choices)
        written = texts and str(value) in map(str, choices)
        return None if known or written else Fault(name, f"one of {', '.join(map(str, choices))}", value)
    if origin in (Union, types.UnionType):
        return _fault_of_all(typing.get_args(hint), value, name, texts)
    if inspect.isclass(origin) and issubclass(origin, Collection):
        return None if texts and isinstance(value, str) else _fault_within(hint, origin, value, name, texts)
    return None if _is_instance(value, hint) else Fault(name, getattr(hint, "__name__", str(hint)), value)


def _fault_of_all(hints: Collection[Any], value: Any, name: str, texts: bool) -> Fault | None:
    """Returns the fault of a value that may be of any of several types."""
    found = [_fault(hint, value, name, texts) for hint in hints]
    faults = [one for one in found if one is not None]
    if len(faults) < len(found):
        return None
    within = [one for one in faults if one.where != name]  # of a list or mapping, which the value is
    wanted = [one.wanted for hint, one in zip(hints, faults, strict=True) if hint is not types.NoneType]
    return within[0] if within else Fault(name, " or ".join(wanted), value)


def _fault_within(hint: Any, origin: type, value: Any, name: str, texts: bool) -> Fault | None:
    """Returns the fault of the items of a list, tuple or mapping."""
    inner = typing.get_args(hint)
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return Fault(name, "a mapping", value)
        checks = [(inner[0], key, f"the keys of {name}") for key in value]
        checks += [(inner[1], item, f"{name}.{key}") for key, item in value.items()]
    else:
        if isinstance(value, str | bytes) or not isinstance(value, Collection):
            return Fault(name, "a list", value)
        fixed = issubclass(origin, tuple) and Ellipsis not in inner
        if fixed and len(value) != len(inner):
            return Fault(name, f"{len(inner)} values", value)
        kinds = inner if fixed else inner[:1] * len(value)
        checks = [(kind, item, f"{name}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True))]
    found = (_fault(kind, item, where, texts) for kind, item, where in checks if is_limited(kind))
    return next((one for one in found if one is not None), None)


def _is_instance(value: Any, hint: Any) -> bool:
    if not inspect.isclass(hint):
        return True
    try:
        return isinstance(value, hint) or (hint is float and isinstance(value, Real))
    except TypeError:  # a protocol that cannot be asked
        return True


def _number(base: type, value: Any, texts: bool) -> int | float | None:
    """Returns the number that a value stands for; None if it is no number of that kind."""
    if isinstance(value, str) and texts:
        with suppress(ValueError):
            number: int | float = base(value)
            return number
    if isinstance(value, bool) or not isinstance(value, Integral if base is int else Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def _fits(kind: Any, number: Any) -> bool:
    finite = isinstance(number, int) or math.isfinite(number)
    return finite and all(within(number, limit) for within, limit in limits_of(kind))


# -- arguments of a call ----------------------------------------------------------------------------------------------


@functools.cache
def limited_arguments(init: Callable[..., None]) -> dict[str, Any]:
    """Returns the types of those arguments of an `__init__` whose types hold a range or a choice, by name."""
    hints: dict[str, Any] = {}
    for name, parameter in inspect.signature(init).parameters.items():
        hint = parameter.annotation
        if isinstance(hint, str):  # one by one: some may name what is imported for type checkers only
            with suppress(Exception):
                hint = eval(hint, inspect.unwrap(init).__globals__)
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and is_limited(hint):
            hints[name] = hint
    return hints


def check_arguments(owner: Any, init: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Refuses arguments that are out of range.

    Args:
        owner: The object that is being made, whose class the message names.
        init: Its `__init__`, or that of a parent.
        given: Arguments as bound to it; defaults may be left out. What it takes as `**kwargs` is checked too, so that
            the message names the class that was called, and not a parent.

    Raises:
        SailUsageError: An argument is out of range; the message names class, argument, value and range.
    """
    hints = limited_arguments(init)
    if handed_on := given.get(inspect.getfullargspec(init).varkw or "", {}):
        arguments = arguments_of(owner.__class__)
        hints = hints | {name: arguments[name].hint for name in handed_on if name in arguments}
        given = {**given, **handed_on}
    for name, hint in hints.items():
        if name in given and (message := fault(hint, given[name], name)) is not None:
            raise SailUsageError(f"{type(owner).__name__}: {message}")


def check_fields(owner: Any) -> None:
    """Refuses fields of a dataclass that are out of range; its `__post_init__` calls this.

    Raises:
        SailUsageError: A field is out of range; the message names class, field, value and range.
    """
    # A range may be imported for type checkers only: commands that are only listed must not wait for jsonargparse.
    for name, hint in typing.get_type_hints(type(owner), localns=globals()).items():
        if (message := fault(hint, getattr(owner, name, None), name)) is not None:
            raise SailUsageError(f"{type(owner).__name__}: {message}")


def refuse_empty(owner: object, **given: Collection[Any] | None) -> None:
    """Refuses an empty list or mapping where None means the default.

    Raises:
        SailUsageError: A value is empty; the message names class and argument.
    """
    for name, value in given.items():
        if value is not None and len(value) == 0:
            raise SailUsageError(f"{type(owner).__name__}: {name} must not be empty; leave it out, or give null")


def before_init(
    cls: Any,
    look: Callable[[Any, Callable[..., None], inspect.BoundArguments], Mapping[str, Any] | None],
    afterwards: Callable[[Any], None] = lambda self: None,
) -> None:
    """Makes a class call `look(self, init, bound arguments)` before its own `__init__`, if it has one.

    Arguments that are given by an old name (`renames.ARGUMENTS`) get their current name first.

    `look` returns arguments, by name, that replace those given, or None, which leaves them as they are.
    `afterwards(self)` is called when `__init__` is done, or has failed at an attribute that does not exist.
    """
    init = cls.__dict__.get("__init__")
    if init is None:
        return
    signature = inspect.signature(init)

    @functools.wraps(init)
    def looked_at(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = current_arguments(cls, kwargs)
        others = look(self, init, signature.bind(self, *args, **kwargs))
        if others is not None:
            args, kwargs = (), dict(others)
        try:
            init(self, *args, **kwargs)
        except AttributeError:
            afterwards(self)
            raise
        afterwards(self)

    cls.__init__ = looked_at


class Checked:
    """Base of classes whose arguments are checked against the ranges and choices in their signatures; arguments of
    plugins are always checked."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before_init(cls, lambda self, init, bound: check_arguments(self, init, bound.arguments))
