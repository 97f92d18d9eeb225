"""Swap points: base classes whose subclasses can replace one another, and the names of those subclasses.

A class's registered name is its class name, which is also its short name in YAML, on the command line and in mmengine
configs. mmengine's registries hold the names; this is the only module that uses them. Neither torch nor Lightning is
imported here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, overload

from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, Registry

from sail_lightning.errors import SailUsageError, choice
from sail_lightning.settings.renames import current_arguments, current_class, renamed
from sail_lightning.settings.signatures import EMPTY, arguments_of, is_open_ended, parts_of

T = TypeVar("T", bound=type)

SCOPE = "sail_lightning"
"""The scope of this package's names in mmengine configs: `dict(type="sail_lightning.DeconvUpsampler")`."""
SHIPPED = (
    *("sail_lightning.plugins", "sail_lightning.data.sources", "sail_lightning.model.losses"),
    *("sail_lightning.training.optim", "sail_lightning.pretrained.lora"),
)
"""Modules of the package that register classes."""
SHIPPED_WITH_LIGHTNING = (
    "sail_lightning.callbacks",
    "sail_lightning.evaluate.torch_metric",
    *(f"sail_lightning.evaluate.metrics.{name}" for name in ("average_precision", "captions", "choices", "cider")),
    *(f"sail_lightning.evaluate.metrics.{name}" for name in ("grounded", "meteor", "segmentation", "yes_no")),
)
"""Modules of the package that register classes and import Lightning or torchmetrics, which takes seconds."""
SOURCES: dict[str, str] = {}
"""Files, modules and entry points outside the package from which plugins were loaded, with "ok" or the error."""


class PluginError(SailUsageError):
    """A plugin cannot be found, loaded, registered or built; the message names it and the fix."""


class Names(Registry):
    """A registry of mmengine that finds registered classes only, where mmengine's own would import any path."""

    bases: tuple[type, ...] | None = None
    """The swap points of which it finds names; None means all."""

    def get(self, key: str) -> type:
        """Returns the class of a name, which is given with or without the scope `sail_lightning.`.

        Raises:
            PluginError: No such class is registered.
        """
        load_shipped()
        return _named(key, self.bases)

    def __contains__(self, key: str) -> bool:
        load_shipped()
        return find(key.removeprefix(f"{SCOPE}."), self.bases) is not None


@dataclass(frozen=True, eq=False)
class SwapPoint:
    """A base class whose registered subclasses can replace one another."""

    base: type
    name: str
    """The name in lists and messages: `Upsampler`, `Optimizer`."""
    where: str
    """The config key that chooses a subclass: `model.upsampler`."""
    library: str = ""
    """The library module with subclasses of its own, which can be used too; empty if there is none."""
    library_names: tuple[str, ...] = ()
    """The names of the library's subclasses that can be used; all if empty."""
    registry: Names = field(init=False)

    def __post_init__(self) -> None:
        registry = Names(self.name.lower(), build_func=_build_for_mmengine, scope=SCOPE)
        registry.bases = (self.base,)
        object.__setattr__(self, "registry", registry)

    @cached_property
    def library_members(self) -> dict[str, type]:
        """The library's own classes by name, sorted by name."""
        if not self.library:
            return {}
        module = importlib.import_module(self.library)
        names = self.library_names or getattr(module, "__all__", None) or dir(module)
        classes = {name: getattr(module, name) for name in sorted(names) if not name.startswith("_")}
        return {
            name: cls
            for name, cls in classes.items()
            if inspect.isclass(cls) and issubclass(cls, self.base) and cls is not self.base
        }

    @property
    def members(self) -> dict[str, type]:
        """Returns all classes that can be chosen, by name: registered ones, then the library's, each sorted by name."""
        own = dict(sorted(self.registry.module_dict.items()))
        return own | {name: cls for name, cls in self.library_members.items() if name not in own}


SWAP_POINTS: dict[type, SwapPoint] = {}
"""All swap points that are declared so far, by base class; `load_shipped` declares all of them."""
SOCKETS: dict[type, Registry] = {}
"""The registry of plugins of each swap point that is a socket of the model, by base class."""
_LIBRARIES = (
    ("Optimizer", "model.optimizer", "torch.optim", "Optimizer", ()),
    # Only those that take the number of steps as the second argument, as a schedule is called.
    ("Schedule", "model.schedule", "torch.optim.lr_scheduler", "LRScheduler", ("CosineAnnealingLR", "PolynomialLR")),
    ("Callback", "trainer.callbacks", "lightning.pytorch.callbacks", "Callback", ()),
)
"""Swap points with a base class of a library: name, config key, module, base class and names (`SwapPoint`)."""


def swap_point(where: str, name: str = "") -> Callable[[T], T]:
    """Returns a class decorator that makes a base class a swap point.

    Args:
        where: The config key that chooses one of its subclasses.
        name: The name of the swap point; the name of the class if empty.
    """

    def declare(base: T) -> T:
        SWAP_POINTS[base] = SwapPoint(base, name or base.__name__, where)
        return base

    return declare


@overload
def socket(base: T) -> T: ...
@overload
def socket(*, where: str) -> Callable[[T], T]: ...
def socket(base: Any = None, *, where: str = "") -> Any:
    """Makes an abstract class a socket of the model; a class decorator, with or without arguments.

    A socket is a swap point whose members hold weights or take part in the forward pass.

    Args:
        base: The class.
        where: The config key that chooses a plugin; `model.` and the class name in lower case if empty.
    """

    def declare(base: T) -> T:
        swap_point(where or f"model.{base.__name__.lower()}")(base)
        SOCKETS[base] = SWAP_POINTS[base].registry
        return base

    return declare if base is None else declare(base)


def _declare_libraries() -> None:
    """Declares the swap points of libraries that are imported; before that no class can derive from them."""
    for name, where, module, base_name, names in _LIBRARIES:
        base = getattr(sys.modules.get(module), base_name, None)
        if base is not None and base not in SWAP_POINTS:
            SWAP_POINTS[base] = SwapPoint(base, name, where, module, names)


def swap_points() -> list[SwapPoint]:
    """Returns all swap points that are declared so far, the sockets of the model first."""
    _declare_libraries()
    return sorted(SWAP_POINTS.values(), key=lambda point: point.base not in SOCKETS)


def bases_of(cls: type) -> list[type]:
    """Returns the base classes of the swap points from which a class derives."""
    _declare_libraries()
    return [base for base in SWAP_POINTS if issubclass(cls, base)]


def register(cls: T) -> T:
    """Adds a class to the swap point from whose base class it derives; a class decorator.

    Raises:
        PluginError: The class derives from no swap point or several, is still abstract, or its name is taken.
    """
    bases = bases_of(cls)
    if len(bases) != 1:
        names = ", ".join(point.base.__name__ for point in swap_points())
        raise PluginError(f"{cls.__name__} must derive from exactly one of {names}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
        raise PluginError(f"{cls.__name__} does not define {missing}")
    registry = SWAP_POINTS[bases[0]].registry
    known = registry.module_dict.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PluginError(f"{cls.__name__} is taken by {known.__module__}; rename the class in {cls.__module__}")
    registry.register_module(module=cls, force=True)
    return cls


def members_of(base: type) -> dict[str, type]:
    """Returns all classes that can be chosen at a swap point, by name (`SwapPoint.members`)."""
    return SWAP_POINTS[base].members


def summary(cls: type) -> str:
    """Returns the first line with text of a class's docstring."""
    return next((line.strip() for line in (cls.__doc__ or "").splitlines() if line.strip()), "")


def is_swap_point(base: Any) -> bool:
    """Whether a type is the base class of a swap point."""
    _declare_libraries()
    return inspect.isclass(base) and base in SWAP_POINTS


def find(name: str, bases: Iterable[type] | None = None) -> tuple[type, type] | None:
    """Finds the swap point (its base class) and the class of a short name; None if there is none.

    Registered classes take precedence over those of libraries.

    Args:
        name: A class name without its module.
        bases: Base classes of the swap points to search; None means all that are declared so far.
    """
    name = current_class(name)
    points = swap_points() if bases is None else [SWAP_POINTS[base] for base in bases]
    for point in points:
        if name in point.registry.module_dict:
            return point.base, point.registry.module_dict[name]
    for point in points:
        if name in point.library_members:
            return point.base, point.library_members[name]
    return None


def matching(pattern: str) -> list[tuple[SwapPoint, list[str]]]:
    """Finds the members of swap points whose names match a wildcard pattern such as `*Prompts*`, ignoring case.

    Returns:
        The swap points that have such members, each with the matching names.
    """
    found = [
        (point, [name for name in point.members if fnmatchcase(name.lower(), pattern.lower())])
        for point in swap_points()
    ]
    return [(point, names) for point, names in found if names]


def unknown(name: str, bases: Iterable[type] | None = None) -> str:
    """Returns one sentence that says why a name cannot be used where it is given, and which names can.

    Args:
        name: A class name, with or without a module.
        bases: Base classes of the swap points that are accepted; None means any.
    """
    points = swap_points() if bases is None else [SWAP_POINTS[base] for base in bases]
    kind = "class" if bases is None else " or ".join(point.name for point in points)
    names = [member for point in points for member in point.members]
    short = name.rpartition(".")[2]
    if (other := find(short)) and other[0] not in [point.base for point in points]:
        return f"{name} belongs to {SWAP_POINTS[other[0]].name}, not {kind}; {choice('', names, 'there are')}"
    if forgotten := unregistered(short, bases):
        fix = "put @register (from sail_lightning.registry) above it"
        return f"{short} of the module {forgotten.__module__} is not registered; {fix}"
    own = "" if bases is None else "; your own file: --plugins FILE"
    return f"no {kind} named {name}; {choice(short, names, 'there are')}{own}"


def unregistered(name: str, bases: Iterable[type] | None = None) -> type | None:
    """Returns a class of this name that derives from one of these swap points but was not registered, None if there is
    none."""
    points = swap_points() if bases is None else [SWAP_POINTS[base] for base in bases]
    return next((cls for point in points for cls in left_out(point) if cls.__name__ == name), None)


def left_out(point: SwapPoint) -> Iterator[type]:
    """Yields subclasses that could be registered but are not, without those of a library."""
    library = point.base.__module__.partition(".")[0] if point.library else None
    for cls in _family(point.base):
        registered = cls in point.registry.module_dict.values()
        if not registered and not inspect.isabstract(cls) and cls.__module__.partition(".")[0] != library:
            yield cls


def _family(cls: type) -> Iterator[type]:
    """Yields all subclasses of a class that are imported."""
    children: list[type] = type.__subclasses__(cls)
    for child in children:
        yield child
        yield from _family(child)


# -- mmengine ---------------------------------------------------------------------------------------------------------


def build(config: dict[str, Any], bases: Iterable[type] | None = None) -> Any:
    """Builds the object that an mmengine config describes: `dict(type="sail_lightning.DeconvUpsampler", stride=4)`.

    `type` is the name of a registered class, with or without the scope `sail_lightning.`, or the class itself.
    Arguments that are swap points, such as a backbone's `attention`, are built from configs of their own.

    Args:
        config: A mapping with the key `type`; the other keys are arguments.
        bases: Base classes of the swap points to which the type may belong; None means any.

    Raises:
        PluginError: The type or an argument is not known, or the type belongs to another swap point.
    """
    arguments = dict(config.items())
    arguments.pop("_scope_", None)
    if (kind := arguments.pop("type", None)) is None:
        raise PluginError(f"a config needs the key 'type', a class name; its keys are {', '.join(arguments) or 'none'}")
    cls = _named(kind, bases)
    arguments = current_arguments(cls, arguments)
    known = arguments_of(cls)
    if wrong := [name for name in arguments if name not in known and not is_open_ended(cls)]:
        raise PluginError(f"{cls.__name__} has no argument {wrong[0]!r}; {choice(wrong[0], known, 'it takes')}")
    if missing := [name for name, one in known.items() if one.default is EMPTY and name not in arguments]:
        raise PluginError(f"{cls.__name__} needs the argument {missing[0]!r}")
    return cls(**build_arguments(cls, arguments))


def build_arguments(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns a class's arguments, in which mmengine configs are built where the class takes a member of a swap point.

    Raises:
        PluginError: A config cannot be built (`build`).
    """
    asked = arguments_of(cls)
    built = dict(arguments)
    for name, value in arguments.items():
        if name in asked and (bases := [part for part in parts_of(asked[name].hint) if is_swap_point(part)]):
            built[name] = _build_within(value, bases)
    return built


def _build_within(value: Any, bases: list[type]) -> Any:
    """Returns a value in which configs are built; other values stay as they are."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str | type):
            return build(value, bases)
        return {key: _build_within(item, bases) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_build_within(item, bases) for item in value)
    return value


def _named(kind: Any, bases: Iterable[type] | None) -> type:
    """Returns the registered class that `type` names.

    Raises:
        PluginError: There is none, or it belongs to another swap point.
    """
    path = f"{kind.__module__}.{kind.__qualname__}" if inspect.isclass(kind) else str(kind)
    scope, _, name = path.rpartition(".")
    among = None if bases is None else list(bases)
    found = find(name, among)
    # A full path may go through a package that re-exports the class, and mmengine may have taken the scope off it.
    if found and (scope in ("", SCOPE) or found[1].__module__.startswith((scope, f"{SCOPE}.{scope}"))):
        return found[1]
    raise PluginError(unknown(path, among))


def _build_for_mmengine(config: Any, *_: Any, registry: Any, default_args: Any = None, **__: Any) -> Any:
    """Builds a config for `Registry.build` of this package's registries, which call it."""
    load_shipped()
    return build({**(default_args or {}), **config}, registry.bases)


DOORS = [
    Names(SCOPE, build_func=_build_for_mmengine, parent=root, scope=SCOPE) for root in (MODELS, DATASETS, OPTIMIZERS)
]
"""Children of mmengine's own registries, through which other scopes find the classes of this package:
`MODELS.build(dict(type="sail_lightning.X"))` imports this module and asks the child of its scope."""


# -- loading ----------------------------------------------------------------------------------------------------------


def holds(source: str, settings: Any) -> bool:
    """Whether a plugin file or module holds one of the classes that settings name by `class_path`."""
    if isinstance(settings, Mapping):
        root = Path(source).stem if source.endswith(".py") else source.partition(".")[0]
        path = settings.get("class_path")
        named = isinstance(path, str) and path.partition(".")[0] == root
        return named or any(holds(source, value) for value in settings.values())
    return isinstance(settings, list | tuple) and any(holds(source, value) for value in settings)


def load_shipped() -> None:
    """Declares all swap points and registers all classes of the package, also callbacks; this imports Lightning."""
    for module in (*SHIPPED, *SHIPPED_WITH_LIGHTNING):
        importlib.import_module(module)


def _file_of(name: str) -> Path | None:
    """Returns the file that `import name` would run, None for a module without a file."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve() if spec and spec.origin and spec.has_location else None


def load(source: str) -> None:
    """Imports plugins from a `.py` file or a dotted module name.

    A file is imported by its bare name, with its folder at the end of `sys.path`, so that spawned workers and
    `load_from_checkpoint` find the same classes.

    Raises:
        PluginError: The file or module does not exist, Python finds another module under its name, or its code fails.
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
        if other is None and path != (found := _file_of(name)):
            other_file = found or "a built-in module"
            raise PluginError(f"Python finds {other_file} under the name {name!r}; rename {path.name}")
    try:
        importlib.import_module(name)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"plugin {source} cannot be imported: {type(error).__name__}: {error}") from error
    SOURCES[key] = "ok"


def discover(sources: Iterable[str] = ()) -> None:
    """Loads the package's own classes, then installed plugins (entry points), those of `$SAIL_PLUGINS`, and `sources`.

    Callbacks are loaded only if Lightning is imported already. An error of an installed package is recorded in
    `SOURCES` and not raised, so that it does not break the tool.
    """
    for module in (*SHIPPED, *(SHIPPED_WITH_LIGHTNING if "lightning" in sys.modules else ())):
        importlib.import_module(module)
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


__getattr__ = renamed(__name__, {"plugins_of": "members_of"})
