"""The modules of the package as syntax trees, for tests that search them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sail_lightning", "benchmarks", "callbacks", "configs", "plugins")


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Every module once, by its path in the repository: `plugins/attention/sdpa.py`, not the link to it."""
    found = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    names = {path: path.relative_to(ROOT).as_posix() for path in sorted(found) if "results" not in path.parts}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in names.items()}
