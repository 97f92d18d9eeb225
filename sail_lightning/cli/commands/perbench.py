"""`sail-lightning perbench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_lightning.cli.command import command
from sail_lightning.cli.folders import output_folder

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt


@command(section="data")
def perbench(
    *, out: Path, count: PositiveInt = 200, seed: NonNegativeInt = 0, split: Literal["test", "compositional"] = "test"
) -> None:
    """Writes SynthPerBench: held-out synthetic scenes in the files of PerBench.

    Captions, multiple choice and visual-text referring, to be evaluated like the benchmark.

    Examples:
        sail-lightning perbench --out data --count 200
        SAIL_DATA=data sail-lightning test -c eval/synthperbench --ckpt_path sail-tiny

    Args:
        out: Folder; the files are written to its perbench/. Set SAIL_DATA to this folder.
        count: Number of questions for each task.
        seed: Another seed draws other scenes.
        split: Scenes to draw (compositional: pairs of colour and shape that no training scene has).
    """
    folder = output_folder(out)

    from sail_lightning.data.sources import layout
    from sail_lightning.data.synthetic.perbench import SynthPerBench

    for path in SynthPerBench(count, seed, split).write(output_folder(folder / layout.PERBENCH)):
        print(path)
    print(f"evaluate: SAIL_DATA={out} sail-lightning test -c eval/synthperbench --ckpt_path MODEL")
