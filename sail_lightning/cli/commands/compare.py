"""`sail-lightning compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.command import command
from sail_lightning.cli.folders import output_folder
from sail_lightning.cli.rescoring import ScoringOptions, load_records
from sail_lightning.cli.tested_rules import TestedRules
from sail_lightning.errors import SailError

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt


@command(section="compare")
def compare(
    first: Path, second: Path, *, out: Path | None = None, changed: NonNegativeInt = 20, **scoring: Any
) -> None:
    """Compares two tests side by side, with significance.

    Both are scored again by the same rules, on the questions that both answered: by those of their tests (report.json),
    unless options say otherwise. Shows differences with p values (below 0.05 with a star), and the questions that
    changed most.

    Examples:
        sail-lightning compare runs/refcoco_val/version_0 runs/refcoco_val/version_1 --out runs/compared

    Args:
        first: Folder of a test, or its per_sample.jsonl.
        second: Folder or file of the test to compare it with.
        out: Folder in which to write comparison.md and comparison.json as well.
        changed: Number of questions to show that changed most.
    """
    options = ScoringOptions(**scoring)
    folder = output_folder(out) if out else None

    from sail_lightning.evaluate.comparison import compare, to_markdown  # after --help: it imports torch

    files = [_answers(path) for path in (first, second)]
    tested = TestedRules(files)
    options = tested.filled(options)
    one, other = map(load_records, files)
    found = compare(one, other, **options.arguments(), changed=changed, metrics=tested.own_metrics(options))
    text = to_markdown(found, str(first), str(second))
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        combine = options.combine or ("first" if options.protocol == "official" else "union")
        content = {
            "first": str(first),
            "second": str(second),
            **options.arguments(),
            "combine": combine,
            "benchmarks": {name: one.to_json() for name, one in found.items()},
        }
        (folder / "comparison.md").write_text(text, encoding="utf-8")
        (folder / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"comparison: {folder / 'comparison.md'}, {folder / 'comparison.json'}")


def _answers(path: Path) -> Path:
    """The file of answers in a folder, or the file itself."""
    file = path / "per_sample.jsonl" if path.is_dir() else path
    if not file.is_file():
        held = f"{path} holds no per_sample.jsonl" if path.is_dir() else f"no file or folder {path}"
        raise SailError(f"{held}; give the folder of a test, or a file of answers")
    return file
