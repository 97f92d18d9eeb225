"""Trains `sail-tiny`, tests it, and writes its model folder and card: `make zoo`.

    python examples/train_sail_tiny.py [--run RUN_FOLDER] [--out FOLDER]

With `--run` a finished run is packed without training again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sail_lightning import PixelSAIL, registry
from sail_lightning.callbacks import draw_learning_curve
from sail_lightning.checkpoint import read_config
from sail_lightning.cli.lightning_cli import run
from sail_lightning.cli.progress import progress_bar
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.evaluation import measure
from sail_lightning.metrics.table import markdown_table

EXPERIMENT = "experiment/sail_tiny"
COMMAND = f"sail-lightning fit -c {EXPERIMENT}"
CARD = """\
# sail-tiny

A Pixel-SAIL of {parameters:.2f} million parameters for 64-pixel pictures: one transformer (6 layers of width 128, patches of
8 pixels), learnable upsampling to stride 4, visual prompts fused early. It was trained from nothing on the synthetic
laboratory and knows nothing else: photographs show the interface, not skill.

- Data: `LaboratorySource(split="train", max_objects=4)`, all tasks, endless; generated, no licence attached.
- Command: `{command}` (seed {seed}, {steps} steps of about 1,200 tokens, {minutes:.0f} minutes on one CPU core), then
  `python examples/train_sail_tiny.py --run RUN_FOLDER`; `make zoo` does both. Weights are stored as float16.
- Licence: Apache-2.0.

## Held-out figures

{samples} questions a row, scenes of 2 to 4 objects, greedy answers, each figure 0 to 1. `unseen pairs` holds pairs of colour
and shape that no training scene had; `untrained` is the same model before training.

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
    parser.add_argument("--run", type=Path, help="run folder of a finished training")
    parser.add_argument("--out", type=Path, default=Path("sail_lightning/zoo/sail-tiny"))
    parser.add_argument("--samples", type=int, default=2000, help="held-out questions per row of the table")
    given = parser.parse_args()
    registry.discover()
    folder = given.run or run(["fit", "-c", EXPERIMENT]).folder
    checkpoint = folder / "checkpoints" / "last.ckpt"
    model = PixelSAIL.load_from_checkpoint(checkpoint, map_location="cpu")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.save_pretrained(given.out, dtype=torch.float16)
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
    draw_learning_curve(folder / "metrics.csv", given.out / "curve.png")
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in shipped.model.parameters()) / 1e6,
        command=COMMAND,
        seed=0,
        steps=state["global_step"],
        minutes=minutes_of(folder / "metrics.csv", checkpoint),
        samples=given.samples,
        table=table,
    )
    (given.out / "README.md").write_text(card, encoding="utf-8")
    print(table)


def minutes_of(metrics: Path, checkpoint: Path) -> float:
    """How long a run took: from its resolved config, written first, to its last checkpoint."""
    return (checkpoint.stat().st_mtime - (metrics.parent / "config.yaml").stat().st_mtime) / 60


if __name__ == "__main__":
    main()
