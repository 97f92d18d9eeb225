"""Numbers that cannot be are refused, from Python and in a config, for every argument of every shipped class."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser, set_parsing_settings

from sail_lightning import callbacks, registry
from sail_lightning.cli.config_validation import check_config
from sail_lightning.cli.run_folder import RunCheckpoint
from sail_lightning.data import sources
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate import Metric
from sail_lightning.interfaces import Dims, PromptEncoder
from sail_lightning.model import losses
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.pretrained.lora import LoRA
from sail_lightning.settings import ranges
from sail_lightning.settings.ranges import Checked, PositiveInt, UnitInterval, fault
from sail_lightning.settings.signatures import arguments_of, parts_of
from sail_lightning.training import optim

ANY_NUMBER = {
    ("GroundedCaption", "similarity"): "a function that returns a number, not a number",
    ("EncoderBackbone", "layer"): "counted from either end; which ones there are, the timm model says when it is made",
    ("TimmTeacher", "layer"): "counted from either end; which ones there are, the timm model says when it is made",
}
"""Arguments that may be any number, and why."""


def shipped() -> list[type]:
    """Each class that a config may name or configure: plugins, sources, losses, optimisers, callbacks, sections."""
    registry.load_shipped()
    found = [cls for base in (*registry.SOCKETS, Metric) for cls in registry.members_of(base).values()]
    for module in (sources, callbacks, losses, optim):
        found += [cls for cls in vars(module).values() if inspect.isclass(cls)]
    found += [LoRA, PixelSAIL, SailDataModule, RunCheckpoint]
    ours = (cls for cls in found if cls.__module__.startswith("sail_lightning.") and not inspect.isabstract(cls))
    named = (cls for cls in ours if not issubclass(cls, Exception) and not hasattr(cls, "__dataclass_fields__"))
    return sorted(set(named) - {ranges.Checked}, key=lambda cls: cls.__qualname__)


CLASSES = shipped()
LIMITED = [
    pytest.param(cls, name, id=f"{cls.__name__}.{name}")
    for cls in CLASSES
    for name, argument in arguments_of(cls).items()
    if ranges.is_limited(argument.hint)
]


def impossible(hint: Any) -> Iterator[Any]:
    """Values just outside a type."""
    if ranges.is_range(hint):
        for within, limit in hint._restrictions:
            step = 1 if hint.base is int else 0.5
            yield {">=": limit - step, ">": limit, "<=": limit + step, "<": limit}[_sign(within)]
        yield from [True, "many"] + ([float("nan"), float("inf")] if hint.base is float else [1.5])
    elif typing.get_origin(hint) is Literal:
        yield "nonesuch"
    elif typing.get_origin(hint) is dict:
        keys, values = typing.get_args(hint)
        key = typing.get_args(keys)[0] if typing.get_origin(keys) is Literal else "name"
        yield from ({key: value} for value in impossible(values))
    elif typing.get_origin(hint) is tuple:
        first, *rest = typing.get_args(hint)
        yield from ([value, *[0.5] * len(rest)] for value in impossible(first))
    elif typing.get_origin(hint) is list:
        yield from ([value] for value in impossible(typing.get_args(hint)[0]))
    else:  # one of several types
        for part in typing.get_args(hint):
            if ranges.is_limited(part):
                yield from impossible(part)


def _sign(within: Callable[[Any, Any], bool]) -> str:
    return next(sign for sign, comparison in ranges.COMPARISONS.items() if comparison is within)


def required(cls: type) -> dict[str, Any]:
    needed = {name: argument for name, argument in arguments_of(cls).items() if argument.required}
    return {name: 10 if ranges.is_limited(argument.hint) else None for name, argument in needed.items()}


def test_the_list_holds_what_a_config_may_name() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert {"SailQwen", "EVEv2", "DeconvUpsampler", "NormMatchedPrompts", "StudentTeacher", "AutoAttention"} <= names
    assert {"Mixture", "RefCOCO", "MaskLoss", "MuonAdamW", "WarmupCosine", "EMA", "LoRA", "PixelSAIL"} <= names
    assert len(LIMITED) > 150


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range_or_a_reason(cls: type) -> None:
    for name, argument in arguments_of(cls).items():
        if (cls.__name__, name) not in ANY_NUMBER:
            bare = [part for part in parts_of(argument.hint) if part is int or part is float]
            assert not bare, f"{cls.__name__}.{name} has no range"


def test_reasons_are_of_arguments_that_there_are() -> None:
    arguments = {(cls.__name__, name): argument for cls in CLASSES for name, argument in arguments_of(cls).items()}
    assert ANY_NUMBER.keys() <= arguments.keys()
    bare = {int, float}
    needless = [key for key in ANY_NUMBER if not bare & {*parts_of(arguments[key].hint)}]
    assert needless == []


@pytest.mark.parametrize(("cls", "name"), LIMITED)
def test_a_default_lies_in_its_range(cls: type, name: str) -> None:
    argument = arguments_of(cls)[name]
    assert argument.required or fault(argument.hint, argument.default, name) is None


@pytest.mark.parametrize(("cls", "name"), LIMITED)
def test_what_cannot_be_is_refused_from_python(cls: type, name: str) -> None:
    for value in impossible(arguments_of(cls)[name].hint):
        with pytest.raises(SailUsageError, match=rf"^{cls.__name__}: .*{name}\b.* must be .*, not ") as raised:
            cls(**required(cls) | {name: value})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("cls", "name"), LIMITED)
def test_what_cannot_be_is_refused_in_a_config(cls: type, name: str) -> None:
    for value in impossible(arguments_of(cls)[name].hint):
        with pytest.raises(SailUsageError, match=rf"at\.{name}\b.*(must be .*, not |no .* named )") as raised:
            check_config({"at": {name: value}}, {"at": cls}, ())
        assert "\n" not in str(raised.value)


# -- the types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (PositiveInt, 0, "x must be 1 or more, not 0"),
        (PositiveInt, 1.0, "x must be a whole number, 1 or more, not 1.0"),
        (PositiveInt, True, "x must be a whole number, 1 or more, not True"),
        (PositiveInt, "3", "x must be a whole number, 1 or more, not '3'"),
        (PositiveInt | None, -2, "x must be 1 or more, not -2"),
        (UnitInterval, float("nan"), "x must be from 0 to 1, not nan"),
        (ranges.BelowOne, 1, "x must be at least 0 and less than 1, not 1"),
        (ranges.PositiveFloat, 0, "x must be more than 0, not 0"),
        (ranges.NonNegativeFloat, float("inf"), "x must be 0 or more, not inf"),
        (ranges.CountOrAll, -2, "x must be -1 or more, not -2"),
        (PositiveInt | Literal["all"], "none", "x must be a whole number, 1 or more or one of all, not 'none'"),
        (dict[str, PositiveInt] | None, {"a": 1, "b": 0}, "x.b must be 1 or more, not 0"),
        (dict[str, PositiveInt] | None, 3, "x must be a mapping, not 3"),
        (dict[Literal["a"], PositiveInt], {"b": 1}, "the keys of x must be one of a, not 'b'"),
        (list[PositiveInt], [1, 0], "x[1] must be 1 or more, not 0"),
        (tuple[UnitInterval, UnitInterval], (0.1,), "x must be 2 values, not (0.1,)"),
    ],
)
def test_a_fault_names_place_value_and_range(hint: Any, value: Any, message: str) -> None:
    assert fault(hint, value, "x") == message


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (PositiveInt, torch.tensor([5]).shape[0] * 3),
        (PositiveInt | None, None),
        (UnitInterval, 1),
        (PositiveInt | Literal["all"], "all"),
        (PositiveInt | str, "any text"),
        (dict[str, PositiveInt], {}),
        (tuple[UnitInterval, ...], (0.0, 1.0, 0.5)),
        (str, -1),
    ],
)
def test_what_fits_has_no_fault(hint: Any, value: Any) -> None:
    assert fault(hint, value, "x") is None


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("0.5", 0.5), (1, 1.0)])
def test_numbers_of_a_config_may_be_written_as_texts(text: Any, value: float) -> None:
    assert fault(UnitInterval, text, "x", texts=True) is None
    assert fault(UnitInterval, "2", "x", texts=True) == "x must be from 0 to 1, not '2'"


class Own(PromptEncoder):
    """A user's plugin."""

    def __init__(self, count: PositiveInt = 3, share: UnitInterval | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count, self.share = count, share

    def build(self, dims: Dims) -> Dims:
        return dims

    def forward(self, embeddings: Any, regions: Any, region_tokens: Any) -> Any:
        return embeddings


def test_a_users_plugin_is_held_to_its_ranges() -> None:
    assert Own(count=1, share=0.5).init_args == {"count": 1, "share": 0.5}
    with pytest.raises(SailUsageError, match="Own: share must be from 0 to 1, not 2"):
        Own(share=2)


def test_a_subclass_is_held_to_the_ranges_of_its_parent() -> None:
    class Parent(Checked):
        def __init__(self, size: PositiveInt = 1) -> None:
            self.size = size

    class Child(Parent):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    assert Child(size=4).size == 4
    with pytest.raises(SailUsageError, match="Child: size must be 1 or more, not 0"):
        Child(size=0)


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(PromptEncoder, "it")
    return made


def test_the_parser_gives_plain_numbers_which_checkpoints_can_hold() -> None:
    given = {"class_path": "PromptInjection", "init_args": {"num_prompts": 4}}
    made = parser().instantiate(parser().parse_object({"it": given})).it
    assert isinstance(made, PromptInjection) and type(made.num_prompts) is int
    assert type(parser().parse_args(["--it=PromptInjection", "--it.num_prompts=7"]).it.init_args.num_prompts) is int


def test_the_parser_knows_the_ranges() -> None:
    with pytest.raises(Exception, match=r"num_prompts.*must be 1 or more, not -1|must be 1 or more, not -1"):
        parser().parse_object({"it": {"class_path": "PromptInjection", "init_args": {"num_prompts": -1}}})


def test_a_json_schema_knows_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    set_parsing_settings(add_print_completion_argument=True)
    try:
        made = ArgumentParser(exit_on_error=False)
        made.add_argument("--count", type=PositiveInt)
        made.add_argument("--share", type=ranges.BelowOne)
        with pytest.raises(SystemExit):
            made.parse_args(["--print_completion=jsonschema"])
    finally:
        set_parsing_settings(add_print_completion_argument=False)
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert properties["count"] == {"type": "integer", "minimum": 1}
    assert properties["share"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
