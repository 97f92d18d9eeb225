"""`sail-lightning configs`: the configs that ship with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.cli.config_import import import_config
from sail_lightning.cli.packaged import config_names, config_root, find_config
from sail_lightning.errors import SailUsageError


def run(args: list[str]) -> int:
    """`list`, `show NAME`, `copy NAME [DEST]` or `import OFFICIAL`; returns the exit code."""
    parser = Parser(prog="sail-lightning configs", description="The configs that ship with the package.")
    commands = parser.add_subparsers(dest="command", metavar="list|show|copy|schema|import")
    commands.add_parser("list", help="names, and what each is for", prog="sail-lightning configs list")
    show = commands.add_parser("show", help="print one", prog="sail-lightning configs show")
    show.add_argument("name")
    copy = commands.add_parser("copy", help="copy one, to change it", prog="sail-lightning configs copy")
    copy.add_argument("name")
    copy.add_argument("dest", nargs="?", help="a file or a folder; this folder if left out")
    copy.add_argument("--force", action="store_true", help="overwrite a file that is there")
    official = commands.add_parser(
        "import", help="an official mmengine config as one of ours", prog="sail-lightning configs import"
    )
    official.add_argument(
        "source", metavar="OFFICIAL.py", help="it is Python and is executed: only files that you trust"
    )
    official.add_argument("--out", metavar="FILE", help="YAML file to write; printed if left out")
    official.add_argument("--force", action="store_true", help="overwrite a file that is there")
    schema = commands.add_parser("schema", help="a JSON schema, for editors", prog="sail-lightning configs schema")
    schema.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")
    schema.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    given = parser.parse_args(args)
    if given.command == "import":
        return import_config(Path(given.source), Path(given.out) if given.out else None, given.force)
    if given.command == "schema":
        from sail_lightning.cli.config_schema import write_schema  # it takes seconds

        write_schema(given.out, comma_list(given.plugins))
    elif given.command == "show":
        print(_packaged(given.name).read_text(encoding="utf-8"), end="")
    elif given.command == "copy":
        _copy(given.name, given.dest, given.force)
    else:
        names = config_names()
        width = max(len(name) for name in names)
        for name in names:
            print(f"{name:{width}}  {_purpose(_packaged(name))}")
    return 0


def _packaged(name: str) -> Path:
    path = config_root() / f"{name.removesuffix('.yaml')}.yaml"
    return path if path.is_file() else find_config(name)


def _purpose(path: Path) -> str:
    """The first comment line after the one with the command."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ").strip() for line in lines if line.startswith("#")]
    return next((line for line in comments if line and not line.startswith("sail-lightning ")), "")


def _copy(name: str, dest: str | None, force: bool) -> None:
    source = _packaged(name)
    target = Path(dest or source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise SailUsageError(f"{target} exists; give another name, or --force to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: sail-lightning fit -c {target}")
