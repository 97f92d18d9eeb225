"""`sail-lightning data show`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_lightning.cli.command import command
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt


@command("data show", section="data")
def show(
    *overrides: str,
    config: list[Path],
    split: Literal["train", "val", "test"] = "train",
    count: PositiveInt = 12,
    out: Path | None = None,
) -> None:
    """Draws samples of a data set, with their masks, prompts and turns, as one image.

    A source's arguments can be overridden: --data.train.size=128.

    Examples:
        sail-lightning data show -c quickstart --split val --count 12 --out sheet.png

    Args:
        config: A config, as for fit; may be repeated.
        split: Part of the data.
        count: Number of samples.
        out: Image file; contact_sheet_SPLIT.png if left out.
    """
    from PIL import Image

    from sail_lightning.cli.data_config import read_source
    from sail_lightning.data.contact_sheet import contact_sheet  # after --help: it takes seconds

    path = out or Path(f"contact_sheet_{split}.png")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise SailUsageError(f"--out {path} is not the name of an image file; use {path.stem}.png")
    source = read_source([name.as_posix() for name in config], split, [], overrides)
    length = count if source.length is None else min(count, source.length)
    if not length:
        raise SailError(f"data.{split} has no records to show")
    sheet = contact_sheet(islice((source[index] for index in range(length)), length))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SailError(f"{path} cannot be written ({reason}); name another file, such as sheet.png") from None
    print(f"{path}: {length} samples of data.{split}")
