"""Names to plugins: one registry per socket, and the discovery of plugins that others wrote.

A plugin's registered name is its class name, which is also its short name in YAML. This is the only module
that knows mmengine, except for `conversion.mmengine_config`, which reads its configs.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from mmengine.registry import Registry

from sail_lightning.errors import SailUsageError

T = TypeVar("T", bound=type)

SOCKETS: dict[type, Registry] = {}
"""Abstract class of each socket, to the registry of its plugins."""
SOURCES: dict[str, str] = {}
"""Where plugins were loaded from beyond the package (file, module or entry point), to "ok" or why that failed."""


class PluginError(SailUsageError):
    """A plugin cannot be found, loaded or registered; the message names it and the mend."""


def socket(base: T) -> T:
    """Class decorator: makes an abstract class a socket."""
    SOCKETS[base] = Registry(base.__name__.lower(), scope="sail_lightning")
    return base


def register(cls: T) -> T:
    """Class decorator: adds a plugin to the socket whose abstract class it derives from.

    Raises:
        PluginError: the class fits no socket or several, is still abstract, or its name is taken.
    """
    bases = [base for base in SOCKETS if issubclass(cls, base)]
    if len(bases) != 1:
        names = ", ".join(base.__name__ for base in SOCKETS)
        raise PluginError(f"{cls.__name__} must derive from exactly one of {names}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
        raise PluginError(f"{cls.__name__} does not define {missing}")
    registry = SOCKETS[bases[0]]
    known = registry.module_dict.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PluginError(f"{cls.__name__} is taken by {known.__module__}; rename the class in {cls.__module__}")
    registry.register_module(module=cls, force=True)
    return cls


def plugins_of(base: type) -> dict[str, type]:
    """Short name to class of every plugin of a socket, in alphabetical order."""
    return dict(sorted(SOCKETS[base].module_dict.items()))


def find(name: str) -> tuple[type, type] | None:
    """The socket and class of a plugin by its short name, or None."""
    for base, registry in SOCKETS.items():
        if name in registry.module_dict:
            return base, registry.module_dict[name]
    return None


def load(source: str) -> None:
    """Imports plugins from a `.py` file or a dotted module name.

    A file is imported by its bare name, with its folder at the end of `sys.path`, so that spawned workers and
    `load_from_checkpoint` find the same classes.

    Raises:
        PluginError: no such file or module, the name is taken by another module, or its code fails.
    """
    key = source
    name = source
    if source.endswith(".py"):
        path = Path(source).expanduser().resolve()
        if not path.is_file():
            raise PluginError(f"no plugin file {source}")
        key, name = str(path), path.stem
        other = sys.modules.get(name)
        if other is not None and Path(getattr(other, "__file__", None) or "?").resolve() != path:
            raise PluginError(f"a module named {name!r} is already imported; rename {path.name}")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
    try:
        importlib.import_module(name)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"plugin {source} cannot be imported: {type(error).__name__}: {error}") from error
    SOURCES[key] = "ok"


def discover(sources: Iterable[str] = ()) -> None:
    """Loads the package's own plugins, installed ones (entry points), `$SAIL_PLUGINS`, then `sources`.

    A broken installed package is recorded in `SOURCES`, not raised: it must not break the tool.
    """
    importlib.import_module("sail_lightning.plugins")
    for entry in entry_points(group="sail_lightning.plugins"):
        key = f"{entry.name} ({entry.dist.name if entry.dist else '?'})"
        try:
            entry.load()
            SOURCES[key] = "ok"
        except Exception as error:
            SOURCES[key] = f"{type(error).__name__}: {error}"
    listed = [source for source in os.environ.get("SAIL_PLUGINS", "").split(os.pathsep) if source]
    for source in [*listed, *sources]:
        load(source)
