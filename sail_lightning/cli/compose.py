"""Merges several configs and the options of a command line into one config before the parser sees them.

jsonargparse could merge them itself, but it keeps arguments of the same name when a later file or option names
another class: `DeconvUpsampler(channels: 64)` replaced by `PixelShuffleUpsampler` would silently keep the 64. Here a
class that replaces another starts from its own defaults. The order is fixed: a checkpoint's settings, then files from
left to right, then options.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sail_lightning import registry
from sail_lightning.cli.configs import find_config, read_config
from sail_lightning.errors import SailUsageError
from sail_lightning.settings import renames

Config = dict[str, Any]
VERBATIM = {"data.images": list, "data.prompts": list, "data.text": str}
"""Options whose values are never read as YAML, because they are file names or questions, with their types."""
WORDS = ("null", "true", "false", "yes", "no", "on", "off")
"""Words that YAML does not read as text."""


@dataclass
class Option:
    """An option `--name value`; it has several values where names of files or plugins follow, and none as a flag."""

    name: str
    values: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """Returns the option as the words that the parser expects."""
        if not self.values:
            return [f"--{self.name}"]
        return [f"--{self.name}={self.values[0]}"]


def split_options(args: Sequence[str]) -> list[Option]:
    """Reads words such as `--a=1 --b 2 -c x --list y z` as options; `-c` is called `config`.

    Raises:
        SailUsageError: A word belongs to no option, or `-c` has no value.
    """
    options: list[Option] = []
    for arg in args:
        if match := re.fullmatch(r"--([A-Za-z_][\w.+-]*)(?:=(.*))?", arg, re.DOTALL):
            options.append(Option(match[1], [] if match[2] is None else [match[2]]))
        elif match := re.fullmatch(r"-c=?(.*)", arg, re.DOTALL):
            options.append(Option("config", [match[1]] if match[1] else []))
        elif options and (not options[-1].values or options[-1].name in (*VERBATIM, "plugins")):
            options[-1].values.append(arg)
        else:
            raise SailUsageError(f"unexpected {arg!r}; a config is given with -c, a text in quotation marks")
    for option in options:
        if option.name == "config" and len(option.values) != 1:
            raise SailUsageError(f"-c needs one config, not {' '.join(option.values) or 'none'}; repeat -c for several")
    return options


def read_layers(options: Iterable[Option]) -> list[Config]:
    """Reads the configs that options name, in order."""
    return [read_config(find_config(option.values[0])) for option in options if option.name == "config"]


def plugin_sources(options: Iterable[Option], layers: Iterable[Config]) -> list[str]:
    """Returns all plugin files and modules of the `plugins:` keys and of `--plugins`, each once."""
    from sail_lightning.cli.words import comma_list

    found: list[str] = []
    for layer in layers:
        listed = layer.get("plugins") or []
        found += [listed] if isinstance(listed, str) else [str(source) for source in listed]
    for option in options:
        if option.name == "plugins":
            found += comma_list(option.values)
    return list(dict.fromkeys(found))


def merge_layers(layers: Iterable[Config]) -> Config:
    """Merges configs, later ones over earlier ones. Sections (`model`, `trainer`, ...) merge key by key, and old keys
    are renamed."""
    merged: Config = {}
    for layer in layers:
        for section, new in renames.current_keys(layer, registry.find, merged).items():
            old = merged.get(section)
            merged[section] = _merge_keys(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return merged


def apply_options(config: Config, options: Iterable[Option]) -> tuple[Config, list[Option]]:
    """Applies those options to a config that choose classes or give file names and questions.

    Returns:
        The config, and the options that are left for the parser.
    """
    config = _merge_keys({}, config)
    left: list[Option] = []
    for given in options:
        option = _current(given, config, left)
        name = option.name
        if name in VERBATIM and option.values:
            _put(config, name, _verbatim(option))
            continue
        if swapped := class_of(_value(option)):
            old = lookup(config, name)
            if old is not None and not same_class(class_of(old), swapped):
                _put(config, name, _value(option))
            # An earlier choice of another class is dropped with its arguments; `callbacks+` adds to the existing ones.
            earlier = next((o for o in reversed(left) if o.name == name and not name.endswith("+")), None)
            if earlier is not None and not same_class(class_of(_value(earlier)), swapped):
                left = [o for o in left if o.name != name and not o.name.startswith(f"{name}.")]
        left.append(option)
    return config, left


def _current(option: Option, config: Config, earlier: Sequence[Option]) -> Option:
    """Returns an option with the current argument names, in its own name and in the arguments that its value gives."""
    section, *keys = option.name.split(".")
    path = section
    owner: type | str | None = renames.SECTIONS.get(section) if keys else None
    for key in keys:
        (new,) = renames.current_arguments(owner, {key: None})
        path = f"{path}.{new}"
        if key not in ("init_args", "dict_kwargs"):
            chosen = next((_value(one) for one in reversed(earlier) if one.name == path), None)
            owner = renames.class_named(chosen or lookup(config, path), registry.find)
    value = _value(option)
    if isinstance(value, dict):
        owner = renames.SECTIONS.get(path, owner)
        current = renames.current_node(value, owner, registry.find, lookup(config, path))
        return Option(path, [json.dumps(current)]) if current != value else Option(path, option.values)
    if isinstance(value, str) and keys and path not in VERBATIM:
        return Option(path, [renames.current_class(value)])
    return Option(path, option.values)


def with_options(config: Config, options: Iterable[Option]) -> Config:
    """Returns the config with all options applied, so that it can be checked as a whole; values are read as YAML."""
    whole = _merge_keys({}, config)
    for option in options:
        if option.name in VERBATIM or not option.values or option.name.endswith(".help"):
            continue
        value = _value(option)
        if isinstance(value, str) and class_of(value) is None:
            with suppress(yaml.YAMLError):
                value = yaml.safe_load(value)
        _put(whole, option.name, value)
    return whole


def class_of(value: Any) -> str | None:
    """Returns the class that a config value names as `Name`, `a.b.Name` or `{class_path: ...}`, None if it names
    none."""
    if isinstance(value, dict):
        path = value.get("class_path")
        return path if isinstance(path, str) else None
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
        return None if value.lower() in WORDS else value
    return None


def same_class(one: str | None, other: str | None) -> bool:
    """Whether two names, short or full, are names of the same class."""
    if one is None or other is None:
        return False
    if "." in one and "." in other:
        return one == other
    return one.rpartition(".")[2] == other.rpartition(".")[2]


def lookup(config: Config, name: str) -> Any:
    """Returns the value at a dotted name, in which `init_args` may be left out; None if there is none."""
    value: Any = config
    for key in name.split("."):
        if isinstance(value, dict) and key not in value:
            value = value.get("init_args")
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _put(config: Config, name: str, value: Any) -> None:
    """Sets the value at a dotted name, which is resolved as in `lookup`."""
    *parents, last = name.split(".")
    node = config
    for key in parents:
        node = _arguments_of(node, key)
        inner = node.get(key)
        if isinstance(inner, str):
            inner = {"class_path": inner}
        node[key] = dict(inner) if isinstance(inner, dict) else {}
        node = node[key]
    _arguments_of(node, last)[last] = value


def _arguments_of(node: Config, key: str) -> Config:
    """Returns the mapping in which a key is set: `init_args` if the node describes a class, else the node itself."""
    if "class_path" not in node or key in ("class_path", "init_args", "dict_kwargs"):
        return node
    node["init_args"] = dict(node.get("init_args") or {})
    return node["init_args"]


def _value(option: Option) -> Any:
    """Returns the value of an option: a word, an inline mapping, or the content of a YAML file."""
    if len(option.values) != 1:
        return None
    text = option.values[0]
    if text.endswith((".yaml", ".yml")) and Path(text).is_file():
        return read_config(Path(text))
    if text.lstrip().startswith("{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return None
    return text


def _verbatim(option: Option) -> Any:
    if VERBATIM[option.name] is str:
        return " ".join(option.values)
    if len(option.values) == 1 and option.values[0].startswith("["):
        with suppress(yaml.YAMLError):
            return yaml.safe_load(option.values[0])
    return list(option.values)


def _merge_keys(old: Config, new: Config) -> Config:
    merged = dict(old)
    for key, value in new.items():
        base = key.removesuffix("+")  # `callbacks+` adds to an earlier list, `repeats+` to an earlier mapping
        if base != key and isinstance(merged.get(base), list):
            merged[base] = merged[base] + (value if isinstance(value, list) else [value])
        elif base != key and isinstance(merged.get(base) or {}, dict) and isinstance(value, dict):
            merged[base] = _merge_keys(merged.get(base) or {}, value)
        elif isinstance(value, dict) and not isinstance(merged.get(key), dict | str):
            merged[key] = _merge_keys({}, value)  # a copy
        else:
            merged[key] = merge_value(merged.get(key), value)
    return merged


def merge_value(old: Any, new: Any) -> Any:
    """Merges a later value over an earlier one.

    Arguments are merged if both are of the same class, or the later one names none; another class drops the earlier
    arguments. A mapping of plugins, such as `teachers`, is merged by name. Any other value is replaced.
    """
    if isinstance(new, str):
        return old if isinstance(old, dict) and same_class(class_of(old), class_of(new)) else new
    if not isinstance(new, dict) or old is None:
        return new
    earlier = {"class_path": old} if isinstance(old, str) else old
    if not isinstance(earlier, dict):
        return new
    if "class_path" in new:
        if not same_class(class_of(earlier), class_of(new)):
            return new
        return {"class_path": new["class_path"], "init_args": _merge_keys(_arguments(earlier), _arguments(new))}
    if "class_path" in earlier or "init_args" in earlier:
        return {**earlier, "init_args": _merge_keys(_arguments(earlier), _arguments(new))}
    if any(value is None or _names_plugin(value) for value in earlier.values()):
        return _merge_keys(earlier, new)
    return new


def _arguments(node: Config) -> Config:
    """Returns the arguments of a class node, which is written with or without `init_args`."""
    bare = {key: value for key, value in node.items() if key not in ("class_path", "init_args")}
    return {**(node.get("init_args") or {}), **bare}


def _names_plugin(value: Any) -> bool:
    name = class_of(value)
    return name is not None and (isinstance(value, dict) or registry.find(name.rpartition(".")[2]) is not None)
