"""Names of earlier versions, kept for one version: modules that moved, and names that changed.

`install` makes old module paths importable, so that checkpoints and configs that hold them still load; each warns once
and names the new path. `renamed` does the same for names in a module.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "sail_lightning"
MODULES: dict[str, str] = {
    "adapters": "pretrained.lora",
    "batch": "encoding.batch",
    "cache": "generation.kv_cache",
    "callbacks.answers": "callbacks.evaluation",
    "callbacks.learning_curve": "evaluate.curves",
    "card": "pretrained.card",
    "checkpoint": "pretrained.model_folder",
    "conversion.strict": "weights.state_dict",
    "data.choosing": "data.samplers",
    "data.collate": "encoding.collate",
    "data.dealing": "data.distributed_sampler",
    "data.run_lengths": "image.run_lengths",
    "data.sample": "sample",
    "data.segmentations": "image.segmentations",
    "data.shard_store": "data.webdataset.store",
    "data.shards": "data.webdataset.writer",
    "data.transform": "encoding.transform",
    "data.wording": "encoding.prompt_templates",
    "decode_step": "generation.decode_step",
    "distillation": "training.distillation",
    "drawing": "image.drawing",
    "evaluation": "evaluate.measure",
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
"""Old module to new module, both below the package. `scoring.score` and `scoring.compare` are left out: as modules
below `evaluate` they would hide its functions of these names."""


def new_path(path: str) -> str:
    """The path of a module or class today, such as `sail_lightning.losses.MaskLoss`; any other path is unchanged."""
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
    """A module's `__getattr__` for names that changed: `names` maps an old name to a new one, or to `module:name`."""

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].rpartition(":")
        warn(f"{module}.{name}", f"{home or module}.{new}")
        return getattr(importlib.import_module(home or module), new)

    return __getattr__


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Says that a name changed, once for each place that uses it."""
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
        """Puts the module of the new path in the place of the empty one, so that its classes exist once."""
        warn(module.__name__, self.new, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(self.new)
