"""`sail-lightning data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_lightning.cli.command import command
from sail_lightning.errors import SailError

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt


@command("data stats", section="data")
def stats(
    *overrides: str,
    config: list[Path],
    split: Literal["train", "val", "test"] = "train",
    count: PositiveInt = 1000,
    out: Path = Path("stats.png"),
) -> None:
    """Counts tokens, masks, prompts and sizes of samples, as histograms.

    Histograms of tokens (if the config has a model), masks, prompts, mask areas and image sizes, and a table per
    source. The numbers are written beside the image, as stats.json.

    Examples:
        sail-lightning data stats -c quickstart --split train --out stats.png

    Args:
        config: A config, as for fit; may be repeated.
        split: Part of the data.
        count: Number of samples of each source.
        out: Image file of the histograms.
    """
    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.cli.data_progress import progress
    from sail_lightning.data.doctor import flatten_sources, gather  # after --help: it takes seconds

    takes = f"data stats takes --data.{split}.ARGUMENT=VALUE and --model.ARGUMENT=VALUE"
    described = DataConfig([path.as_posix() for path in config], [], overrides, takes=takes)
    read = flatten_sources(split, described.source(split))
    if unreadable := [fault.message for leaf in read for fault in leaf.faults]:
        raise SailError(unreadable[0])
    with progress("samples") as advance:
        found = gather(read, count, described.encoder(), advance)
    print(found.to_text())
    print(", ".join(map(str, found.write(out))))
