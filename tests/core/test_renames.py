"""Module paths and names of version 0.1.0 before the move: they work, and name what replaces them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sail_lightning import registry
from sail_lightning.cli import compose
from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, to_spec
from sail_lightning.plugins import prompt_encoders
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import NoPrompts, NormMatchedPrompts, PromptInjection
from sail_lightning.plugins.teachers import StudentTeacher
from sail_lightning.plugins.teachers.frozen import ScheduledTeacher
from sail_lightning.settings import renames
from sail_lightning.settings.ranges import Checked, PositiveInt
from sail_lightning.settings.signatures import arguments_of

Find = Callable[[str], tuple[type, type] | None]


@pytest.mark.parametrize(("old", "new"), sorted(renames.MODULES.items()))
def test_an_old_module_path_is_the_module_of_today(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"sail_lightning.{old}", raising=False)
    with warnings.catch_warnings(record=True) as caught:  # of a package that moved too, its own warning comes first
        warnings.simplefilter("always")
        module = importlib.import_module(f"sail_lightning.{old}")
    assert f"sail_lightning.{new};" in str(caught[-1].message)
    assert module is importlib.import_module(f"sail_lightning.{new}")
    assert module.__name__ == f"sail_lightning.{new}"


@pytest.mark.parametrize(
    "path", ["generation.generate", "model.SailModel", "sequence.SequenceBuilder", "data.sample.Sample"]
)
def test_an_old_name_is_the_class_of_today(path: str) -> None:
    module, _, name = f"sail_lightning.{path}".rpartition(".")
    with pytest.warns(FutureWarning, match="is now"):
        found = getattr(importlib.import_module(module), name)
        assert found is not None
        sys.modules.pop("sail_lightning.data.sample", None)


def test_an_unknown_module_is_still_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="sail_lightning.nonsense"):
        importlib.import_module("sail_lightning.nonsense")


def test_a_stored_class_path_is_rewritten() -> None:
    assert renames.new_path("sail_lightning.losses.MaskLoss") == "sail_lightning.model.losses.MaskLoss"
    assert renames.new_path("torch.optim.AdamW") == "torch.optim.AdamW"
    assert renames.new_path("sail_lightning.model.losses.MaskLoss") == "sail_lightning.model.losses.MaskLoss"


def test_the_old_paths_work_in_a_fresh_process_before_anything_else() -> None:
    code = (
        "from sail_lightning.data.sample import Sample; import sail_lightning; assert Sample is sail_lightning.Sample"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


# -- arguments and config keys ----------------------------------------------------------------------------------------


class Old(Checked):
    """A parent whose argument `width` was called `w`; it is of the package, as far as the tables know."""

    def __init__(self, width: PositiveInt = 1, mode: str = "new") -> None:
        self.width, self.mode = width, mode


class Mine(Old):
    """A user's subclass that hands its arguments on."""

    def __init__(self, depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth


class MineWithItsOwn(Old):
    """A user's subclass that still takes the old name."""

    def __init__(self, w: int = 1) -> None:
        super().__init__(w=w)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """The table of renames for these classes; the function that finds them by name."""
    renames._renames_of.cache_clear()
    monkeypatch.setattr(Old, "__module__", "sail_lightning.somewhere")
    monkeypatch.setitem(renames.ARGUMENTS, "Old", {"w": "width"})
    monkeypatch.setitem(renames.VALUES, "Old", {"mode": {"old": "new"}})
    classes = {cls.__name__: (Old, cls) for cls in (Old, Mine, MineWithItsOwn)}
    yield classes.get
    renames._renames_of.cache_clear()


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("cls", [Old, Mine, MineWithItsOwn])
def test_a_constructor_takes_an_argument_by_its_old_name(cls: type[Old]) -> None:
    with pytest.warns(FutureWarning, match="the argument w of Old is now width|the argument w of Mine is now width"):
        assert cls(w=3).width == 3


@pytest.mark.usefixtures("table")
def test_an_old_name_is_held_to_the_range_of_the_new_one() -> None:
    with pytest.warns(FutureWarning), pytest.raises(SailUsageError, match="width must be 1 or more, not 0"):
        Old(w=0)


@pytest.mark.usefixtures("table")
def test_the_old_and_the_new_name_together_are_refused() -> None:
    with pytest.raises(SailUsageError, match="Old: w is the old name of width; give width only"):
        Old(w=1, width=2)


@pytest.mark.usefixtures("table")
def test_an_old_value_becomes_the_new_one() -> None:
    with pytest.warns(FutureWarning, match="mode=old of Old is now mode=new"):
        assert renames.current_arguments(Old, {"mode": "old"}) == {"mode": "new"}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"class_path": "Old", "init_args": {"w": 3}}, {"class_path": "Old", "init_args": {"width": 3}}),
        ({"class_path": "a.b.Mine", "w": 3}, {"class_path": "a.b.Mine", "width": 3}),
        ([{"class_path": "Old", "w+": [3]}], [{"class_path": "Old", "width+": [3]}]),
        ({"inner": {"class_path": "Old", "w": 3}}, {"inner": {"class_path": "Old", "width": 3}}),
    ],
)
def test_a_config_key_is_renamed_wherever_its_class_is_named(config: Any, wanted: Any, table: Find) -> None:
    with pytest.warns(FutureWarning, match="w of .* is now width"):
        assert renames.current_keys({"model": {"x": config}}, table) == {"model": {"x": wanted}}


@pytest.mark.parametrize("lower", ["Old", {"class_path": "Old"}])
def test_a_layer_without_a_class_is_renamed_by_the_class_below_it(lower: Any, table: Find) -> None:
    with pytest.warns(FutureWarning, match="w of Old is now width"):
        found = renames.current_keys({"model": {"x": {"init_args": {"w": 3}}}}, table, {"model": {"x": lower}})
    assert found == {"model": {"x": {"init_args": {"width": 3}}}}


def test_the_key_of_another_class_stays(table: Find) -> None:
    config = {
        "model": {"x": {"class_path": "Other", "init_args": {"w": 3}}, "y": {"class_path": "MineWithItsOwn", "w": 1}}
    }
    assert renames.current_keys(config, table) == config


def test_the_sections_are_those_of_the_command_line() -> None:
    from sail_lightning.cli.lightning_cli import SECTIONS

    assert {key: cls.__name__ for key, cls in SECTIONS.items() if cls.__module__.startswith("sail_lightning")} == (
        renames.SECTIONS
    )


@pytest.mark.parametrize("owner", sorted(renames.ARGUMENTS))
def test_every_entry_names_an_argument_of_today(owner: str) -> None:
    from sail_lightning import PixelSAIL, interfaces
    from sail_lightning.data.datamodule import SailDataModule
    from sail_lightning.evaluate import EvalRecord
    from sail_lightning.plugins.teachers import frozen

    registry.load_shipped()
    known: dict[str, Any] = {
        **vars(interfaces),
        "EvalRecord": EvalRecord,
        "PixelSAIL": PixelSAIL,
        "SailDataModule": SailDataModule,
        "ScheduledTeacher": frozen.ScheduledTeacher,
    }
    found = registry.find(owner)
    cls = found[1] if found else known[owner]
    if not inspect.isabstract(cls):
        assert set(renames.ARGUMENTS[owner].values()) <= arguments_of(cls).keys()


def test_the_data_module_takes_its_old_arguments() -> None:
    from sail_lightning.data.datamodule import SailDataModule

    with pytest.warns(FutureWarning, match="of SailDataModule is now"):
        data = SailDataModule(look_ahead=7, max_fault_rate=0.2)  # type: ignore[call-arg]
    assert (data.packing_buffer_size, data.max_error_rate) == (7, 0.2)


# -- plugins ----------------------------------------------------------------------------------------------------------


def test_a_teacher_takes_its_old_arguments() -> None:
    with pytest.warns(FutureWarning, match="of StudentTeacher is now (student_features|every_n_steps)"):
        teacher = StudentTeacher("sail-tiny", tap="vision", every=3)  # type: ignore[arg-type]
    assert (teacher.student_features, teacher.every_n_steps) == ("vision", 3)
    assert teacher.init_args["every_n_steps"] == 3 and "every" not in teacher.init_args


@pytest.mark.parametrize(
    ("old", "new"), [("cover", "any"), ("nearest", "nearest_pil"), ("nearest_floor", "nearest_torch")]
)
def test_a_prompt_encoder_takes_its_old_rule_of_coverage(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match="of PromptInjection is now rasterization"):
        assert PromptInjection(coverage=old).rasterization == new  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("plugin", "old", "new"),
    [
        (StudentTeacher("sail-tiny"), "tap", "student_features"),
        (StudentTeacher("sail-tiny"), "every", "every_n_steps"),
        (PromptInjection(), "coverage", "rasterization"),
        (SailQwen(), "resize", "resize_mode"),
        (SailQwen(), "picture", "image_layout"),
        (NormMatchedPrompts(), "loudness", "norm_scale"),
        (Dims(num_added_tokens=3), "new_words", "num_added_tokens"),
    ],
)
def test_an_old_attribute_reads_as_the_new_one(plugin: Any, old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=rf"\w+\.{old} is now \w+\.{new}"):
        assert getattr(plugin, old) == getattr(plugin, new)


def test_an_old_attribute_sets_the_new_one() -> None:
    encoder = NoPrompts()
    with pytest.warns(FutureWarning, match="NoPrompts.coverage is now NoPrompts.rasterization"):
        encoder.coverage = "nearest"
    assert encoder.rasterization == "nearest_pil"


def test_a_class_that_defines_old_attributes_keeps_what_it_chose() -> None:
    with pytest.warns(FutureWarning, match="OldTeacher.tap is now OldTeacher.student_features"):

        class OldTeacher(ScheduledTeacher):
            tap = "mask"

    assert OldTeacher.student_features == "mask"
    with pytest.warns(FutureWarning, match="Area.resize is now Area.resize_mode"):

        class Area(SailQwen):
            resize = "area"

    assert Area().resize_mode == "area"


def test_a_plugin_that_overrides_the_old_method_is_stored_by_it() -> None:
    with pytest.warns(FutureWarning, match="Kept.stored_args is now Kept.export_init_args"):

        class Kept(SailQwen):
            def stored_args(self) -> dict[str, Any]:
                return super().stored_args() | {"size": "tiny", "note": "kept"}

    with pytest.warns(FutureWarning):
        stored = to_spec(Kept(num_layers=1), stored=True)["init_args"]
    assert (stored["num_layers"], stored["note"]) == (1, "kept")


def test_the_old_class_name_is_the_new_class() -> None:
    with pytest.warns(FutureWarning, match="LoudPrompts is now .*NormMatchedPrompts"):
        assert prompt_encoders.LoudPrompts is NormMatchedPrompts
    with pytest.warns(FutureWarning, match="is now (NormMatched|norm_scale|rasterization)|is now .*=nearest_pil"):
        made = registry.build({"type": "LoudPrompts", "loudness": 2.0, "coverage": "nearest"})
    assert isinstance(made, NormMatchedPrompts)
    assert (made.norm_scale, made.rasterization) == (2.0, "nearest_pil")


@pytest.mark.parametrize(
    "encoder",
    [
        "LoudPrompts",
        {"class_path": "sail_lightning.plugins.prompt_encoders.LoudPrompts", "init_args": {"loudness": 0.5}},
        {"class_path": "sail_lightning.plugins.prompt_encoders.loud.LoudPrompts", "init_args": {"coverage": "cover"}},
    ],
)
def test_a_config_may_name_the_old_class(encoder: Any) -> None:
    with pytest.warns(FutureWarning, match="is now (NormMatchedPrompts|norm_scale|rasterization)|is now .*=any"):
        found = renames.current_keys({"name": "LoudPrompts", "model": {"prompt_encoder": encoder}}, registry.find)
    assert "loud" not in str(found["model"]).lower() and found["name"] == "LoudPrompts"


def test_an_option_may_name_the_old_class() -> None:
    options = compose.split_options(["--model.prompt_encoder=LoudPrompts", "--model.prompt_encoder.loudness=2"])
    with pytest.warns(FutureWarning, match="is now (NormMatchedPrompts|norm_scale)"):
        _, left = compose.apply_options({}, options)
    assert [word for option in left for word in option.words()] == [
        "--model.prompt_encoder=NormMatchedPrompts",
        "--model.prompt_encoder.norm_scale=2",
    ]
