"""Trains `sail-tiny` in five stages, tests it, and writes its model folder and card: `make zoo`.

    python examples/train_sail_tiny.py [--run RUN RUN RUN RUN RUN] [--out FOLDER]

With `--run`, the run folders of five finished stages are packed without training again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import torch
import yaml
from torch import nn

from sail_lightning import PixelSAIL, registry
from sail_lightning.callbacks import draw_learning_curve
from sail_lightning.cli.lightning_cli import run
from sail_lightning.cli.progress import progress_bar
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.evaluate.measure import measure
from sail_lightning.evaluate.table import markdown_table
from sail_lightning.pretrained.model_folder import read_config

FIRST = "experiment/sail_tiny_words"
LATER = (
    "experiment/sail_tiny_regions",
    "experiment/sail_tiny",
    "experiment/sail_tiny_choice",
    "experiment/sail_tiny_finish",
)
"""Configs of the stages; each of the later ones goes on top of the first and starts from the weights before it."""

CARD = """\
# sail-tiny

A Pixel-SAIL of {parameters:.2f} million parameters for 64-pixel images: one transformer (6 layers of width 128,
patches of 8 pixels), learnable upsampling to stride 4, visual prompts fused early. It was trained from nothing on the
synthetic laboratory and knows nothing else: photographs show the interface, not skill.

- Data: `LaboratorySource(split="train", max_objects=4)`, all tasks, endless; generated, no licence attached.
- Command: `make zoo`. Five stages, each from the weights of the one before, seed 0:
{stages}
  Weights are stored as float16.
- Licence: Apache-2.0.

## Metrics on held-out questions

{samples} questions a row, scenes of 2 to 4 objects, greedy answers, each metric 0 to 1. `unseen pairs` holds pairs of
colour and shape that no training scene had; `untrained` is the same model before training.

{table}

![learning curve](curve.png)

```python
from sail_lightning import Box, PixelSAIL

model = PixelSAIL.from_pretrained("sail-tiny")
answer = model.predict("scene.png", "Please segment the red circle.")
answer.text, answer.masks
model.predict("scene.png", "Describe <Prompt0>.", prompts=[Box(10, 20, 30, 40)]).text
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs=1 + len(LATER), help="run folders of the finished stages")
    parser.add_argument("--out", type=Path, default=Path("sail_lightning/zoo/sail-tiny"))
    parser.add_argument("--samples", type=int, default=2000, help="held-out questions per row of the table")
    given = parser.parse_args()
    registry.discover()
    runs = given.run or train()
    checkpoints = [folder / "checkpoints" / "last.ckpt" for folder in runs]
    PixelSAIL.load_from_checkpoint(checkpoints[-1], map_location="cpu").save_pretrained(given.out, dtype=torch.float16)
    # What is shipped is what is measured: the stored weights, read back.
    shipped = PixelSAIL.from_pretrained(given.out)
    untrained = PixelSAIL(**read_config(given.out))
    rows = {}
    for label, subject, split in (
        ("untrained", untrained, "test"),
        ("sail-tiny", shipped, "test"),
        ("sail-tiny, unseen pairs", shipped, "compositional"),
    ):
        source = LaboratorySource(split, given.samples, max_objects=4)
        rows[label] = measure(subject, source, [progress_bar("test")])
    table = markdown_table(rows)
    with tempfile.TemporaryDirectory() as folder:
        draw_learning_curve(joined([run / "metrics.csv" for run in runs], Path(folder)), given.out / "curve.png")
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in shipped.model.parameters()) / 1e6,
        stages="\n".join(map(stage_line, runs, checkpoints)),
        samples=given.samples,
        table=table,
    )
    (given.out / "README.md").write_text(card, encoding="utf-8")
    print(table)


def train() -> list[Path]:
    """All stages; returns their run folders."""
    words = run(["fit", "-c", FIRST])
    start = redraw_prompts(words.model).save_pretrained(words.folder / "model")
    folders = [words.folder]
    for config in LATER:
        name = config.rpartition("/")[2]
        stage = run(["fit", "-c", FIRST, "-c", config, f"--model.weights={start}", f"--name={name}"])
        # Read back from disk: with two processes, this one has not trained.
        trained = PixelSAIL.load_from_checkpoint(stage.folder / "checkpoints" / "last.ckpt", map_location="cpu")
        start = trained.save_pretrained(stage.folder / "model")
        folders.append(stage.folder)
    return folders


def redraw_prompts(model: PixelSAIL) -> PixelSAIL:
    """Draws new prompt embeddings, with about half the norm of patches, before the stage about regions.

    Patch embeddings have grown to a norm of 60 by then; prompts, rarely used so far, have a sixth of that and are
    nearly equal to each other, so the network cannot tell them apart. Two thousand steps on a mixture of tasks did not
    fix it; with new embeddings of norm 28 and a stage about regions alone, regions are segmented after 300.
    """
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        table = model.model.backbone.model.embed_tokens.weight
        rows = list(model.tokens.prompt_ids)
        table[rows] = 2.5 * torch.randn(len(rows), table.shape[1], generator=generator)
        nn.init.orthogonal_(model.model.prompt_encoder.proj.weight, generator=generator)
    return model


def joined(tables: list[Path], folder: Path) -> Path:
    """The metrics of several runs as one table, each run's steps after those of the run before."""
    rows: list[dict[str, str]] = []
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            offset = max((int(row["step"]) for row in rows), default=-1) + 1
            rows += [row | {"step": str(int(row["step"]) + offset)} for row in csv.DictReader(file)]
    path = folder / "metrics.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def stage_line(folder: Path, checkpoint: Path) -> str:
    """What a stage was: its packaged config, steps and minutes (from its resolved config to its last checkpoint)."""
    config = folder / "config.yaml"
    minutes = (checkpoint.stat().st_mtime - config.stat().st_mtime) / 60
    steps = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    ranks = settings["trainer"]["devices"] if isinstance(settings["trainer"]["devices"], int) else 1
    budget = settings["data"]["token_budget"]
    tasks = settings["data"]["train"]["init_args"]["tasks"]
    shares = (
        ", ".join(f"{name} {weight:g}" for name, weight in tasks.items()) if tasks else "the laboratory's own mixture"
    )
    return f"  - {steps:,} steps of {ranks} x {budget:,} tokens, {minutes:.0f} minutes on {ranks} CPU core(s): {shares}"


if __name__ == "__main__":
    main()
