"""`sail-lightning data show`: samples of a data set as one picture."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailUsageError

EXAMPLE = """\
example: sail-lightning data show -c quickstart --split val --count 12 --out sheet.png
a source's arguments can be overridden: --data.train.size=128"""


def run(args: list[str]) -> int:
    """`show`; returns the exit code."""
    parser = Parser(prog="sail-lightning data", description="A look at a data set.")
    commands = parser.add_subparsers(dest="command", metavar="show")
    show = commands.add_parser(
        "show",
        prog="sail-lightning data show",
        help="a contact sheet: pictures, masks, prompts and turns",
        description="Draws samples of a data set, with their masks, prompts and turns, as one picture.",
        epilog=EXAMPLE,
    )
    show.add_argument("-c", "--config", action="append", required=True, help="as for fit; may be repeated")
    show.add_argument("--split", choices=("train", "val", "test"), default="train")
    show.add_argument("--count", type=int, default=12, help="how many samples (12)")
    show.add_argument("--out", help="the picture's file (contact_sheet_SPLIT.png)")
    show.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    given, rest = parser.parse_known_args(args)
    if given.command is None:
        parser.print_help()
        return 0
    if given.count < 1:
        raise SailUsageError(f"--count must be at least 1, not {given.count}")
    out = Path(given.out or f"contact_sheet_{given.split}.png")
    _show(given.config, given.split, given.count, out, comma_list(given.plugins), rest)
    return 0


def _show(configs: list[str], split: str, count: int, path: Path, plugins: list[str], overrides: list[str]) -> None:
    from jsonargparse import ArgumentError, ArgumentParser  # after --help: it takes seconds

    from sail_lightning import registry
    from sail_lightning.cli import compose
    from sail_lightning.cli.errors import check_value, explain
    from sail_lightning.data.contact_sheet import contact_sheet
    from sail_lightning.data.sources import Source

    key = f"data.{split}"
    options = [*(compose.Option("config", [name]) for name in configs), *compose.split_options(overrides)]
    if foreign := [option.name for option in options[len(configs) :] if not option.name.startswith("data.")]:
        raise SailUsageError(f"unknown option --{foreign[0]}; data show takes --data.{split}.ARGUMENT=VALUE")
    layers = compose.read_layers(options)
    registry.discover([*plugins, *compose.plugin_sources([], layers)])
    config, left = compose.apply_options(compose.merge_layers(layers), options[len(configs) :])
    left = [option for option in left if option.name == key or option.name.startswith(f"{key}.")]
    node = compose.lookup(config, key)
    if node is None and not left:
        raise SailUsageError(f"{', '.join(configs)} holds no {key}; add a data config such as -c data/laboratory")
    config = {"data": {} if node is None else {split: node}}

    whole = compose.with_options(config, left)
    check_value(Source, whole["data"][split], key)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Source, key, required=True)
    try:
        parsed = parser.parse_object(whole)
    except ArgumentError as error:
        raise SailUsageError(explain(str(error))) from None
    source = parser.instantiate(parsed)["data"][split]
    length = count if source.length is None else min(count, source.length)
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(islice((source[index] for index in range(length)), length), path)
    print(f"{path}: {length} samples of {key}")
