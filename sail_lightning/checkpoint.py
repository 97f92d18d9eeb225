"""Model folders: config.yaml, model.safetensors, a tokenizer and a card. No pickle, no code."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Plugin

if TYPE_CHECKING:
    from sail_lightning.module import PixelSAIL

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.yaml", "model.safetensors", "tokenizer.json", "README.md"


def locate(name: str | Path) -> Path:
    """A model folder: a path, or the name of a model that ships with the package.

    Raises:
        SailError: neither exists.
    """
    path = Path(name)
    if path.is_dir():
        return path
    zoo = Path(str(files("sail_lightning"))) / "zoo"
    packaged = sorted(folder.name for folder in zoo.iterdir() if (folder / CONFIG).is_file()) if zoo.is_dir() else []
    if str(name) in packaged:
        return zoo / str(name)
    raise SailError(f"no model folder {name}; packaged models: {', '.join(packaged) or 'none'}")


def is_folder(name: str | Path) -> bool:
    """Whether `locate` would find a model folder."""
    try:
        return (locate(name) / CONFIG).is_file()
    except SailError:
        return False


def read_config(name: str | Path) -> dict[str, Any]:
    """Arguments of `PixelSAIL` from a model folder, plugins made. Only registered plugins are made.

    Raises:
        SailError: the folder or its config is missing or names an unknown plugin or argument.
    """
    folder = locate(name)
    registry.discover()
    return {key: _instantiate(value, folder) for key, value in config_spec(folder).items()}


def config_spec(folder: Path) -> dict[str, Any]:
    """The `model` section of a folder's config.yaml, the tokenizer's path made absolute."""
    path = folder / CONFIG
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    except FileNotFoundError:
        raise SailError(f"{folder} has no {CONFIG}: it is no model folder") from None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not a model's config: {error}") from None
    spec["tokenizer"] = str(folder / TOKENIZER)
    return spec


def load_weights(model: PixelSAIL, name: str | Path) -> None:
    """Fills a built model from a folder; every name must agree.

    Raises:
        SailError: a broken file, or names or shapes that differ.
    """
    folder = locate(name)
    try:
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise SailError(f"{folder} has no {WEIGHTS}") from None
    except SafetensorError as error:
        raise SailError(f"{folder / WEIGHTS} is damaged ({error}); copy it again") from None
    own = _state(model)
    faults = []
    if missing := sorted(own.keys() - state.keys()):
        faults.append(f"missing {_some(missing)}")
    if unexpected := sorted(state.keys() - own.keys()):
        faults.append(f"unexpected {_some(unexpected)}")
    if shapes := sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape):
        faults.append(f"other shapes for {_some(shapes)}")
    if faults:
        raise SailError(f"{folder / WEIGHTS} does not fit this model: {'; '.join(faults)}")
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)


def save_folder(model: PixelSAIL, folder: Path, card: str, dtype: torch.dtype | None) -> Path:
    """Writes a model folder; see `PixelSAIL.save_pretrained`."""
    model.configure_model()
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.detach().to(dtype if dtype and value.is_floating_point() else value.dtype).cpu().contiguous()
        for key, value in _state(model).items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    spec = {key: _short(value) for key, value in model.config.items()}
    spec["tokenizer"] = TOKENIZER
    text = yaml.safe_dump({"model": spec}, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    model.tokens.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    (folder / CARD).write_text(card or f"# A Pixel-SAIL model\n\n```yaml\n{text}```\n", encoding="utf-8")
    return folder


def _state(model: PixelSAIL) -> dict[str, torch.Tensor]:
    """The network's tensors by name; of tensors that share memory, the first name only."""
    seen: set[int] = set()
    state = {}
    for key, value in model.model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            state[key] = value
    return state


def _short(value: Any) -> Any:
    """Plugins by short name, so that a folder outlives a move of modules."""
    if isinstance(value, dict):
        short = {key: _short(item) for key, item in value.items()}
        if isinstance(short.get("class_path"), str):
            short["class_path"] = short["class_path"].rsplit(".", 1)[-1]
        return short
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value


def _instantiate(value: Any, folder: Path) -> Any:
    if not (isinstance(value, dict) and "class_path" in value):
        return value
    name = str(value["class_path"]).rsplit(".", 1)[-1]
    found = registry.find(name)
    if found is None:
        raise SailUsageError(f"{folder} needs the plugin {name}, which is not loaded; load its file with --plugins")
    arguments = {key: _instantiate(item, folder) for key, item in (value.get("init_args") or {}).items()}
    try:
        plugin: Plugin = found[1](**arguments)
    except TypeError as error:
        raise SailError(f"{folder / CONFIG}: {name}: {error}") from None
    return plugin


def _some(names: list[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
