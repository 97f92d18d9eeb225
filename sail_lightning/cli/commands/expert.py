"""`sail-lightning expert`."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_lightning.cli.command import command
from sail_lightning.cli.folders import output_folder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.experts.recipe import Recipe

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from jsonargparse.typing import PositiveInt

    from sail_lightning.data.sources import Source
    from sail_lightning.experts.mask2former import Mask2FormerExpert

SURVEYED = 1000
"""Number of records that classes are taken from, where a source has no end."""
MOST_CLASSES = 2000
CHECKPOINT, SETTINGS, EVERY = "last.ckpt", "settings.json", 250
"""A stopped run resumes from the checkpoint if its settings are the same; steps between two checkpoints."""


@command(section="teachers")
def expert(
    *overrides: str,
    config: list[Path],
    out: Path,
    count: PositiveInt = 200,
    device: Literal["cpu", "cuda"] = "cpu",
    **recipe: Any,
) -> None:
    """Trains a Mask2Former on a data set's masks: a teacher of your own.

    It is small and starts from random weights. It is trained on data.train and measured on data.val (or data.test). The
    folder is then a Hugging Face folder of Mask2Former; distil it with --model.teachers.NAME=Mask2FormerTeacher
    --model.teachers.NAME.folder=OUT. The class of a mask is the last words of its phrase in the answer
    (<p> a red circle </p> [SEG]); masks without a phrase have the class "object". A run that was stopped resumes when
    the command is given again.

    Examples:
        sail-lightning expert -c data/laboratory_scenes --out experts/shapes --words 2
        sail-lightning expert -c my_data.yaml --out experts/mine --size 512 --width 256 --batch 8 --device cuda

    Args:
        config: A data config, as for fit; may be repeated.
        out: Folder to write; it must be new or empty.
        count: Number of held-out records to measure on.
        device: Device to train on.
    """
    with _options_named():
        settings = Recipe(**recipe)  # here, where the parser finds the options
    folder = _new_folder(out)

    import torch

    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.experts.instances import class_names
    from sail_lightning.experts.mask2former import save_folder

    if device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave out --device")
    takes = "expert takes --data.train.ARGUMENT=VALUE and --data.val.ARGUMENT=VALUE"
    described = DataConfig([path.as_posix() for path in config], [], overrides, ("data",), takes)
    source = described.source("train")
    held_out = next((split for split in ("val", "test") if split in described.splits), None)
    evaluated = described.source(held_out) if held_out else None
    classes = class_names(source, source.length or SURVEYED, settings.words)
    if len(classes) > MOST_CLASSES:
        raise SailUsageError(f"{len(classes)} classes are too many; use a smaller --words, or 0 for a single class")
    described_run = {"data": described.described()["data"], "recipe": asdict(settings), "classes": classes}
    trained = _trained(source, classes, settings, device, _training_folder(folder, described_run))
    report: dict[str, Any] = {
        **described_run,
        "parameters": sum(parameter.numel() for parameter in trained.network.parameters()),
        "seconds": round(trained.seconds),
    }
    if evaluated is not None:
        trained.to(device)  # Lightning moved it back to the CPU
        if metrics := trained.evaluate(evaluated, min(n for n in (evaluated.length, count) if n is not None)):
            report["held_out"] = {"split": held_out, **metrics}
    save_folder(trained, folder, report)
    shutil.rmtree(_beside(folder), ignore_errors=True)
    print(_summary(out, report))


@contextmanager
def _options_named() -> Iterator[None]:
    """Makes faults of a recipe name options within this context, where the recipe names its fields."""
    try:
        yield
    except SailUsageError as error:
        raise SailUsageError(str(error).replace(f"{Recipe.__name__}: ", "--", 1)) from None


def _new_folder(out: Path) -> Path:
    """The expert's folder, which does not exist yet or is empty.

    Raises:
        SailUsageError: It is in use, is not empty, or cannot be written to.
    """
    folder = output_folder(out).resolve()
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise SailUsageError(f"{out} is a folder that is in use; give --out another folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise SailUsageError(f"{folder} is not empty; give --out another folder, or remove it")
    return folder


def _trained(source: Source, classes: list[str], recipe: Recipe, device: str, kept: Path) -> Mask2FormerExpert:
    """The trained expert; a checkpoint in the folder `kept` is resumed."""
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sail_lightning.cli.logging_setup import silence_lightning
    from sail_lightning.cli.progress import progress_bar
    from sail_lightning.experts.mask2former import Mask2FormerExpert

    silence_lightning()
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
    """The folder in which a training is kept until it ends."""
    return folder.with_name(f"{folder.name}.training")


def _training_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """The folder in which this training is kept: a new one, or that of a stopped run with the same settings.

    Raises:
        SailUsageError: Another training was stopped there.
    """
    kept = _beside(folder)
    wanted = json.loads(json.dumps(settings, default=str))
    wanted["recipe"].pop("workers")  # they change no result
    path = kept / SETTINGS
    if path.is_file():
        if (earlier := json.loads(path.read_text(encoding="utf-8"))) != wanted:
            (first, *_) = (key for key in wanted if earlier.get(key) != wanted[key])
            raise SailUsageError(
                f"{kept} holds a training with another {first}, which was stopped; give the same settings, another "
                f"--out, or remove it"
            )
    else:
        kept.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted), encoding="utf-8")
    return kept


def _summary(folder: Path, report: dict[str, Any]) -> str:
    text = f"{folder}: {report['parameters']:,} parameters, {len(report['classes'])} classes"
    if held_out := report.get("held_out"):
        text += f"; on {held_out['images']} held-out images: AP {held_out['map']:.3f}, AP50 {held_out['map_50']:.3f}"
    return f"{text}\ndistil it: --model.teachers.expert=Mask2FormerTeacher --model.teachers.expert.folder={folder}"
