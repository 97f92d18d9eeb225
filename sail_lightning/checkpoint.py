"""Model folders: config.yaml, model.safetensors, a tokenizer and a card. No pickle, no code."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
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
from sail_lightning.tokens import PACKAGED, Tokens

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
        SailError: the folder or its config is missing, or the config names an unknown argument.
        SailUsageError: it names a plugin that is not loaded.
    """
    from sail_lightning.module import PixelSAIL

    folder = locate(name)
    registry.discover()
    spec = config_spec(folder)
    known = inspect.signature(PixelSAIL).parameters
    if unknown := sorted(spec.keys() - known.keys()):
        raise SailError(f"{folder / CONFIG}: model has no argument {unknown[0]!r}; remove it")
    if missing := [key for key, p in known.items() if p.default is p.empty and not spec.get(key)]:
        raise SailError(f"{folder / CONFIG} does not say what {', '.join(missing)} shall be; copy it again")
    return {key: _instantiate(value, folder) for key, value in spec.items()}


def config_spec(folder: Path) -> dict[str, Any]:
    """The `model` section of a folder's config.yaml, the tokenizer's path made absolute."""
    path = folder / CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SailError(f"{folder} has no {CONFIG}: it is no model folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    spec = content.get("model") if isinstance(content, dict) else None
    if not isinstance(spec, dict):
        raise SailError(f"{path} is not a model's config: it has no section model")
    if not (folder / TOKENIZER).is_file():
        raise SailError(f"{folder} has no {TOKENIZER}; copy it again")
    return {**spec, "tokenizer": str(folder / TOKENIZER)}


def lasting_source(tokens: Tokens) -> str:
    """A name for a tokenizer whose file may be gone: that of a packaged one, if it is the same, else the whole path."""
    text = tokens.tokenizer.backend_tokenizer.to_str()
    for name in PACKAGED:
        if Tokens(name, len(tokens.prompts)).tokenizer.backend_tokenizer.to_str() == text:
            return name
    return str(Path(tokens.source).resolve())


def load_weights(model: PixelSAIL, name: str | Path) -> None:
    """Fills a built model from a folder; every name must agree.

    Raises:
        SailError: a broken file, or names or shapes that differ.
    """
    folder = locate(name)
    try:
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise SailError(f"{folder} has no {WEIGHTS}; copy it again") from None
    except SafetensorError as error:
        raise SailError(f"{folder / WEIGHTS} is damaged ({error}); copy it again") from None
    own = _state(model)
    faults = []
    if missing := sorted(own.keys() - state.keys()):
        faults.append(f"missing {_some(missing)}")
    if unexpected := sorted(state.keys() - own.keys()):
        faults.append(f"unexpected {_some(unexpected)}")
    if shapes := sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape):
        sizes = [f"{key} {_size(state[key])} instead of {_size(own[key])}" for key in shapes]
        faults.append(f"other shapes: {_some(sizes)}")
    if faults:
        raise SailError(f"{folder / WEIGHTS} does not fit this model: {'; '.join(faults)}")
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)


def save_folder(model: PixelSAIL, folder: Path, card: str, dtype: torch.dtype | None) -> Path:
    """Writes a model folder; see `PixelSAIL.save_pretrained`.

    All files are written under other names first, and config.yaml, without which it is no model folder, is renamed
    last: a run that is stopped leaves the folder as it was, or none.

    Raises:
        SailError: a file has the folder's name.
    """
    model.configure_model()
    if folder.exists() and not folder.is_dir():
        raise SailError(f"{folder} is a file; name a folder to save the model to")
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.detach().to(dtype if dtype and value.is_floating_point() else value.dtype).cpu().contiguous()
        for key, value in _state(model).items()
    }
    spec = {key: _short(value) for key, value in model.config.items()}
    spec["tokenizer"] = TOKENIZER
    text = yaml.safe_dump({"model": spec}, sort_keys=False)
    card = card or f"# A Pixel-SAIL model\n\n```yaml\n{text}```\n"
    writers: dict[str, Callable[[Path], Any]] = {
        WEIGHTS: lambda path: save_file(state, path, metadata={"format": "pt"}),
        TOKENIZER: lambda path: model.tokens.tokenizer.backend_tokenizer.save(str(path)),
        CARD: lambda path: path.write_text(card, encoding="utf-8"),
        CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
    }
    unfinished = {name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        for name, write in writers.items():
            write(unfinished[name])
        for name, path in unfinished.items():
            path.replace(folder / name)
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)
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
        mend = "add --plugins FILE, or in Python registry.load(FILE)"
        raise SailUsageError(f"{folder} needs the plugin {name}, which is not loaded; {mend}")
    arguments = {key: _instantiate(item, folder) for key, item in (value.get("init_args") or {}).items()}
    try:
        plugin: Plugin = found[1](**arguments)
    except TypeError as error:
        raise SailError(f"{folder / CONFIG}: {name}: {error}") from None
    except SailError as error:
        raise type(error)(f"{folder / CONFIG}: {error}") from None
    return plugin


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
