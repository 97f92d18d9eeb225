"""`sail-lightning configs import`: an official mmengine config as one of ours."""

from __future__ import annotations

import sys
from pathlib import Path

from sail_lightning.errors import SailUsageError


def import_config(source: Path, out: Path | None = None, force: bool = False) -> int:
    """Turns an official mmengine config of Pixel-SAIL into a config for `fit -c`, and reports on every key of it.

    The file is Python and is executed; a warning on stderr says so first. With `out` the report is printed, else the
    config is printed and the report goes to stderr.

    Args:
        source: The official config, a `.py` file.
        out: YAML file to write.
        force: Overwrite `out` if it exists.

    Returns:
        The exit code.

    Raises:
        SailUsageError: `source` is no Python file, or `out` exists.
        SailError: The file is missing, its code fails, or it does not describe Pixel-SAIL.
    """
    from sail_lightning.conversion.mmengine_config import convert, read
    from sail_lightning.conversion.mmengine_config.reading import check_path

    if out is not None and out.exists() and not force:
        raise SailUsageError(f"{out} exists; give another name, or --force to overwrite it")
    check_path(source)
    sys.stderr.write(
        f"{source} is Python and is executed now, with all your rights: import only files that you trust.\n"
    )
    sys.stderr.flush()
    imported = convert(read(source))
    if out is None:
        sys.stdout.write(imported.yaml("FILE"))
        sys.stderr.write(imported.report())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(imported.yaml(str(out)), encoding="utf-8")
        print(f"{imported.report()}\n{out}: {imported.command(str(out))}")
    return 0
