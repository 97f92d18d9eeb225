"""Model folders: config.yaml, weights in safetensors, a tokenizer and a model card, without pickle and code."""

from __future__ import annotations

import inspect
import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Plugin
from sail_lightning.model.bundle import ModelBundle
from sail_lightning.pretrained import embedding_remap
from sail_lightning.pretrained.card import About, model_card
from sail_lightning.pretrained.lora import LoRA, merged_state
from sail_lightning.sequence.tokenizer import PACKAGED, SailTokenizer, open_tokenizer
from sail_lightning.settings import renames
from sail_lightning.settings.renames import renamed
from sail_lightning.weights import safetensors_io
from sail_lightning.weights.state_dict import state_dict_diff

CONFIG, TOKENIZER, CARD = "config.yaml", "tokenizer.json", "README.md"
MODEL, WEIGHTS = "model", "weights"
"""Sections of config.yaml: the arguments of `ModelBundle.of`, which `PixelSAIL` has too, and the weight files with
their sha256."""


def locate(name: str | Path) -> Path:
    """Returns the path of a model folder, which is given as a path or as the name of a packaged model.

    Raises:
        SailError: Neither exists.
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
    """Reads the arguments of `ModelBundle.of`, and so of `PixelSAIL`, from a model folder; only registered plugins are
    made.

    Raises:
        SailError: The folder or its config is missing, or the config names an unknown argument.
        SailUsageError: The config names a plugin that is not loaded.
    """
    folder = locate(name)
    registry.discover()
    spec: dict[str, Any] = renames.current_keys({MODEL: config_spec(folder)}, registry.find)[MODEL]
    known = inspect.signature(ModelBundle.of).parameters
    if unknown := sorted(spec.keys() - known.keys()):
        raise SailError(f"{folder / CONFIG}: model has no argument {unknown[0]!r}; remove it")
    if missing := [key for key, p in known.items() if p.default is p.empty and not spec.get(key)]:
        raise SailError(f"{folder / CONFIG} does not set {', '.join(missing)}; copy it again")
    return {key: _instantiate(value, folder) for key, value in spec.items()}


def config_spec(folder: Path) -> dict[str, Any]:
    """Returns the `model` section of a folder's config.yaml, with an absolute path of the tokenizer."""
    spec = _sections(folder).get(MODEL)
    if not isinstance(spec, dict):
        raise SailError(f"{folder / CONFIG} is not a model's config: it has no section {MODEL}")
    if not (folder / TOKENIZER).is_file():
        raise SailError(f"{folder} has no {TOKENIZER}; copy it again")
    return {**spec, "tokenizer": str(folder / TOKENIZER)}


def _sections(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SailError(f"{folder} has no {CONFIG}: it is no model folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a folder, checked by the sha256 in config.yaml, which some older folders lack.

    Raises:
        SailError: A file is missing, damaged or changed.
    """
    sections = _sections(folder)
    if WEIGHTS not in sections:
        return safetensors_io.find(folder)
    sums = sections[WEIGHTS]
    whole = isinstance(sums, dict) and all(
        safetensors_io.SHARD.fullmatch(str(name)) and re.fullmatch("[0-9a-f]{64}", str(sha))
        for name, sha in sums.items()
    )
    if not whole or not sums:
        raise SailError(f"{folder / CONFIG}: section {WEIGHTS} must give each weight file's sha256; copy it again")
    return safetensors_io.check(folder, sums)


def lasting_source(tokens: SailTokenizer) -> str:
    """Returns a lasting name of a tokenizer: that of an equal packaged one, else the absolute path of its file."""
    text = tokens.tokenizer.backend_tokenizer.to_str()
    for name in PACKAGED:
        if SailTokenizer(name, len(tokens.prompts)).tokenizer.backend_tokenizer.to_str() == text:
            return name
    return str(Path(tokens.source).resolve())


def open_bundle(name: str | Path) -> ModelBundle:
    """Opens a model folder, or a packaged model, in evaluation mode, as `PixelSAIL.from_pretrained` does.

    Raises:
        SailError: The folder does not exist, a file is missing or damaged, or names or shapes of weights differ.
        SailUsageError: A plugin is not loaded.
    """
    bundle = ModelBundle.of(**read_config(name))
    bundle.build()
    load_weights(bundle, name)
    bundle.model.eval()
    return bundle


@torch.no_grad()
def load_weights(bundle: ModelBundle, name: str | Path) -> None:
    """Loads the weights of a folder into a built model, tensor by tensor; all names must agree.

    Where the model's tokenizer orders tokens in another way than the folder's, rows are matched by the tokens' names.

    Raises:
        SailError: A file is broken, names or shapes differ, or the folder has no row for a token.
    """
    folder = locate(name)
    files = _weight_files(folder)
    model, tokens = bundle.model, bundle.tokens
    own = _first_names(model.state_dict(keep_vars=True))
    rows = embedding_remap.match_vocab(tokens, open_tokenizer(str(folder / TOKENIZER)).get_vocab(), folder)
    moved: set[int] = set()
    if rows is not None:
        moved = {id(t) for t in embedding_remap.vocab_parameters(model.backbone, model.dims.hidden_size, len(tokens))}
    with safetensors_io.opened(files) as stored:
        shapes = {key: torch.empty(item.shape, device="meta") for key, item in stored.items()}
        wanted = {
            key: torch.empty(rows.rows, *value.shape[1:], device="meta") if rows and id(value) in moved else value
            for key, value in own.items()
        }
        if faults := state_dict_diff(wanted, shapes):
            where = files[0] if len(files) == 1 else folder
            raise SailError(f"{where} does not fit this model: {'; '.join(faults)}")
        for key, item in stored.items():
            value = item.read()
            own[key].copy_(rows(value) if rows and id(own[key]) in moved else value)


def save_folder(
    bundle: ModelBundle,
    folder: Path,
    adapter: LoRA | None = None,
    about: About = About(),  # noqa: B008 - it is frozen
    card: str = "",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Writes a model folder (`Pretrained.save_pretrained`) and returns its path.

    All files are written elsewhere first, and config.yaml, without which it is no model folder, is moved there last: a
    run that is stopped leaves the folder as it was, or none.

    Args:
        bundle: The built model with its tokenizer.
        folder: Made if missing; a model that is there is replaced.
        adapter: The adapter on the model, which is stored merged.
        about: Facts for the card beyond the model itself.
        card: Text of the card; made from the model and `about` if empty.
        dtype: Type of the stored weights; None keeps theirs.
        max_shard_size: Largest weight file, such as `500MB`, or in bytes.

    Raises:
        SailError: A file has the folder's name.
        SailUsageError: The size cannot be read, or no card can be made of the arguments.
    """
    if card and (about.metrics or about.data or about.licence):
        raise SailUsageError("give either a card, or metrics, data and licence to make one from")
    state = _first_names(merged_state(bundle.model, adapter))
    split = safetensors_io.split(state, dtype, max_shard_size)
    spec = {key: _short(value) for key, value in bundle.config().items()} | {"tokenizer": TOKENIZER}
    text = yaml.safe_dump({MODEL: spec}, sort_keys=False)
    card = card or model_card(bundle, text, state, dtype, about)
    if folder.exists() and not folder.is_dir():
        raise SailError(f"{folder} is a file; name a folder to save the model to")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as scratch:
        unfinished = Path(scratch)
        for name, keys in split.filename_to_tensors.items():
            safetensors_io.write(state, keys, unfinished / name, dtype)
        sums = {name: safetensors_io.digest(unfinished / name) for name in split.filename_to_tensors}
        if split.is_sharded:
            safetensors_io.write_index(split, unfinished / safetensors_io.INDEX)
        bundle.tokens.tokenizer.backend_tokenizer.save(str(unfinished / TOKENIZER))
        (unfinished / CARD).write_text(card, encoding="utf-8")
        (unfinished / CONFIG).write_text(text + yaml.safe_dump({WEIGHTS: sums}, sort_keys=False), encoding="utf-8")
        for name in sums:  # the library writes them for the owner alone
            shutil.copymode(unfinished / CONFIG, unfinished / name)
        (folder / CONFIG).unlink(missing_ok=True)  # no model folder until the new one is there again
        for stale in safetensors_io.weight_files(folder):
            stale.unlink()
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(folder / path.name)
    return folder


def _first_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns tensors by name; of names that share a tensor, the first only."""
    seen: set[int] = set()
    first = {}
    for key, value in state.items():
        if id(value) not in seen:
            seen.add(id(value))
            first[key] = value
    return first


def _short(value: Any) -> Any:
    """Returns a config value with plugins by short name, so that moved modules do not break a folder."""
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
    found = registry.find(name, registry.SOCKETS)
    if found is None:
        fix = "add --plugins FILE, or in Python registry.load(FILE)"
        raise SailUsageError(f"{folder} needs the plugin {name}, which is not loaded; {fix}")
    arguments = {key: _instantiate(item, folder) for key, item in (value.get("init_args") or {}).items()}
    try:
        plugin: Plugin = found[1](**arguments)
    except TypeError as error:
        raise SailError(f"{folder / CONFIG}: {name}: {error}") from None
    except SailError as error:
        raise type(error)(f"{folder / CONFIG}: {error}") from None
    return plugin


__getattr__ = renamed(__name__, {"open_network": "open_bundle"})
