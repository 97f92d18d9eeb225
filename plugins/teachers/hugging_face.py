"""Loads models of the transformers library from local folders for teachers: strict, quiet, without the network."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from sail_lightning.compat.transformers_logging import quiet_transformers
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import IMAGE_MEAN, IMAGE_STD
from sail_lightning.settings.renames import renamed
from sail_lightning.weights.state_dict import truncate_list


def settings(who: str, folder: str, kinds: Collection[str]) -> dict[str, Any]:
    """Reads the config.json of a model's folder.

    Args:
        who: name of the plugin, for messages.
        folder: folder of the model.
        kinds: accepted values of `model_type`.

    Raises:
        SailError: no such folder, no or a damaged config.json, or a model of another kind.
    """
    path = Path(folder).expanduser() / "config.json"
    if not path.is_file():
        raise SailError(f"{who}: {folder} has no config.json; give the local folder of a Hugging Face model")
    config = _json(who, path)
    if (kind := config.get("model_type")) not in kinds:
        raise SailError(f"{who}: {folder} holds a model of type {kind}, not {' or '.join(sorted(kinds))}")
    return config


def load(who: str, folder: str, model: Any, foreign: str = "$^") -> Any:
    """Loads a model in float32 with the weights of a folder.

    Args:
        who: name of the plugin, for messages.
        folder: folder of the model, with config.json and safetensors files.
        model: class of the model.
        foreign: pattern of names of tensors that are ignored where the model has no weight for them.

    Raises:
        SailError: the weights are missing or damaged, or names or shapes do not agree.
    """
    where = Path(folder).expanduser()
    with quiet_transformers():
        try:
            network, found = model.from_pretrained(
                str(where),
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True,
            )
        except Exception as error:  # the library raises nothing narrower, for files that it did not write
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SailError(f"{who}: {folder} cannot be loaded ({reason})") from error
    unexpected = [name for name in found["unexpected_keys"] if not re.match(foreign, name)]
    mismatched = [entry[0] for entry in found["mismatched_keys"]]
    for fault, names in (("lacks", found["missing_keys"]), ("has foreign", unexpected), ("has misshapen", mismatched)):
        if names:
            raise SailError(f"{who}: {folder} {fault} weights ({truncate_list(sorted(names))}); copy it again")
    return network


def statistics(who: str, folder: str) -> tuple[Sequence[float], Sequence[float]]:
    """Returns mean and standard deviation of pixels in [0, 1]: the folder's preprocessor_config.json, or ImageNet's.

    Raises:
        SailError: the file is damaged.
    """
    config = _processor(who, folder)
    return config.get("image_mean", IMAGE_MEAN), config.get("image_std", IMAGE_STD)


def shorter_side(who: str, folder: str) -> int | None:
    """Returns the length in pixels that the folder's image processor resizes the shorter side to, if it has one.

    Raises:
        SailError: its file is damaged.
    """
    size = _processor(who, folder).get("size")
    side = size.get("shortest_edge") if isinstance(size, dict) else None
    return side if isinstance(side, int) else None


def _processor(who: str, folder: str) -> dict[str, Any]:
    """Reads the folder's preprocessor_config.json; empty if there is none."""
    path = Path(folder).expanduser() / "preprocessor_config.json"
    return _json(who, path) if path.is_file() else {}


def _json(who: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise SailError(f"{who}: {path} is damaged; copy it again")
    return content


__getattr__ = renamed(__name__, {"quiet": "sail_lightning.compat.transformers_logging:quiet_transformers"})
