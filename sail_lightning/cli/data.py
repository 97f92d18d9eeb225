"""`sail-lightning data`: a look at a data set. `check` names every fault, `stats` counts, `show` draws samples."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailError, SailUsageError

EXAMPLES = """\
sail-lightning data COMMAND --help says more.

examples:
  sail-lightning data check -c my_data.yaml
  sail-lightning data show -c quickstart --split val --out sheet.png"""
CHECK = """\
Looks at each record of each source, the parts of a mixture one by one: whether its picture is there, whole and of the
size that was annotated, its masks are of that size and not empty, [SEG], masks, <PromptK> and prompts agree; whether it
is there twice, or its picture is held out for val or test; and, if the config has a model, whether it is too long.

DIR/report.md and DIR/report.json name every fault with its file, its record and the mend. The exit code is 1 if there
is any. A check that was stopped goes on where it was when it is run again.

examples:
  sail-lightning data check -c model/sail_tiny -c data/laboratory --limit 100
  sail-lightning data check -c my_data.yaml --split train --workers 8 --data.train.images=photos"""
STATS = """\
Histograms of tokens (if the config has a model), masks, prompts, mask areas and picture sizes, and a table per source.
The figures are written beside the picture, as stats.json.

example: sail-lightning data stats -c quickstart --split train --out stats.png"""
SHOW = """\
example: sail-lightning data show -c quickstart --split val --count 12 --out sheet.png
a source's arguments can be overridden: --data.train.size=128"""
SPLITS = ("train", "val", "test")


def run(args: list[str]) -> int:
    """`check`, `stats`, `show` or `convert`; returns the exit code."""
    if args[:1] == ["convert"]:
        from sail_lightning.cli import data_convert

        return data_convert.run(args[1:])
    given, rest = _parser().parse_known_args(args)
    if given.command is None:
        _parser().print_help()
        return 0
    for option in ("count", "limit", "workers"):
        value, least = getattr(given, option, None), 0 if option == "workers" else 1
        if value is not None and value < least:
            raise SailUsageError(f"--{option} must be at least {least}, not {value}")
    commands: dict[str, Callable[[Namespace, list[str]], int]] = {"check": _check, "stats": _stats, "show": _show}
    return commands[given.command](given, rest)


def _parser() -> Parser:
    parser = Parser(prog="sail-lightning data", description="A look at a data set.", epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", metavar="check|stats|show|convert")

    def add(name: str, help: str, description: str, epilog: str) -> Parser:
        prog = f"sail-lightning data {name}"
        command: Parser = commands.add_parser(name, prog=prog, help=help, description=description, epilog=epilog)
        command.add_argument("-c", "--config", action="append", required=True, help="as for fit; may be repeated")
        command.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; repeatable")
        return command

    check = add("check", "every fault of every record, with its mend", "Names every fault of a data set.", CHECK)
    check.add_argument("--split", action="append", help="train, val, test, or several with commas (all there are)")
    check.add_argument("--out", metavar="DIR", help="where the report goes (runs/check/CONFIG)")
    check.add_argument("--workers", type=int, metavar="N", help="processes that read (one per core; 0: this one)")
    check.add_argument("--limit", type=int, metavar="N", help="first records of each source (all; 1000 if endless)")
    check.add_argument("--restart", action="store_true", help="begin anew, even if an earlier check was stopped")
    stats = add("stats", "tokens, masks, prompts and sizes as histograms", "Counts what samples hold.", STATS)
    stats.add_argument("--split", choices=SPLITS, default="train")
    stats.add_argument("--count", type=int, default=1000, metavar="N", help="samples of each source (1000)")
    stats.add_argument("--out", metavar="FILE", default="stats.png", help="the picture's file (stats.png)")
    show = add(
        "show",
        "a contact sheet: pictures, masks, prompts and turns",
        "Draws samples of a data set, with their masks, prompts and turns, as one picture.",
        SHOW,
    )
    show.add_argument("--split", choices=SPLITS, default="train")
    show.add_argument("--count", type=int, default=12, help="how many samples (12)")
    show.add_argument("--out", help="the picture's file (contact_sheet_SPLIT.png)")
    commands.add_parser("convert", help="any source to JSONL or shards", add_help=False)
    return parser


def _show(given: Namespace, overrides: list[str]) -> int:
    from PIL import Image

    from sail_lightning.cli.data_config import read_source
    from sail_lightning.data.contact_sheet import contact_sheet  # after --help: it takes seconds

    path = Path(given.out or f"contact_sheet_{given.split}.png")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise SailUsageError(f"--out {path} does not end as a picture; name it {path.stem}.png")
    source = read_source(given.config, given.split, comma_list(given.plugins), overrides)
    length = given.count if source.length is None else min(given.count, source.length)
    if not length:
        raise SailError(f"data.{given.split} has no records to show")
    sheet = contact_sheet(islice((source[index] for index in range(length)), length))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SailError(f"{path} cannot be written ({reason}); name another file, such as sheet.png") from None
    print(f"{path}: {length} samples of data.{given.split}")
    return 0


def _check(given: Namespace, overrides: list[str]) -> int:
    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.cli.data_progress import progress
    from sail_lightning.data.doctor import check  # after --help: it takes seconds

    chosen = comma_list(given.split)
    if unknown := [split for split in chosen if split not in SPLITS]:
        raise SailUsageError(f"--split knows {', '.join(SPLITS)}, not {unknown[0]}")
    takes = "data check takes --data.SPLIT.ARGUMENT=VALUE and --model.ARGUMENT=VALUE"
    config = DataConfig(given.config, comma_list(given.plugins), overrides, takes=takes)
    splits = list(dict.fromkeys([*config.splits, *chosen])) or ["train"]  # one that is missing is told
    sources = {split: config.source(split) for split in splits}
    folder = Path(given.out or f"runs/check/{Path(given.config[0]).stem}")
    if folder.exists() and not folder.is_dir():
        raise SailUsageError(f"--out {folder} is a file; name the folder that the report goes to")
    workers = (os.cpu_count() or 1) if given.workers is None else given.workers
    with progress("records") as tell:
        report = check(
            sources,
            folder,
            config.encoder(),
            chosen or None,
            workers,
            given.limit,
            given.restart,
            config.fingerprint(),
            tell=tell,
        )
    named = [word for name in given.config for word in ("-c", name)]
    written = report.write(folder, shlex.join(["sail-lightning", "data", "check", *named, *overrides]))
    print(f"{report.to_text()}\n{', '.join(map(str, written))}")
    return 1 if report.faults else 0


def _stats(given: Namespace, overrides: list[str]) -> int:
    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.cli.data_progress import progress
    from sail_lightning.data.doctor import gather, leaves  # after --help: it takes seconds

    takes = f"data stats takes --data.{given.split}.ARGUMENT=VALUE and --model.ARGUMENT=VALUE"
    config = DataConfig(given.config, comma_list(given.plugins), overrides, takes=takes)
    read = leaves(given.split, config.source(given.split))
    if unreadable := [fault.message for leaf in read for fault in leaf.faults]:
        raise SailError(unreadable[0])
    with progress("samples") as tell:
        found = gather(read, given.count, config.encoder(), tell)
    print(found.to_text())
    print(", ".join(map(str, found.write(Path(given.out)))))
    return 0
