"""`sail-lightning expert`: trains a small Mask2Former on a source's masks, for `Mask2FormerTeacher`."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.cli.folders import output_folder
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from sail_lightning.data.sources import Source
    from sail_lightning.experts.mask2former import Mask2FormerExpert, Recipe

EXAMPLES = """\
Where no published expert knows your pictures, train one on your masks. It learns what is where from data.train, and is
measured on data.val (or data.test). DIR is then a Hugging Face folder of Mask2Former; distil it with
--model.teachers.NAME=Mask2FormerTeacher --model.teachers.NAME.folder=DIR. A mask's class are the last words of its
phrase in the answer (<p> a red circle </p> [SEG]); masks without one are all of the class "object".
A run that was stopped goes on where it was when it is run again.

examples:
  sail-lightning expert -c data/laboratory_scenes --out experts/shapes --words 2
  sail-lightning expert -c my_data.yaml --out experts/mine --size 512 --width 256 --batch 8 --device cuda --workers 8"""
SURVEYED = 1000
"""Records that classes are taken from, of a source without end."""
MOST_CLASSES = 2000
CHECKPOINT, SETTINGS, EVERY = "last.ckpt", "settings.json", 250
"""A run that was stopped goes on from the first, if it has the second; steps between two checkpoints."""


def run(args: list[str]) -> int:
    """Trains an expert; returns the exit code."""
    given, overrides = _parser().parse_known_args(args)
    for option in ("steps", "batch", "size", "queries", "count"):
        if getattr(given, option) < 1:
            raise SailUsageError(f"--{option} must be 1 or more, not {getattr(given, option)}")
    for option in ("words", "workers", "seed"):
        if getattr(given, option) < 0:
            raise SailUsageError(f"--{option} must be 0 or more, not {getattr(given, option)}")
    if given.width < 32 or given.width % 32:  # its norms have 32 groups
        raise SailUsageError(f"--width must be a multiple of 32, not {given.width}")
    if given.size < 64:  # its coarsest features are of 32 pixels, and one alone has no spread to be normed by
        raise SailUsageError(f"--size must be 64 or more, not {given.size}")
    if not 0 < given.lr < math.inf:
        raise SailUsageError(f"--lr must be a number above 0, not {given.lr}")
    folder = output_folder(given.out).resolve()
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise SailUsageError(f"{given.out} is a folder that is in use; give --out one of its own")
    if folder.is_dir() and any(folder.iterdir()):
        raise SailUsageError(f"{folder} is not empty; give --out another folder, or remove it")

    import torch

    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.experts.instances import class_names
    from sail_lightning.experts.mask2former import Recipe, save_folder

    if given.device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave --device out")
    takes = "expert takes --data.train.ARGUMENT=VALUE and --data.val.ARGUMENT=VALUE"
    config = DataConfig(given.config, comma_list(given.plugins), overrides, ("data",), takes)
    source = config.source("train")
    held_out = next((split for split in ("val", "test") if split in config.splits), None)
    judged = config.source(held_out) if held_out else None
    classes = class_names(source, source.length or SURVEYED, given.words)
    if len(classes) > MOST_CLASSES:
        raise SailUsageError(f"{len(classes)} classes are too many; give fewer --words, or 0 for one class of all")
    recipe = Recipe(**{name: getattr(given, name) for name in Recipe.__dataclass_fields__})
    settings = {"data": config.described()["data"], "recipe": asdict(recipe), "classes": classes}
    expert = _trained(source, classes, recipe, given.device, _training_folder(folder, settings))
    report: dict[str, Any] = {
        **settings,
        "parameters": sum(parameter.numel() for parameter in expert.network.parameters()),
        "seconds": round(expert.seconds),
    }
    if judged is not None:
        expert.to(given.device)  # Lightning brings it back
        count = min(n for n in (judged.length, given.count) if n is not None)
        if figures := expert.evaluate(judged, count):
            report["held_out"] = {"split": held_out, **figures}
    save_folder(expert, folder, report)
    shutil.rmtree(_beside(folder), ignore_errors=True)
    print(_summary(Path(given.out), report))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="sail-lightning expert",
        description="Trains a small Mask2Former from random weights on a data set's masks: a teacher of your own.",
        epilog=EXAMPLES,
    )
    parser.add_argument("-c", "--config", action="append", required=True, help="a data config; may be repeated")
    parser.add_argument("--out", required=True, metavar="DIR", help="the expert's folder; must not be there")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="optimiser steps (2000)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures a step (16)")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="shorter side of its pictures (128)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="channels of its features (64)")
    parser.add_argument("--queries", type=int, default=20, metavar="N", help="most objects it finds (20)")
    parser.add_argument("--words", type=int, default=1, metavar="N", help="last words of a phrase: its class (1)")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="R", help="highest learning rate (1e-3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and order (0)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="held-out records it is measured on (200)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (0: this one)")
    parser.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    return parser


def _trained(source: Source, classes: list[str], recipe: Recipe, device: str, kept: Path) -> Mask2FormerExpert:
    """The expert after all steps; those before a stop are in the folder `kept`."""
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sail_lightning.cli.noise import quiet
    from sail_lightning.cli.progress import progress_bar
    from sail_lightning.experts.mask2former import Mask2FormerExpert

    quiet()
    L.seed_everything(recipe.seed, verbose=False)
    expert = Mask2FormerExpert(source, classes, recipe)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=recipe.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_model_summary=False,
        callbacks=[
            progress_bar("expert"),
            ModelCheckpoint(kept, Path(CHECKPOINT).stem, every_n_train_steps=EVERY, enable_version_counter=False),
        ],
    )
    before = kept / CHECKPOINT
    if before.is_file():
        try:
            torch.load(before, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            raise SailError(f"{before} is damaged; remove {kept} to begin again") from None
    trainer.fit(expert, ckpt_path=before if before.is_file() else None, weights_only=True)
    return expert


def _beside(folder: Path) -> Path:
    """Where a training is kept until it ends."""
    return folder.with_name(f"{folder.name}.training")


def _training_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """Where this training is kept until it ends: new, or that of a run with the same settings that was stopped.

    Raises:
        SailUsageError: another training was stopped there.
    """
    kept = _beside(folder)
    told = json.loads(json.dumps(settings, default=str))
    told["recipe"].pop("workers")  # which change nothing
    path = kept / SETTINGS
    if path.is_file():
        if (earlier := json.loads(path.read_text(encoding="utf-8"))) != told:
            (first, *_) = (key for key in told if earlier.get(key) != told[key])
            raise SailUsageError(
                f"{kept} holds a training with another {first}, which was stopped; give the same settings, another "
                f"--out, or remove it"
            )
    else:
        kept.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told), encoding="utf-8")
    return kept


def _summary(folder: Path, report: dict[str, Any]) -> str:
    text = f"{folder}: {report['parameters']:,} parameters, {len(report['classes'])} classes"
    if held_out := report.get("held_out"):
        text += (
            f"; on {held_out['pictures']} held-out pictures: AP {held_out['map']:.3f}, AP50 {held_out['map_50']:.3f}"
        )
    return f"{text}\ndistil it: --model.teachers.expert=Mask2FormerTeacher --model.teachers.expert.folder={folder}"
