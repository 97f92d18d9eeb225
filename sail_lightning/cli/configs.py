"""Packaged configs by name, from anywhere: `-c quickstart`."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sail_lightning.errors import SailError, SailUsageError


def config_root() -> Path:
    """The folder of the packaged configs."""
    return Path(str(files("sail_lightning.configs")))


def config_names() -> list[str]:
    """Names of all packaged configs, such as `model/sail_tiny`, in alphabetical order."""
    root = config_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The file that `-c NAME` means: an existing path, or else a packaged config.

    Raises:
        SailUsageError: Neither exists; the message names the nearest.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = config_names()
    if (packaged := name.removesuffix(".yaml")) in known:
        return config_root() / f"{packaged}.yaml"
    near = difflib.get_close_matches(name.removesuffix(".yaml"), known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "sail-lightning configs list shows the packaged ones"
    raise SailUsageError(f"no config {name}, neither a file nor a packaged name; {hint}")


def read_config(path: Path) -> dict[str, Any]:
    """A config file as a mapping; dotted keys (`model.upsampler: X`) are unfolded.

    A `model.tokenizer` that is the name of a file beside the config, as in a model folder, becomes its path.

    Raises:
        SailError: The file is not a YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SailError(f"{path} must hold keys such as model, data and trainer, not a {type(content).__name__}")
    unfolded: dict[str, Any] = {}
    for key, value in content.items():
        *parents, last = str(key).split(".")
        node = unfolded
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise SailError(f"{path}: {key} is given, but {parent} is not a mapping")
        if isinstance(value, dict) and isinstance(node.get(last), dict):
            node[last].update(value)
        else:
            node[last] = value
    if isinstance(unfolded.get("weights"), dict):  # of a model folder: sha256 of its files
        del unfolded["weights"]
    model = unfolded.get("model")
    if isinstance(model, dict) and isinstance(model.get("tokenizer"), str):
        beside = path.parent / model["tokenizer"]
        if beside.is_file():
            unfolded["model"] = {**model, "tokenizer": str(beside)}
    return unfolded
