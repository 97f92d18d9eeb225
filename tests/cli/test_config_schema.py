"""The JSON schema of configs: what an editor accepts and marks is what the command line accepts and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_harness import Command

from sail_lightning import registry
from sail_lightning.cli.config_schema import config_schema
from sail_lightning.cli.configs import config_names, config_root
from sail_lightning.data.sources import Source


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema of all that is shipped, as an editor reads it."""
    registry.load_shipped()
    return json.loads(json.dumps(config_schema()))


def classes(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All classes in a config, by short name, with their arguments."""
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"].rpartition(".")[2], node.get("init_args") or {}
        for value in node.values():
            yield from classes(value)
    elif isinstance(node, list):
        for value in node:
            yield from classes(value)


def test_every_class_and_argument_of_the_packaged_configs_is_in_it(schema: dict[str, Any]) -> None:
    seen = 0
    for name in config_names():
        for cls, arguments in classes(yaml.safe_load((config_root() / f"{name}.yaml").read_text())):
            (known,) = [item for key, item in schema["definitions"].items() if key.partition(".")[2] == cls]
            assert arguments.keys() <= known["properties"]["init_args"]["properties"].keys(), (name, cls)
            seen += 1
    assert seen > 100


def test_it_names_all_sections_and_all_classes(schema: dict[str, Any]) -> None:
    sections = schema["definitions"]["config"]["properties"]
    assert {"model", "data", "trainer", "checkpoint", "plugins", "name"} <= sections.keys()
    assert "callbacks+" in sections["trainer"]["properties"]
    names = schema["definitions"]["Source"]["then"]["anyOf"][0]["enum"]
    assert names == list(registry.members_of(Source))


def test_it_holds_choices_defaults_and_help(schema: dict[str, Any]) -> None:
    arguments = schema["definitions"]["Upsampler.DeconvUpsampler"]["properties"]
    assert arguments["stride"]["type"] == "integer" and "default" in arguments["stride"]
    assert schema["definitions"]["Backbone.SailQwen"]["properties"]["size"]["enum"] == ["tiny", "0.5b", "3b"]
    assert "description" in schema["definitions"]["Callback.EMA"]["properties"]["decay"]


def test_what_the_model_fills_in_is_no_argument(schema: dict[str, Any]) -> None:
    assert "params" not in schema["definitions"]["Optimizer.AdamW"]["properties"]
    assert not {"optimizer", "total_steps"} & schema["definitions"]["Schedule.WarmupCosine"]["properties"].keys()


def test_every_packaged_config_is_valid(schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    for name in config_names():
        faults = validator.iter_errors(yaml.safe_load((config_root() / f"{name}.yaml").read_text()))
        assert [f"{name}: {fault.message}" for fault in faults] == []


@pytest.mark.parametrize(
    ("config", "valid"),
    [
        ("modl: {}", False),
        ("model: {mask_chanels: 3}", False),
        ("model: {max_side: wide}", False),
        ("model: {upsampler: DeconvUpsmpler}", False),
        ("model: {upsampler: MaskLoss}", False),
        ("model: {upsampler: {class_path: DeconvUpsampler, init_args: {chanels: 8}}}", False),
        ("model: {upsampler: {class_path: DeconvUpsampler, chanels: 8}}", False),
        ("model: {upsampler: {init_args: {strid: 8}}}", False),
        ("model: {backbone: {class_path: SailQwen, init_args: {size: 5b}}}", False),
        ("model: {optimizer: Adm}", False),
        ("data: {train: {class_path: Mixture, init_args: {sources: {a: {class_path: RefCOCO, nam: b}}}}}", False),
        ("trainer: {callbacks: [{class_path: EMA, init_args: {decayy: 0.9}}]}", False),
        ("trainer: {callbacks: [{class_path: GradNorm, init_args: {foo: 1}}]}", False),
        ("model: {upsampler: {class_path: IdentityUpsampler, init_args: {foo: 1}}}", False),
        ("trainer: {max_step: 3}", False),
        ("{configs: [quickstart], variants: {a: {modle: {}}}}", False),
        ("{configs: [quickstart], variants: {a: null}, stepps: 3}", False),
        ("model: {upsampler: sail_lightning.plugins.upsamplers.DeconvUpsampler}", True),
        ("model: {upsampler: {stride: 2}}", True),
        ("model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}}", True),
        ("model: {teachers: {a: TimmTeacher, b: null}}", True),
        ("model.upsampler: BilinearUpsampler", True),
        ("trainer: {callbacks+: EMA}", True),
        ("{configs: [quickstart], variants: {a: {model: {upsampler: IdentityUpsampler}}, b: null}, steps: 3}", True),
    ],
)
def test_misspelled_keys_and_names_are_marked(config: str, valid: bool, schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert jsonschema.Draft7Validator(schema).is_valid(yaml.safe_load(config)) is valid


def test_the_command_writes_it_and_says_how_an_editor_finds_it(sail: Command, workdir: Path, user_plugin: Path) -> None:
    done = sail("configs", "schema", "--out", "editor/schema.json", "--plugins", user_plugin)
    assert done.code == 0 and "# yaml-language-server: $schema=editor/schema.json" in done.out
    written = json.loads((workdir / "editor/schema.json").read_text())
    assert "MyCliUpsampler" in written["definitions"]["Upsampler"]["then"]["anyOf"][0]["enum"]


def test_a_place_that_cannot_be_written_is_one_sentence(sail: Command, workdir: Path) -> None:
    (workdir / "taken").write_text("")
    assert sail("configs", "schema", "--out", "taken/schema.json").is_one_sentence(1, "taken/schema.json")
