"""What keeps the package usable beyond Linux: no POSIX-only imports, text files in UTF-8, links that may be missing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest
import torch
from package_sources import sources

from sail_lightning.callbacks.throughput import peak_memory

POSIX_ONLY = frozenset(
    {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios", "tty"}
)
"""Modules of the standard library that Windows lacks."""
ARCHIVES = frozenset({"tarfile", "zipfile"})
"""Modules whose `open` reads and writes bytes in any mode."""


def at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when a module is imported: all but those in functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(child)


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in at_import(tree):
        found = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        names |= {name.split(".")[0] for name in found}
    return names


def reads_in_the_systems_encoding(tree: ast.Module) -> list[int]:
    """Lines that open a text file without an encoding; Windows would not read it as UTF-8."""
    lines: list[int] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if getattr(getattr(node.func, "value", None), "id", "") in ARCHIVES:
            continue
        modes = [
            value.value
            for value in [*node.args, *(word.value for word in node.keywords)]
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and len(value.value) <= 3
        ]
        text_mode = bool(modes) and set(modes[0]) <= set("rwax+t")
        builtin = isinstance(node.func, ast.Name) and not any("b" in mode for mode in modes)
        if name in ("read_text", "write_text") or (name == "open" and (text_mode or builtin)):
            lines.append(node.lineno)
    return lines


def test_no_module_imports_what_only_posix_systems_have() -> None:
    trees = sources()
    assert len(trees) > 150
    found = {path: sorted(names) for path, tree in trees.items() if (names := imported(tree) & POSIX_ONLY)}
    assert found == {}, "import it in the function that needs it, and say what happens without it"


def test_text_files_are_opened_with_an_encoding() -> None:
    found = {path: lines for path, tree in sources().items() if (lines := reads_in_the_systems_encoding(tree))}
    assert found == {}, "add encoding='utf-8'"


@pytest.mark.parametrize(
    ("code", "posix", "text"),
    [
        ("import os, resource", {"resource"}, []),
        ("try:\n    from fcntl import flock\nexcept ImportError:\n    pass", {"fcntl"}, []),
        ("def peak():\n    import resource", set(), []),
        ("a.read_text()\nb.open('w')\nopen(c)\nopen(d, 'rb')\ne.read_text(encoding='utf-8')", set(), [1, 2, 3]),
    ],
)
def test_the_searches_find_what_they_look_for(code: str, posix: set[str], text: list[int]) -> None:
    tree = ast.parse(code)
    assert imported(tree) & POSIX_ONLY == posix and reads_in_the_systems_encoding(tree) == text


def test_without_the_resource_module_no_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) is None
