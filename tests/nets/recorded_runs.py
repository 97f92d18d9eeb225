"""The runs whose results are recorded before the package's files moved: losses, answers, a run's files.

Run as a program (`python tests/nets/recorded_runs.py`) it records them anew, which is right only where a change is
meant to alter numbers; the change then says so.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOSSES, ANSWERS, BEFORE = HERE / "losses.json", HERE / "answers.jsonl", HERE / "before"
STEPS, QUESTIONS = 20, 200
TEACHERS = ("expert", "mask_features", "vision_tokens")
LOGGED = tuple(f"train/{name}" for name in ("loss", "language", "mask", "dice", *TEACHERS))
"""Keys of the losses that are recorded."""

COMMON = (
    *("-c", "quickstart", f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"),
    *("--trainer.enable_progress_bar=false", "--trainer.val_check_interval=1000", "--trainer.max_time=null"),
    "--model.schedule.minutes=null",  # the recorded schedule must not depend on the clock
)
MIXTURE = """
data:
  train:
    class_path: Mixture
    init_args:
      sources:
        refer: {class_path: LaboratorySource, init_args: {split: train, max_objects: 4, tasks: {refer: 1.0}}}
        words: {class_path: LaboratorySource, init_args: {max_objects: 3, tasks: {describe: 0.5, choice: 0.5}}}
        grounded: {class_path: LaboratorySource, init_args: {split: train, tasks: {caption: 0.5, vres: 0.5}}}
      weights: {refer: 0.5, words: 0.25, grounded: 0.25}
"""
RUNS: dict[str, tuple[str, ...]] = {
    "quickstart": COMMON,
    "quickstart_float64": (
        *COMMON,
        *("--trainer.precision=64-true", "--model.optimizer=AdamW", "--model.optimizer.lr=1e-3"),
    ),
    "mixture_with_teachers": (*COMMON, "-c", "mixture.yaml", "-c", "ablation/teacher_student"),
}
"""What follows `sail-lightning fit`, by the name of the run."""


def machine() -> str:
    """The kind of machine on which a result is the same to the last bit."""
    import torch

    cpu = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.partition('+')[0]}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def train(name: str, folder: Path) -> list[dict[str, float]]:
    """Runs `fit` in a folder; returns the losses of each step by their log keys."""
    from sail_lightning.cli import main

    (folder / "mixture.yaml").write_text(MIXTURE, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", *RUNS[name], f"--name={name}"]) == 0
    finally:
        os.chdir(before)
    return read_losses(folder / "runs" / name / "version_0" / "metrics.csv")


def read_losses(metrics: Path) -> list[dict[str, float]]:
    """The losses of each step in a run's metrics.csv."""
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    return [{key: float(row[key]) for key in sorted(row) if key in LOGGED and row[key]} for row in rows]


def answers() -> list[dict[str, Any]]:
    """What `sail-tiny` says to held-out questions of all tasks: text, and masks as COCO RLE."""
    from sail_lightning import PixelSAIL
    from sail_lightning.data.sources import LaboratorySource

    model = PixelSAIL.from_pretrained("sail-tiny")
    source = LaboratorySource(split="test", samples=QUESTIONS)
    found = model.predict_batch([source[index] for index in range(QUESTIONS)])
    return [
        {"question": one.question, "text": one.text, "masks": [item["segmentation"] for item in one.to_coco()]}
        for one in found
    ]


def record() -> None:
    """Writes the losses and the answers."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        losses = {name: train(name, Path(folder)) for name in RUNS}
    LOSSES.write_text(json.dumps({"machine": machine(), **losses}, indent=1) + "\n", encoding="utf-8")
    ANSWERS.write_text("".join(json.dumps(line) + "\n" for line in answers()), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    record()
    sys.exit(0)
