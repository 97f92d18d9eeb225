"""`sail-lightning test --from FILE --out DIR`: answers that are there already, scored again without a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from sail_lightning.cli.arguments import Parser
from sail_lightning.cli.folders import output_folder
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:
    from sail_lightning.scoring import Answer

OPTION = "--from"


def asks_for(args: list[str]) -> bool:
    """Whether what follows `test` is meant for `run`."""
    return any(arg == OPTION or arg.startswith(f"{OPTION}=") for arg in args)


def add_scoring_options(parser: Parser) -> None:
    """How answers are scored: the same for every command that scores."""
    parser.add_argument("--protocol", choices=("standard", "official"), default="standard")
    parser.add_argument("--no-target", choices=("mask", "text"), default="mask", help="what says that nothing is meant")
    parser.add_argument("--combine", choices=("union", "first"), help="what several masks of an answer predict")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples for the intervals (1000)")


def held_answers(file: Path) -> Iterator[Answer]:
    """The answers of a file.

    Raises:
        SailError: it holds none, or a line is not one.
    """
    from sail_lightning.scoring import read_answers

    found = False
    for answer in read_answers(file):
        found = True
        yield answer
    if not found:
        raise SailError(f"{file} holds no answers")


def run(args: list[str]) -> int:
    """Scores files of answers and writes the report; returns the exit code."""
    parser = Parser(prog="sail-lightning test", description="Scores answers again, from anybody's file.")
    parser.add_argument(OPTION, dest="files", nargs="+", required=True, metavar="FILE", help="per_sample.jsonl")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    add_scoring_options(parser)
    parser.add_argument("--gallery", type=int, default=8, metavar="N", help="cases of each kind that are drawn (8)")
    given = parser.parse_args(args)
    if given.bootstrap < 0 or given.gallery < 0:
        raise SailUsageError("--bootstrap and --gallery must be 0 or more")
    folder = output_folder(given.out)

    from sail_lightning.scoring import score  # after --help: they import torch
    from sail_lightning.scoring.gallery import named_picture
    from sail_lightning.scoring.report import file_sums, write_report

    files = [Path(file) for file in given.files]
    reports = score(
        chain.from_iterable(map(held_answers, files)),
        protocol=given.protocol,
        no_target_from=given.no_target,
        combine=given.combine,
        bootstrap=given.bootstrap,
    )
    written = write_report(folder, reports, {"from": file_sums(files)}, named_picture, given.gallery)
    print(written.markdown.read_text(encoding="utf-8"))
    print(f"report: {written.markdown}, {written.json}, {written.per_sample}")
    return 0
