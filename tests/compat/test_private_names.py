"""Private names of libraries stay in `sail_lightning/compat`, where tests hold each of them."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_sources import sources

import sail_lightning

PACKAGE = Path(sail_lightning.__file__).parent
ALLOWED = ("sail_lightning/compat/", "plugins/attention/xformers.py")
"""Where private names may be used; the second is all that knows xformers."""
STANDARD = {"_replace", "_asdict", "_fields", "_make", "_exit"}
"""Documented names of the standard library."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree: ast.Module) -> set[str]:
    """Private names that a module defines: functions, classes, variables of the module or a class, and attributes that
    are stored in `self` or `cls`. An attribute that is stored in another object is that object's own."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else set()
        if isinstance(node, ast.Module | ast.ClassDef):
            names |= {name.id for line in node.body for name in stored(line)}
    return {name for name in names if is_private(name)}


def stored(statement: ast.stmt) -> Iterator[ast.Name]:
    """Names that a statement assigns, without those inside functions and classes."""
    if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield from (
            node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        )


def foreign_names(tree: ast.Module, own: set[str]) -> set[str]:
    """Private names that a module imports from libraries, or takes from objects though no module of ours has them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sail_lightning"):
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | STANDARD:
            found.add(node.attr)
    return found


def test_private_names_of_libraries_are_used_in_compat_only() -> None:
    trees = {path: tree for path, tree in sources().items() if not path.startswith(ALLOWED)}
    assert len(trees) > 100
    own = set().union(*map(defined, trees.values()))
    found = {path: sorted(names) for path, tree in trees.items() if (names := foreign_names(tree, own))}
    assert found == {}, "use these through sail_lightning.compat, with a test there"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from lightning.pytorch.core.saving import _load_state", {"_load_state"}),
        ("layer._compiled_call_impl()", {"_compiled_call_impl"}),
        ("from sail_lightning.registry import _own\nself._own\nself._replace", set()),
    ],
)
def test_foreign_names_are_told_from_our_own(code: str, names: set[str]) -> None:
    assert foreign_names(ast.parse(code), {"_own"}) == names


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("_a = 1\ndef _b(): _c = 1\nclass _D:\n    _e: int = 1", {"_a", "_b", "_D", "_e"}),
        ("class D:\n    def f(self): self._g = 1\n    @classmethod\n    def h(cls): cls._i = 1", {"_g", "_i"}),
        ("library._is_builtin_module = mine", set()),
    ],
)
def test_what_is_stored_in_another_object_is_not_our_own(code: str, names: set[str]) -> None:
    assert defined(ast.parse(code)) == names


def classes_of_ours() -> Iterator[type]:
    seen: set[type] = set()
    for module in pkgutil.walk_packages([str(PACKAGE)], "sail_lightning."):
        if module.name.endswith("__main__") or module.name.startswith("sail_lightning.compat"):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and cls.__module__ == module.name and cls not in seen:
                seen.add(cls)
                yield cls


LIBRARIES = frozenset({"jsonargparse", "lightning", "torch", "torchmetrics", "transformers"})


@functools.cache
def private_names_of(base: type) -> frozenset[str]:
    """Private names that a class of a library defines, or stores in its instances."""
    stored = re.findall(r"self\.(_\w+)\s*[:=]", inspect.getsource(base))
    return frozenset(name for name in (*vars(base), *stored) if is_private(name))


def overridden(cls: type) -> set[str]:
    """Private names of a class that the classes of libraries it derives from have too."""
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
    if not bases:
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return used & frozenset().union(*map(private_names_of, bases))


def test_no_class_of_ours_uses_or_overrides_a_private_name_of_its_base() -> None:
    classes = list(classes_of_ours())
    assert len(classes) > 100
    found = {cls.__qualname__: sorted(names) for cls in classes if (names := overridden(cls))}
    assert found == {}, "derive from a class of sail_lightning.compat that names it, with a test there"
