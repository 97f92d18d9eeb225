"""`sail-lightning data check`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_lightning.cli.command import command
from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt


@command("data check", section="data")
def check(
    *overrides: str,
    config: list[Path],
    split: list[Literal["train", "val", "test"]] | None = None,
    out: Path | None = None,
    workers: NonNegativeInt | None = None,
    limit: PositiveInt | None = None,
    restart: bool = False,
) -> int:
    """Names every fault of a data set: its file, its record and how to fix it.

    Checks each record of each source, one source of a mixture after another: whether its image exists, is complete and
    has the annotated size; whether its masks have that size and are not empty; whether [SEG], masks, <PromptK> and
    prompts agree; whether it is a duplicate, or its image is held out for val or test; and, if the config has a model,
    whether it is too long.

    OUT/report.md and OUT/report.json name every fault. The exit code is 1 if there is any. A check that was stopped
    resumes when the command is given again.

    Examples:
        sail-lightning data check -c model/sail_tiny -c data/laboratory --limit 100
        sail-lightning data check -c my_data.yaml --split train --workers 8 --data.train.images=photos

    Args:
        config: A config, as for fit; may be repeated.
        split: Splits to check; all of the config if left out.
        out: Folder of the report; runs/check/CONFIG if left out.
        workers: Processes that read; one per core if left out, 0 is this one.
        limit: Number of records of each source, the first ones; all if left out (1000 for a source without end).
        restart: Start again, even if an earlier check was stopped.
    """
    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.cli.data_progress import progress
    from sail_lightning.data.doctor import check  # after --help: it takes seconds

    names = [path.as_posix() for path in config]
    takes = "data check takes --data.SPLIT.ARGUMENT=VALUE and --model.ARGUMENT=VALUE"
    described = DataConfig(names, [], overrides, takes=takes)
    splits = list(dict.fromkeys([*described.splits, *(split or [])])) or ["train"]  # one that is missing is reported
    sources = {name: described.source(name) for name in splits}
    folder = out or Path("runs/check", config[0].stem)
    if folder.exists() and not folder.is_dir():
        raise SailUsageError(f"--out {folder} is a file; give a folder for the report")
    readers = (os.cpu_count() or 1) if workers is None else workers
    encoder, fingerprint = described.encoder(), described.fingerprint()
    with progress("records") as advance:
        report = check(sources, folder, encoder, split, readers, limit, restart, fingerprint, tell=advance)
    named = [word for name in names for word in ("-c", name)]
    written = report.write(folder, shlex.join(["sail-lightning", "data", "check", *named, *overrides]))
    print(f"{report.to_text()}\n{', '.join(map(str, written))}")
    return 1 if report.faults else 0
