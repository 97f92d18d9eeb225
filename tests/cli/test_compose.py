"""Configs and options become one config; a class that replaces another starts from its own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.cli.compose import (
    apply_options,
    lookup,
    merge_layers,
    merge_value,
    plugin_sources,
    split_options,
    with_options,
)
from sail_lightning.cli.configs import read_config
from sail_lightning.errors import SailError, SailUsageError

DECONV = {"class_path": "DeconvUpsampler", "init_args": {"channels": 64}}


def composed(args: list[str], *layers: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    config, left = apply_options(merge_layers(layers), split_options(args))
    return config, [word for option in left for word in option.words()]


def test_options_are_read_in_all_forms() -> None:
    options = split_options(["-c", "a", "-cb", "--config=c", "--x.y=1=2", "--z", "3", "--print_config"])
    assert [(o.name, o.values) for o in options] == [
        ("config", ["a"]),
        ("config", ["b"]),
        ("config", ["c"]),
        ("x.y", ["1=2"]),
        ("z", ["3"]),
        ("print_config", []),
    ]


@pytest.mark.parametrize("args", [["quickstart"], ["--trainer.max_steps=3", "quickstart"], ["-c"], ["-c", "a", "b"]])
def test_stray_words_are_refused(args: list[str]) -> None:
    with pytest.raises(SailUsageError, match="-c"):
        split_options(args)


def test_images_prompts_and_questions_are_taken_word_by_word() -> None:
    args = ["--data.images", "a.png", "b,c.png", "--data.text", "null: is it?", "--data.prompts=box:1,2,3,4"]
    config, left = composed(args, {"data": {"text": "old"}})
    assert config["data"] == {"text": "null: is it?", "images": ["a.png", "b,c.png"], "prompts": ["box:1,2,3,4"]}
    assert left == []


def test_later_layers_win_key_by_key() -> None:
    layers = [{"model": {"a": 1, "b": 2}, "trainer": {"c": 3}}, {"model": {"b": 4}}]
    assert merge_layers(layers) == {"model": {"a": 1, "b": 4}, "trainer": {"c": 3}}


@pytest.mark.parametrize("name", ["DeconvUpsampler", "sail_lightning.plugins.upsamplers.deconv.DeconvUpsampler"])
def test_same_class_keeps_its_arguments(name: str) -> None:
    assert merge_value(DECONV, name) == DECONV
    new = {"class_path": name, "init_args": {"stride": 2}}
    assert merge_value(DECONV, new)["init_args"] == {"channels": 64, "stride": 2}


def test_arguments_without_a_class_are_merged() -> None:
    for new in ({"init_args": {"stride": 2}}, {"stride": 2}):
        assert merge_value(DECONV, new)["init_args"] == {"channels": 64, "stride": 2}
    assert merge_value("DeconvUpsampler", {"stride": 2}) == {
        "class_path": "DeconvUpsampler",
        "init_args": {"stride": 2},
    }


@pytest.mark.parametrize("new", ["PixelShuffleUpsampler", {"class_path": "PixelShuffleUpsampler"}, None])
def test_another_class_loses_the_arguments_of_the_first(new: Any) -> None:
    assert merge_value(DECONV, new) == new


def test_teachers_merge_by_name_and_null_switches_one_off() -> None:
    old = {"a": {"class_path": "TimmTeacher", "init_args": {"weight": 0.5}}, "b": "TimmTeacher"}
    new = {"b": None, "c": "TimmTeacher"}
    assert merge_value(old, new) == {"a": old["a"], "b": None, "c": "TimmTeacher"}


def test_plain_mappings_are_replaced() -> None:
    assert merge_value({"refer": 1.0, "choice": 1.0}, {"refer": 2.0}) == {"refer": 2.0}


def test_plus_adds_to_a_plain_mapping() -> None:
    base = {"data": {"repeats": {"a": 2, "b": 3}}}
    assert merge_layers([base, {"data": {"repeats+": {"b": 1, "c": 4}}}]) == {
        "data": {"repeats": {"a": 2, "b": 1, "c": 4}}
    }
    assert merge_layers([{"data": {}}, {"data": {"repeats+": {"c": 4}}}]) == {"data": {"repeats": {"c": 4}}}


def test_lists_are_replaced_and_plus_appends() -> None:
    assert merge_layers([{"t": {"x": [1]}}, {"t": {"x": [2]}}]) == {"t": {"x": [2]}}
    assert merge_layers([{"t": {"x": [1]}}, {"t": {"x+": [2]}}]) == {"t": {"x": [1, 2]}}


@pytest.mark.parametrize("key", ["upsampler", "backbone.attention", "backbone.init_args.attention"])
def test_option_that_swaps_a_class_drops_the_arguments_in_files(key: str) -> None:
    layer = {
        "model": {
            "upsampler": DECONV,
            "backbone": {
                "class_path": "SailQwen",
                "init_args": {"attention": {"class_path": "A", "init_args": {"k": 1}}},
            },
        }
    }
    config, left = composed([f"--model.{key}=Other"], layer)
    assert lookup(config, f"model.{key}") == "Other" and left == [f"--model.{key}=Other"]


def test_option_that_names_the_same_class_keeps_them() -> None:
    config, _ = composed(["--model.upsampler=DeconvUpsampler"], {"model": {"upsampler": DECONV}})
    assert config["model"]["upsampler"] == DECONV


def test_later_option_voids_the_arguments_of_an_earlier_class() -> None:
    _, left = composed(["--model.u=A", "--model.u.x=1", "--model.u=B", "--model.u.y=2"])
    assert left == ["--model.u=B", "--model.u.y=2"]


def test_null_is_no_class() -> None:
    config, left = composed(["--model.teachers=null"], {"model": {"teachers": {"a": "TimmTeacher"}}})
    assert left == ["--model.teachers=null"] and config["model"]["teachers"] == {"a": "TimmTeacher"}


def test_plugins_are_collected_from_files_and_options_once() -> None:
    options = split_options(["--plugins", "a.py,b", "--plugins=[c.py]", "--plugins", "d.py", "e.py"])
    layers = [{"plugins": "z.py"}, {"plugins": ["b"]}, {"plugins": None}]
    assert plugin_sources(options, layers) == ["z.py", "b", "a.py", "c.py", "d.py", "e.py"]


def test_dotted_keys_of_a_file_are_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model.upsampler: X\nmodel: {backbone: Y}\nmodel.seed: 1\n")
    assert read_config(path) == {"model": {"upsampler": "X", "backbone": "Y", "seed": 1}}


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "just words", "model: 1\nmodel.x: 2\n"])
def test_file_that_is_no_config_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SailError, match="broken.yaml"):
        read_config(path)


values = st.recursive(
    st.none() | st.integers() | st.sampled_from(["A", "B"]),
    lambda inner: st.fixed_dictionaries(
        {"class_path": st.sampled_from(["A", "B"]), "init_args": st.dictionaries(st.sampled_from("xyz"), inner)}
    ),
    max_leaves=6,
)


@given(old=values, new=values)
def test_merging_never_changes_its_inputs_and_ends_in_the_newer_class(old: Any, new: Any) -> None:
    before = repr((old, new))
    merged = merge_value(old, new)
    assert repr((old, new)) == before
    if isinstance(new, dict):
        assert merged["class_path"] == new["class_path"]
        assert new["init_args"].keys() <= merged["init_args"].keys()
        same = isinstance(old, dict) and old["class_path"] == new["class_path"]
        assert same or merged == new


@given(value=values)
def test_merging_a_value_with_itself_changes_nothing(value: Any) -> None:
    assert merge_value(value, value) == value


@pytest.mark.parametrize(
    ("args", "layers"),
    [
        ((), [{"data": {"look_ahead": 3}}]),
        ((), [{"data": {"packing_buffer_size": 8}}, {"data": {"look_ahead": 3}}]),
        (("--data={look_ahead: 3}",), [{"data": {"packing_buffer_size": 8}}]),
        (("--data.look_ahead=3",), [{"data": {"packing_buffer_size": 8}}]),
    ],
)
def test_an_old_key_means_the_key_of_today(args: tuple[str, ...], layers: list[dict[str, Any]]) -> None:
    with pytest.warns(FutureWarning, match="the argument look_ahead of SailDataModule is now packing_buffer_size"):
        config, left = apply_options(merge_layers(layers), split_options(args))
    assert lookup(with_options(config, left), "data.packing_buffer_size") == 3
    assert "look_ahead" not in str(config) + str(left)
