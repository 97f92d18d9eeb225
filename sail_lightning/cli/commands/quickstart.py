"""`sail-lightning quickstart`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_lightning.cli.command import command

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt

PHOTO_QUESTION = "Please segment the white object."
REFER_KEYS = ("ciou", "giou", "n_acc", "t_acc", "pr@0.5")
HEADLINE = {
    "ciou": "ciou",
    "giou": "giou",
    "n_acc": "n_acc",
    "t_acc": "t_acc",
    "mcq": "mcq_accuracy",
    "exact": "exact_match",
}


@command(section="train and use a model")
def quickstart(
    *,
    out: Path = Path("runs/quickstart"),
    model: str = "sail-tiny",
    steps: PositiveInt | None = None,
    samples: PositiveInt = 600,
) -> None:
    """Trains, tests and predicts from nothing, in minutes.

    Trains a small referring model from nothing (at most 7 minutes), tests it and the packaged sail-tiny on held-out
    data, and predicts on held-out scenes and photographs.

    Args:
        out: Folder of the report and the run.
        model: The trained model to test: a folder or a packaged name.
        steps: Train this many steps only.
        samples: Held-out questions per test.
    """
    start = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _run(out, model, steps, samples, start)


def _run(out: Path, name: str, steps: int | None, samples: int, start: float) -> None:
    from sail_lightning import registry
    from sail_lightning.callbacks import draw_learning_curve
    from sail_lightning.cli.lightning_cli import run as run_verb
    from sail_lightning.cli.progress import progress_bar
    from sail_lightning.data.sources import LaboratorySource
    from sail_lightning.evaluate.measure import measure
    from sail_lightning.evaluate.table import markdown_table, write_csv
    from sail_lightning.module import PixelSAIL
    from sail_lightning.pretrained.model_folder import read_config

    registry.discover()
    _print_stage(1, "train a referring model from nothing")
    limits = [] if steps is None else [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    fit = run_verb(["fit", "-c", "quickstart", f"--runs={out}", "--name=scratch", *limits])
    scratch: PixelSAIL = fit.model
    folder = scratch.save_pretrained(out / "scratch-model")

    _print_stage(2, "test it, and the same model untrained, on held-out questions")
    refer = LaboratorySource("test", samples, max_objects=4, tasks={"refer": 1.0})
    untrained = PixelSAIL(**read_config(folder))
    rows = {
        "untrained": measure(untrained, refer, [progress_bar("test")]),
        "from scratch": measure(scratch, refer, [progress_bar("test")]),
    }

    _print_stage(3, f"test {name} on all tasks")
    model = PixelSAIL.from_pretrained(name)
    splits: dict[str, Literal["test", "compositional"]] = {name: "test", f"{name}, unseen pairs": "compositional"}
    for label, split in splits.items():
        source = LaboratorySource(split, samples, max_objects=4)
        rows[label] = measure(model, source, [progress_bar("test")])

    _print_stage(4, f"predict with {name} on held-out scenes and on photographs")
    scenes = _draw_scenes(model, out / "scenes")
    photos = Path(__file__).parents[2] / "data" / "photos"
    asked = (f"--data.images={photos}", f"--data.text={PHOTO_QUESTION}")
    photo_run = run_verb(["predict", f"--ckpt_path={name}", *asked, f"--runs={out}", "--name=photos"])

    write_csv(rows, out / "metrics.csv")
    curve = draw_learning_curve(fit.folder / "metrics.csv", out / "learning_curve.png")
    minutes = (time.perf_counter() - start) / 60
    table = markdown_table(rows)
    report = out / "report.md"
    report.write_text(_report(table, curve.name, scenes, photo_run.folder.relative_to(out), minutes), encoding="utf-8")
    print(f"\n{table}\n")
    print(f"metrics table:  {report} and {out / 'metrics.csv'}")
    print(f"learning curve: {curve}")
    print(f"overlays:       {out / 'scenes'} and {photo_run.folder / 'overlays'}")
    metrics = " ".join(f"{key}={rows[name].get(metric, float('nan')):.3f}" for key, metric in HEADLINE.items())
    print(
        f"quickstart: scratch_ciou={rows['from scratch']['ciou']:.3f} {metrics} minutes={minutes:.1f} report={report}",
        flush=True,
    )


def _draw_scenes(model: object, folder: Path, count: int = 12) -> list[str]:
    """Writes overlays of answers to held-out questions, one of each kind in turn; returns the file names."""
    from sail_lightning.data.sources import LaboratorySource
    from sail_lightning.module import PixelSAIL

    assert isinstance(model, PixelSAIL)
    source = LaboratorySource("test", count, max_objects=4, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index, prediction in enumerate(model.predict_batch([source[i] for i in range(count)])):
        names.append(f"{index:02d}.png")
        prediction.overlay().save(folder / names[-1])
    return names


def _report(table: str, curve: str, scenes: list[str], photos: Path, minutes: float) -> str:
    import torch

    images = " ".join(f"![](scenes/{name})" for name in scenes)
    return f"""# Quickstart report

Metrics on held-out questions, 0 to 1. The first two rows answer referring questions only; the others all tasks of the
laboratory. `unseen pairs` holds pairs of colour and shape that no training scene had.

{table}

![learning curve]({curve})

Answers to held-out questions:

{images}

Answers about photographs (the models have only seen drawn scenes): [{photos}]({photos}/predictions.jsonl)

{minutes:.1f} minutes, {torch.get_num_threads()} threads, torch {torch.__version__}.
"""


def _print_stage(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)
