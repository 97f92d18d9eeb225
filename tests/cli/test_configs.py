"""Every shipped config is complete, and making what it describes costs nothing."""

from __future__ import annotations

import re
import time

import pytest
import yaml
from cli_harness import Command

from sail_lightning.cli.configs import config_names, config_root

MODELS = [name for name in config_names() if name.startswith("model/")]
ABLATIONS = [name for name in config_names() if name.startswith("ablation/")]


@pytest.mark.parametrize("name", config_names())
def test_first_line_is_the_command_that_runs_it(name: str) -> None:
    first, *rest = (config_root() / f"{name}.yaml").read_text().splitlines()
    assert re.match(r"# sail-lightning \w+ -c ", first) and re.search(rf"-c {re.escape(name)}(\s|$)", first)
    assert any(line.startswith("# ") for line in rest[:3])


@pytest.mark.parametrize("name", config_names())
def test_its_command_parses(name: str, sail: Command) -> None:
    command = (config_root() / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# sail-lightning ").split()
    shown = sail(*command, "--print_config")
    assert shown.code == 0, shown.err
    assert {"model", "data", "trainer"} <= yaml.safe_load(shown.out).keys()


@pytest.mark.parametrize("name", ["LanguageLoss", "ChunkedLanguageLoss", "LigerLanguageLoss"])
def test_a_language_loss_is_named_by_its_class(name: str, sail: Command) -> None:
    shown = sail("fit", "-c", "quickstart", f"--model.language_loss={name}", "--print_config")
    assert shown.code == 0, shown.err
    assert yaml.safe_load(shown.out)["model"]["language_loss"]["class_path"] == f"sail_lightning.model.losses.{name}"


@pytest.mark.parametrize("name", [*MODELS, "quickstart"])
def test_model_of_a_config_is_made_in_milliseconds(name: str) -> None:
    from jsonargparse import ArgumentParser

    from sail_lightning.module import PixelSAIL

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PixelSAIL, "model")
    spec = yaml.safe_load((config_root() / f"{name}.yaml").read_text())["model"]
    parsed = parser.parse_object({"model": spec})
    parser.instantiate(parsed)  # the first one imports what it needs
    start = time.perf_counter()
    model = parser.instantiate(parsed).model
    assert time.perf_counter() - start < 1.0
    assert sum(parameter.numel() for parameter in model.parameters()) == 0


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_one_plugin_of_quickstart(name: str, sail: Command) -> None:
    base, changed = (
        yaml.safe_load(sail("fit", "-c", "quickstart", *more, "--print_config").out)["model"]
        for more in ([], ["-c", name])
    )
    assert len([key for key in base if base[key] != changed[key]]) == 1
