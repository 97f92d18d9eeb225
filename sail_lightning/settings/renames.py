"""Names of earlier versions, kept for one version: modules that moved, and names that changed.

`install` makes old module paths importable, so that checkpoints and configs that hold them still load; each warns once
and names the new path. `renamed` does the same for names in a module. `ARGUMENTS` lists constructor arguments, which
are config keys too, that changed: `current_arguments` renames them in a call, `current_keys` in a config.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sail_lightning.errors import SailUsageError

PACKAGE = "sail_lightning"
MODULES: dict[str, str] = {
    "adapters": "pretrained.lora",
    "batch": "encoding.batch",
    "cache": "generation.kv_cache",
    "callbacks.answers": "callbacks.evaluation",
    "callbacks.learning_curve": "evaluate.curves",
    "card": "pretrained.card",
    "checkpoint": "pretrained.model_folder",
    "cli.errors": "cli.config_validation",
    "cli.noise": "cli.logging_setup",
    "cli.packaged": "cli.configs",
    "conversion.deepspeed": "weights.deepspeed",
    "conversion.pickles": "weights.pickles",
    "conversion.reading": "weights.reading",
    "conversion.sharded": "weights.sharded",
    "conversion.strict": "weights.state_dict",
    "data.choosing": "data.samplers",
    "data.collate": "encoding.collate",
    "data.dealing": "data.distributed_sampler",
    "data.doctor.across": "data.doctor.duplicates",
    "data.prompts": "data.prompt_syntax",
    "data.run_lengths": "image.run_lengths",
    "data.sample": "sample",
    "data.segmentations": "image.segmentations",
    "data.shard_store": "data.webdataset.store",
    "data.shards": "data.webdataset.writer",
    "data.sources.pictures": "data.sources.images",
    "data.transform": "encoding.transform",
    "data.wording": "encoding.prompt_templates",
    "decode_step": "generation.decode_step",
    "distillation": "training.distillation",
    "drawing": "image.drawing",
    "evaluation": "evaluate.measure",
    "features.pictures": "features.images",
    "hub": "pretrained.hub",
    "losses": "model.losses",
    "metrics": "evaluate",
    "metrics.average_precision": "evaluate.metrics.average_precision",
    "metrics.cider": "evaluate.metrics.cider",
    "metrics.grounded": "evaluate.metrics.grounded",
    "metrics.lines": "evaluate.metric",
    "metrics.masks": "evaluate.metrics.masks",
    "metrics.meteor": "evaluate.metrics.meteor",
    "metrics.meteor_lite": "evaluate.metrics.meteor_lite",
    "metrics.segmentation": "evaluate.metrics.segmentation",
    "metrics.similarity": "evaluate.metrics.similarity",
    "metrics.stemming": "evaluate.metrics.stemming",
    "metrics.sums": "evaluate.fixed_point",
    "metrics.table": "evaluate.table",
    "metrics.tasks": "evaluate.judge",
    "metrics.text": "evaluate.metrics.text",
    "metrics.words": "evaluate.metrics.words",
    "metrics.yes_no": "evaluate.metrics.yes_no",
    "network": "model.bundle",
    "optim": "training.optim",
    "plan": "sequence.attention_plan",
    "plugins.backbones.unchanged": "plugins.backbones.parity_check",
    "plugins.prompt_encoders.loud": "plugins.prompt_encoders.norm_matched",
    "plugins.upsamplers.lean": "plugins.upsamplers.checkpointing",
    "prediction": "generation.prediction",
    "provenance": "evaluate.provenance",
    "scoring": "evaluate",
    "scoring.answer_log": "evaluate.answer_log",
    "scoring.benchmarks": "evaluate.benchmarks",
    "scoring.bootstrap": "evaluate.bootstrap",
    "scoring.captions": "evaluate.metrics.captions",
    "scoring.choices": "evaluate.metrics.choices",
    "scoring.gallery": "evaluate.gallery",
    "scoring.grounded": "evaluate.metrics.grounded",
    "scoring.official": "evaluate.metrics.official",
    "scoring.parts": "evaluate.metric",
    "scoring.published": "evaluate.published",
    "scoring.record": "evaluate.record",
    "scoring.referring": "evaluate.metrics.segmentation",
    "scoring.report": "evaluate.report",
    "shards": "weights.safetensors_io",
    "shared_prefix": "generation.prefix_schedule",
    "templates": "sequence.chat_template",
    "tokens": "sequence.tokenizer",
    "vision": "image.preprocessing",
    "vocabulary": "pretrained.embedding_remap",
}
"""Old module to new module, both below the package. `scoring.score`, `scoring.compare` and `data.doctor.leaves` are
left out: as modules below `evaluate` and `data.doctor` they would hide functions of these names."""
CLASSES: dict[str, str] = {
    "LoudPrompts": "NormMatchedPrompts",
}
"""Registered classes that changed, old name to new name; configs and checkpoints may hold the old one."""
ARGUMENTS: dict[str, dict[str, str]] = {
    "ChatTemplate": {"picture_inside": "image_inside"},
    "EvalRecord": {"answer": "true_answer", "text": "prediction"},
    "NormMatchedPrompts": {"loudness": "norm_scale"},
    "PromptInjection": {"coverage": "rasterization"},
    "SailDataModule": {"look_ahead": "packing_buffer_size", "max_fault_rate": "max_error_rate"},
    "ScheduledTeacher": {"tap": "student_features", "every": "every_n_steps"},
}
"""Constructor arguments that changed, old name to new name, by the class that takes them; subclasses inherit them."""
RASTERIZATIONS = {"cover": "any", "nearest": "nearest_pil", "nearest_floor": "nearest_torch"}
"""Values of `PromptEncoder.rasterization` in version 0.1, to those of today."""
VALUES: dict[str, dict[str, dict[Any, Any]]] = {"PromptInjection": {"rasterization": RASTERIZATIONS}}
"""Values of arguments that changed, old value to new value, by class and by the argument's name of today."""
SECTIONS: dict[str, str] = {
    "model": "PixelSAIL",
    "data": "SailDataModule",
    "checkpoint": "RunCheckpoint",
    "predictions": "PredictionWriter",
    "evaluation": "EvaluationWriter",
    "overlays": "OverlayLogger",
    "throughput": "Throughput",
    "non_finite": "NonFiniteGuard",
}
"""Sections of a config that name no class, and the class whose arguments each holds."""
Find = Callable[[str], tuple[type, type] | None]
"""`registry.find`: the swap point and the class of a short name, or None."""


def new_path(path: str) -> str:
    """Returns the current path of a module or class, such as `sail_lightning.losses.MaskLoss`; other paths are returned
    unchanged."""
    parts = path.removeprefix(f"{PACKAGE}.").split(".") if path.startswith(f"{PACKAGE}.") else []
    for length in range(len(parts), 0, -1):
        if moved := MODULES.get(".".join(parts[:length])):
            return ".".join([PACKAGE, moved, *parts[length:]])
    return path


def install() -> None:
    """Makes the old module paths importable."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedFinder())  # first, or a module of an old package would be loaded a second time


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a module's `__getattr__` for names that changed; `names` maps an old name to a new one, or to
    `module:name`."""

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].rpartition(":")
        warn(f"{module}.{name}", f"{home or module}.{new}")
        return getattr(importlib.import_module(home or module), new)

    return __getattr__


def current_arguments(owner: type | str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call, or the keys of a config node, by their current names.

    Args:
        owner: The class that takes them, or its name where the class is not imported; None if it is not known.
        given: The arguments; a key may end in `+`, as in a config that adds to an earlier list.

    Raises:
        SailUsageError: An argument is given by its old and by its new name.
    """
    names, values = _renames_of(owner)
    if not (names.keys() | values.keys()) & {key.removesuffix("+") for key in given}:
        return dict(given)
    cls = owner if isinstance(owner, str) else getattr(owner, "__name__", "")
    current: dict[str, Any] = {}
    for key, value in given.items():
        old = key.removesuffix("+")
        new = names.get(old, old)
        if new != old:
            if new in given or f"{new}+" in given:
                raise SailUsageError(f"{cls}: {old} is the old name of {new}; give {new} only")
            warn(f"the argument {old} of {cls}", new, stacklevel=4)
        if isinstance(value, str | int | float | bool) and value in values.get(new, {}):
            changed = values[new][value]
            warn(f"{new}={value} of {cls}", f"{new}={changed}", stacklevel=4)
            value = changed
        current[new + key[len(old) :]] = value
    return current


@functools.cache
def _renames_of(owner: type | str | None) -> tuple[dict[str, str], dict[str, dict[Any, Any]]]:
    """Returns the entries of `ARGUMENTS` and `VALUES` for a class and its parents.

    An old name that a user's subclass has in its own signature means that subclass's argument and is left out.
    """
    if not inspect.isclass(owner):
        return ARGUMENTS.get(str(owner), {}), VALUES.get(str(owner), {})
    names: dict[str, str] = {}
    values: dict[str, dict[Any, Any]] = {}
    own: set[str] = set()
    for parent in owner.__mro__:
        if parent.__module__.partition(".")[0] == PACKAGE:
            names |= {old: new for old, new in ARGUMENTS.get(parent.__name__, {}).items() if old not in own}
            values |= VALUES.get(parent.__name__, {})
        elif inspect.isfunction(init := parent.__dict__.get("__init__")):
            own |= inspect.signature(init).parameters.keys()
    return names, values


def current_class(name: str) -> str:
    """Returns a class name or path with the current name; one that did not change is returned unchanged."""
    home, dot, short = name.rpartition(".")
    if short not in CLASSES or (home and home.partition(".")[0] != PACKAGE):
        return name
    warn(short, CLASSES[short], stacklevel=4)
    return f"{new_path(home)}{dot}{CLASSES[short]}"


def current_keys(config: Mapping[str, Any], find: Find, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a config with the current argument names.

    Args:
        config: Sections such as `model` and `data`, of a file, a checkpoint or a model folder.
        find: The function `registry.find`.
        earlier: The config over which this one is merged; it names classes that this one leaves out.

    Raises:
        SailUsageError: An argument is given by its old and by its new name.
    """
    below = earlier or {}
    return {
        key: value if isinstance(value, str) else current_node(value, SECTIONS.get(key), find, below.get(key))
        for key, value in config.items()
    }


def current_node(node: Any, owner: type | str | None, find: Find, earlier: Any = None) -> Any:
    """Returns a value of a config with the current names of classes and arguments.

    Args:
        node: The value; mappings and lists are searched.
        owner: The class whose arguments a mapping holds, if it names none itself.
        find: The function `registry.find`.
        earlier: The value over which this one is merged.

    Raises:
        SailUsageError: An argument is given by its old and by its new name.
    """
    if isinstance(node, list):
        return [current_node(item, None, find) for item in node]
    if isinstance(node, str):
        return current_class(node)
    if not isinstance(node, dict):
        return node
    if isinstance(path := node.get("class_path"), str):
        node = {**node, "class_path": current_class(path)}
    owner = class_named(node, find) or owner or class_named(earlier, find)
    found: dict[str, Any] = {}
    for key, value in current_arguments(owner, node).items():
        inside = key in ("init_args", "dict_kwargs")
        below = earlier if inside else _lower(earlier, key)
        found[key] = current_node(value, owner if inside else None, find, below)
    return found


def class_named(value: Any, find: Find) -> type | None:
    """Returns the registered class that a config value names, as a text or by `class_path`; None if there is none."""
    path = value.get("class_path") if isinstance(value, dict) else value
    found = find(path.rpartition(".")[2]) if isinstance(path, str) else None
    return None if found is None else found[1]


def _lower(node: Any, key: str) -> Any:
    """Returns the value at a key of a lower layer's value, in which `init_args` may be left out."""
    if not isinstance(node, dict):
        return None
    return node[key] if key in node else _lower(node.get("init_args"), key)


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that a name changed, once for each place that uses it."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next version", FutureWarning, stacklevel)


class _MovedFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = fullname.removeprefix(f"{PACKAGE}.")
        if old == fullname or old not in MODULES:
            return None
        return ModuleSpec(fullname, _MovedLoader(f"{PACKAGE}.{MODULES[old]}"))


class _MovedLoader(Loader):
    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        """Replaces the empty module by the module of the new path, so that its classes exist once."""
        warn(module.__name__, self.new, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(self.new)


class RenamedAttribute:
    """An attribute or method of an earlier version: reading and writing it reaches the new name, with a warning.

    A class that defines the old name, as plugins written for an earlier version do, is adapted by `adopt_old_names`.

    Args:
        new: The attribute's name today.
        values: Old values that changed with the name, to current ones.
    """

    def __init__(self, new: str, values: Mapping[str, Any] | None = None) -> None:
        self.new, self.values = new, values or {}
        self.adopted: list[Any] = []

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        self.warn(self.owner.__name__, stacklevel=4)
        for cls in (owner or type(instance)).__mro__:  # `super().old()` in an adopted method must not call itself
            if callable(method := cls.__dict__.get(self.new)) and method not in self.adopted:
                return method if instance is None else method.__get__(instance, owner)
        return getattr(owner if instance is None else instance, self.new)

    def __set__(self, instance: Any, value: Any) -> None:
        self.warn(type(instance).__name__, stacklevel=4)
        setattr(instance, self.new, self.today(value))

    def today(self, value: Any) -> Any:
        """Returns the current form of a value."""
        return self.values.get(value, value) if isinstance(value, str) else value

    def warn(self, owner: str, stacklevel: int) -> None:
        """Warns that the attribute of a class has a new name."""
        warn(f"{owner}.{self.name}", f"{owner}.{self.new}", stacklevel)


def adopt_old_names(cls: type) -> None:
    """Gives a new class that defines attributes by their old names the same under the new names, with a warning."""
    for name, value in list(cls.__dict__.items()):
        found = (parent.__dict__[name] for parent in cls.__mro__[1:] if name in parent.__dict__)
        old = next((one for one in found if isinstance(one, RenamedAttribute)), None)
        if old is None:
            continue
        old.warn(cls.__name__, stacklevel=4)
        if callable(value):
            old.adopted.append(value)
        else:
            delattr(cls, name)  # or what is assigned to the old name later would hide the new one
        if old.new not in cls.__dict__:
            setattr(cls, old.new, old.today(value))
