"""The configs that ship with the package, by name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sail_lightning.cli.command import command
from sail_lightning.errors import SailUsageError

SECTION = "configs, plugins, checkpoints"


@command("configs list", section=SECTION)
def list_configs() -> None:
    """Lists the names and the purpose of each config."""
    from sail_lightning.cli.configs import config_names

    names = config_names()
    width = max(len(name) for name in names)
    for name in names:
        print(f"{name:{width}}  {_purpose(_packaged(name))}")


@command("configs show", section=SECTION)
def show(name: str) -> None:
    """Prints a config.

    Args:
        name: Its name, such as quickstart or model/sail_tiny.
    """
    print(_packaged(name).read_text(encoding="utf-8"), end="")


@command("configs copy", section=SECTION)
def copy(name: str, dest: Path | None = None, *, force: bool = False) -> None:
    """Copies a config, so that you can change it.

    Args:
        name: Its name, such as quickstart or model/sail_tiny.
        dest: A file or a folder; the current folder if left out.
        force: Overwrite an existing file.
    """
    source = _packaged(name)
    target = dest or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise SailUsageError(f"{target} exists; give another name, or --force to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: sail-lightning fit -c {target}")


@command("configs schema", section=SECTION)
def schema(*, out: Path | None = None) -> None:
    """Prints a JSON schema of configs, with which an editor completes keys and marks wrong ones.

    Args:
        out: File to write; printed if left out.
    """
    from sail_lightning.cli.config_schema import write_schema  # after --help: it takes seconds

    write_schema(out)


@command("configs import", section=SECTION)
def import_official(source: Path, *, out: Path | None = None, force: bool = False) -> int:
    """Turns an official mmengine config into one of ours, with a report on every key.

    The file is Python and is executed; a warning on stderr says so first. With --out the report is printed, else the
    config is printed and the report goes to stderr.

    Args:
        source: The official config, a .py file that you trust.
        out: YAML file to write.
        force: Overwrite an existing file.
    """
    from sail_lightning.cli.config_import import import_config  # after --help: it takes seconds

    return import_config(source, out, force)


def _packaged(name: str) -> Path:
    from sail_lightning.cli.configs import config_root, find_config

    path = config_root() / f"{name.removesuffix('.yaml')}.yaml"
    return path if path.is_file() else find_config(name)


def _purpose(path: Path) -> str:
    """Returns the first sentence of the comment after the line with the command."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ").strip() for line in lines if line.startswith("#")]
    text = " ".join(line for line in comments if line and not line.startswith("sail-lightning "))
    return re.split(r"(?<=\.) ", text)[0]
