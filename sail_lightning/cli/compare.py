"""`sail-lightning compare A B`: two runs side by side, with paired significance and what changed most."""

from __future__ import annotations

import json
from pathlib import Path

from sail_lightning.cli.arguments import Parser
from sail_lightning.cli.folders import output_folder
from sail_lightning.cli.rescoring import add_scoring_options, held_answers
from sail_lightning.errors import SailError, SailUsageError

EXAMPLE = """\
example: sail-lightning compare runs/refcoco_val/version_0 runs/refcoco_val/version_1 --out runs/compared
Both runs are scored anew, in the same way, on the questions that both answered. p below 0.05 has a star."""


def run(args: list[str]) -> int:
    """Compares two runs; returns the exit code."""
    parser = Parser(
        prog="sail-lightning compare",
        description="Two runs side by side: differences, whether chance explains them, and what changed most.",
        epilog=EXAMPLE,
    )
    parser.add_argument("first", metavar="A", help="folder of a test, or its per_sample.jsonl")
    parser.add_argument("second", metavar="B")
    parser.add_argument("--out", metavar="DIR", help="also write comparison.md and comparison.json there")
    add_scoring_options(parser)
    parser.add_argument("--changed", type=int, default=20, metavar="N", help="questions that changed most (20)")
    given = parser.parse_args(args)
    if given.bootstrap < 0 or given.changed < 0:
        raise SailUsageError("--bootstrap and --changed must be 0 or more")
    folder = output_folder(given.out) if given.out else None

    from sail_lightning.scoring.compare import compare, to_markdown  # after --help: it imports torch

    first, second = (held_answers(_answers(Path(name))) for name in (given.first, given.second))
    found = compare(
        first,
        second,
        protocol=given.protocol,
        no_target_from=given.no_target,
        combine=given.combine,
        bootstrap=given.bootstrap,
        changed=given.changed,
    )
    text = to_markdown(found, given.first, given.second)
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "first": given.first,
            "second": given.second,
            "protocol": given.protocol,
            "no_target_from": given.no_target,
            "combine": given.combine or ("first" if given.protocol == "official" else "union"),
            "bootstrap": given.bootstrap,
            "benchmarks": {name: one.to_json() for name, one in found.items()},
        }
        (folder / "comparison.md").write_text(text, encoding="utf-8")
        (folder / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"comparison: {folder / 'comparison.md'}, {folder / 'comparison.json'}")
    return 0


def _answers(path: Path) -> Path:
    """The file of answers that a folder or a file means."""
    file = path / "per_sample.jsonl" if path.is_dir() else path
    if not file.is_file():
        held = f"{path} holds no per_sample.jsonl" if path.is_dir() else f"no file or folder {path}"
        raise SailError(f"{held}; give the folder of a test, or a file of answers")
    return file
