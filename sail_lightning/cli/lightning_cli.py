"""`fit`, `validate`, `test` and `predict`: LightningCLI, with configs composed, plugins found and short errors."""

from __future__ import annotations

import inspect
import logging
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sail_lightning import registry
from sail_lightning.callbacks import (
    EvaluationWriter,
    GradNorm,
    NonFiniteGuard,
    OverlayLogger,
    PredictionWriter,
    Throughput,
)
from sail_lightning.cli import compose
from sail_lightning.cli.compose import Config, Option
from sail_lightning.cli.config_validation import check_config, explain
from sail_lightning.cli.configs import find_config, read_config
from sail_lightning.cli.logging_setup import silence_lightning
from sail_lightning.cli.progress import progress_bar
from sail_lightning.cli.renamed import rename_options, rename_sections
from sail_lightning.cli.run_folder import RunCheckpoint, SaveRunConfig, default_loggers, next_run_folder
from sail_lightning.compat.lightning import ComposedCLI
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.errors import SailError, SailUsageError, refusal_within
from sail_lightning.evaluate.report import MARKDOWN
from sail_lightning.module import PixelSAIL
from sail_lightning.pretrained import model_folder

DEFAULT_DATA = "data/laboratory"
"""What `validate` and `test` measure on where no data is given."""
TRAINER_DEFAULTS: Config = {
    "accelerator": "auto",
    "max_epochs": -1,  # training data has no end: runs are counted in steps, and so is the progress bar
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,  # validation is counted in steps too: trainer.val_check_interval
    "val_check_interval": 1000,
    "use_distributed_sampler": False,  # our data shards itself
    "enable_model_summary": False,
}
KEYWORDS = ("best", "last", "hpc")
"""Values of ckpt_path that Lightning itself understands."""
SECTIONS: dict[str, type] = {
    "model": PixelSAIL,
    "data": SailDataModule,
    "trainer": L.Trainer,
    "checkpoint": RunCheckpoint,
    "predictions": PredictionWriter,
    "evaluation": EvaluationWriter,
    "overlays": OverlayLogger,
    "throughput": Throughput,
    "non_finite": NonFiniteGuard,
}
"""Top-level keys of a config, and the class that takes the arguments of each."""
PLAIN = ("name", "runs", "plugins", "seed_everything", "ckpt_path", "weights_only", "verbose", "return_predictions")
"""Top-level keys that hold one value."""


class SailParser(LightningArgumentParser):
    """Reports an error in one sentence: the public hook `error` raises instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SailUsageError(explain(message)) from None


class SailCLI(ComposedCLI):
    """One verb of LightningCLI on a composed config."""

    def __init__(self, verb: str, config: Config, options: Sequence[Option], name: str, dry: bool = False) -> None:
        self.verb, self.composed, self.options, self.name, self.dry = verb, config, options, name, dry
        self.exit_code = 0
        super().__init__(
            PixelSAIL,
            SailDataModule,
            save_config_callback=SaveRunConfig,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=SailParser,
            auto_configure_optimizers=False,
            args=[],
        )

    # -- parsing ------------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Makes only the verb that was asked for: each parser takes a second to make."""
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_default_arguments_to_parser(parser)
        parser.add_argument("--plugins", type=str | list[str], default=[], help="Plugin files or modules to load.")
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for section, cls in SECTIONS.items():
            if issubclass(cls, L.Callback):
                parser.add_lightning_class_args(cls, section)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the composed config, then the options that are left."""
        self._free_class_defaults(self.verb_parser(self.verb))
        words = [word for option in self.options for word in option.words()]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(yaml.safe_dump(self.composed, sort_keys=False), encoding="utf-8")
            self.config = parser.parse_args([self.verb, f"--config={path}", *words])
        settings = self.config[self.verb]
        settings.name = settings.name or self.name
        if self.verb == "fit" and settings.trainer.max_steps < 1 and not settings.trainer.fast_dev_run:
            given = settings.trainer.max_steps
            wrong = "" if given == -1 else f"trainer.max_steps must be 1 or more, not {given}; "
            raise SailUsageError(f"{wrong}fit needs --trainer.max_steps: training data has no end")

    def _free_class_defaults(self, parser: LightningArgumentParser) -> None:
        """Another optimiser or schedule than the default one must not inherit the arguments of the default."""
        given = {option.name: option.values[0] for option in self.options if len(option.values) == 1}
        for name, parameter in inspect.signature(PixelSAIL).parameters.items():
            if inspect.isclass(default := parameter.default) and default is not inspect.Parameter.empty:
                key = f"model.{name}"
                chosen = compose.class_of(given.get(key)) or compose.class_of(compose.lookup(self.composed, key))
                if chosen is not None and not compose.same_class(chosen, default.__name__):
                    parser.set_defaults({key: {"class_path": chosen}})

    # -- running ------------------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        settings = self.config[self.verb]
        self.folder = next_run_folder(settings.runs, settings.name)
        self.save_config_kwargs = {"folder": self.folder}
        if settings.trainer.logger in (None, True):
            kwargs["logger"] = default_loggers(self.folder, tensorboard=self.verb != "predict")
        if settings.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.folder)
        callbacks: list[L.Callback] = [GradNorm()]
        if settings.trainer.logger is not False and not settings.trainer.fast_dev_run:
            callbacks.append(LearningRateMonitor("step"))
        own = self.config_init[self.verb].trainer.callbacks or []
        if settings.trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in own):
            callbacks.append(progress_bar(self.verb))
        self.trainer_defaults = {**TRAINER_DEFAULTS, "callbacks": callbacks}
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise SailUsageError(f"trainer: {' '.join(str(error).split())}") from error

    def predict(self, model: L.LightningModule, **kwargs: Any) -> None:
        """Answers go to disk as they come; Lightning would keep them all in memory."""
        log = logging.getLogger(SailDataModule.__module__)
        level = log.level
        log.setLevel(logging.ERROR)  # skipped images: `after_predict` names them all, once
        try:
            self.trainer.predict(model, **{**kwargs, "return_predictions": False})
        finally:
            log.setLevel(level)

    def after_fit(self) -> None:
        if self.trainer.is_global_zero:
            keeper = self.trainer.checkpoint_callback
            if isinstance(keeper, RunCheckpoint) and keeper.summary():
                print(f"\n{keeper.summary()}\n")
            checkpoint = getattr(keeper, "last_model_path", "")
            print(f"run folder: {self.folder}" + (f"\ncheckpoint: {checkpoint}" if checkpoint else ""))

    def after_validate(self) -> None:
        self._tell_folder()

    def after_test(self) -> None:
        self._tell_folder()
        writer = next(c for c in self.trainer.callbacks if isinstance(c, EvaluationWriter))  # type: ignore[attr-defined]
        if writer.folder is not None and self.trainer.is_global_zero:
            print(f"report: {writer.folder / MARKDOWN}")

    def _tell_folder(self) -> None:
        if self.trainer.is_global_zero:
            print(f"run folder: {self.folder}")

    def after_predict(self) -> None:
        writer = next(c for c in self.trainer.callbacks if isinstance(c, PredictionWriter))  # type: ignore[attr-defined]
        broken = self.datamodule.broken
        if writer.path is not None and self.trainer.is_global_zero:
            overlays = " and overlays/" if writer.overlays else ""
            skipped = f"; skipped as broken: {len(broken)}" if broken else ""
            print(f"predictions: {writer.path}{overlays}{skipped}")
        if broken:
            sys.stderr.write(f"error: these images were skipped: {'; '.join(broken)}\n")
            self.exit_code = 1


def run(args: Sequence[str], dry: bool = False) -> SailCLI:
    """Runs a verb.

    Args:
        args: The verb and its options.
        dry: Makes the model, the data and the callbacks, so that what they refuse is refused, and runs nothing.

    Raises:
        SailUsageError: A wrong command or config.
        SailError: A fault that the user can fix.
    """
    verb, *rest = args
    options = rename_options(compose.split_options(rest))
    layers = [rename_sections(layer) for layer in compose.read_layers(options)]
    registry.discover(compose.plugin_sources(options, layers))
    full_help = any(option.name == "full_help" for option in options)
    configs = [Path(option.values[0]).stem for option in options if option.name == "config"]
    config, options = _composed(verb, layers, [o for o in options if o.name not in ("config", "full_help")])
    flags = ("print_config", "help")
    check_config(compose.with_options(config, [o for o in options if o.name not in flags]), SECTIONS, PLAIN)
    silence_lightning()
    try:
        return SailCLI(verb, config, [Option("help")] if full_help else options, configs[0] if configs else verb, dry)
    except MisconfigurationException as error:
        raise SailUsageError(" ".join(str(error).split())) from None
    except ValueError as error:
        if fault := refusal_within(error):
            raise fault from None
        raise
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        raise SailError(_mismatch(str(error))) from None


def _composed(verb: str, layers: list[Config], options: list[Option]) -> tuple[Config, list[Option]]:
    """All layers as one config, and the options that are left for the parser."""
    config, left = compose.apply_options(compose.merge_layers(layers), options)
    given = {option.name: option for option in left}
    ckpt_path, weights = (_setting(config, given, name) for name in ("ckpt_path", "model.weights"))
    base: list[Config] = []
    if verb in ("validate", "test") and not _has_data(config, given, "val" if verb == "validate" else "test"):
        base.append(read_config(find_config(DEFAULT_DATA)))
    if ckpt_path and ckpt_path not in KEYWORDS and "://" not in ckpt_path:
        layer = _checkpoint_layer(verb, ckpt_path)
        base.append(layer)
        if layer["model"].get("weights") is not None:  # a folder: the model itself loads it
            config = {key: value for key, value in config.items() if key != "ckpt_path"}
            left = [option for option in left if option.name != "ckpt_path"]
        elif compose.lookup(config, "model.weights"):  # those that training started from; their folder may be gone
            config = compose.merge_layers([config, {"model": {"weights": None}}])
    elif weights and model_folder.is_folder(weights):
        base.append(_folder_layer(weights))
    elif verb != "fit" and not ckpt_path:
        raise SailUsageError(f"{verb} needs --ckpt_path: a .ckpt file, a model folder or a packaged model")
    # Options once more: they may swap a class that only a base layer names.
    config, left = compose.apply_options(compose.merge_layers([*base, config]), left)
    foreign = {"verbose", "return_predictions"} - set(inspect.signature(getattr(L.Trainer, verb)).parameters)
    return {key: value for key, value in config.items() if key not in foreign}, left


def _setting(config: Config, given: dict[str, Option], name: str) -> str | None:
    """The text of an option, or else of the config; None if neither has it."""
    value = given[name].values[0] if name in given and given[name].values else compose.lookup(config, name)
    return None if value in (None, "", "null") else str(value)


def _has_data(config: Config, given: dict[str, Option], split: str) -> bool:
    return compose.lookup(config, f"data.{split}") is not None or f"data.{split}" in given or "data" in given


def _checkpoint_layer(verb: str, ckpt_path: str) -> Config:
    """The settings that a checkpoint or a model folder brings along, as the lowest layer."""
    path = Path(ckpt_path)
    if path.is_file():
        return _file_layer(path)
    if not model_folder.is_folder(ckpt_path):
        if path.is_dir():  # a sharded checkpoint: it brings no settings
            return {"model": {}}
        try:
            model_folder.locate(ckpt_path)
        except SailError as error:
            known = str(error).partition("; ")[2]
            raise SailError(f"no checkpoint {ckpt_path}, neither a file nor a model folder; {known}") from None
    if verb == "fit":
        raise SailUsageError(
            f"{ckpt_path} is a model folder, which holds no state to resume; start from its weights with "
            f"--model.weights={ckpt_path}"
        )
    return _folder_layer(ckpt_path)


def _folder_layer(name: str) -> Config:
    return {"model": {**model_folder.config_spec(model_folder.locate(name)), "weights": str(name)}}


def _file_layer(path: Path) -> Config:
    """The hyperparameters of a `.ckpt` file.

    Raises:
        SailError: It is no readable checkpoint, or it uses plugins that are not loaded.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
        raise SailError(f"{path} is not a readable checkpoint; it may be damaged: copy it again") from None
    if not isinstance(state, dict) or "state_dict" not in state:
        raise SailError(f"{path} is not a Lightning checkpoint: it holds no state_dict")
    if missing := [source for source in state.get("sail_plugins", []) if source not in registry.SOURCES]:
        raise SailUsageError(f"{path} uses plugins that are not loaded; add: --plugins {','.join(missing)}")
    saved = {key: value for key, value in state.get("hyper_parameters", {}).items() if not key.startswith("_")}
    return {"model": {**saved, "weights": None}}  # the checkpoint holds all weights


def _mismatch(message: str) -> str:
    """Lightning's list of hundreds of names, in a sentence."""
    lines = [line.strip() for line in message.splitlines()[1:] if line.strip()]
    shown = "; ".join(line[:100] + ("..." if len(line) > 100 else "") for line in lines[:2])
    return f"the checkpoint's weights do not fit this model ({shown}); leave out options that change the model"
