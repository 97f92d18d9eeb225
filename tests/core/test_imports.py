"""The rule of imports: arrows between rooms point one way.

A room is a module or a folder of the package: `errors`, `image`, `plugins`. Each room imports only rooms that stand
before it in `ROOMS`. An import counts wherever it stands: at the top of a module, in a function, under `TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sail_lightning"
BESIDE = ("benchmarks", "callbacks", "configs", "plugins")
"""Folders of the repository that are packages inside `sail_lightning`."""
ROOMS = (
    # What knows nobody, and what everybody needs.
    *("errors", "compat", "settings", "sample", "image", "sequence"),
    # The contract of plugins.
    *("registry", "interfaces"),
    # The model, in torch alone.
    *("encoding", "weights", "model", "generation", "training", "pretrained"),
    # Data, and the plugins that ship with the package.
    *("data", "features", "plugins"),
    # Measuring and Lightning.
    *("evaluate", "module"),
    # What stands on the module.
    *("callbacks", "conversion", "experts", "plugin_check", "ablation", "benchmarks", "configs", "cli", "__main__"),
)
"""All rooms, the lowest first."""
INTERFACES_KNOW = {"errors", "registry", "sequence", "settings"}
"""All that `interfaces` imports of the package."""
LIGHTNING_BELOW_MODULE = {"compat.lightning", "data.datamodule", "evaluate.measure"}
"""The modules below `module` that import Lightning; plugins never do."""


@functools.cache
def modules() -> Mapping[str, ast.Module]:
    """Every module of the package by its name below it, such as `data.jsonl`; the package itself is ``."""
    found = {}
    for home, base in [(ROOT / PACKAGE, ROOT / PACKAGE), *((ROOT / name, ROOT) for name in BESIDE)]:
        for path in sorted(home.rglob("*.py")):
            parts = list(path.relative_to(base).with_suffix("").parts)
            if home == base and parts[0] in BESIDE:
                continue  # a link to a folder of the repository
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.AST, names: Mapping[str, object]) -> Iterator[str]:
    """What code imports: modules of the package by their names below it, all others by their whole names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in whole:
            head, _, below = name.partition(".")
            if head != PACKAGE:
                yield name
                continue
            parent = below.rpartition(".")[0]
            yield below if below in names else parent


@functools.cache
def arrows() -> Mapping[str, frozenset[str]]:
    """Each module of the package to the modules of the package that it imports.

    The package's own module is left out: it is a door, which imports public names for type checkers and when they are
    asked for. What imports it takes the version.
    """
    names = modules()
    return {
        name: frozenset(set(imports(tree, names)) & names.keys() - {name, ""}) for name, tree in names.items() if name
    }


def room(module: str) -> str:
    return module.partition(".")[0]


def cycles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Groups of nodes that lead to each other."""

    @functools.cache
    def reached(start: str) -> frozenset[str]:
        seen: set[str] = set()
        queue = [start]
        while queue:
            for target in graph.get(queue.pop(), frozenset()) - seen:
                seen.add(target)
                queue.append(target)
        return frozenset(seen)

    groups = {
        tuple(sorted({node, *(other for other in reached(node) if node in reached(other))}))
        for node in graph
        if node in reached(node)
    }
    return sorted(map(list, groups))


def test_every_room_has_its_place() -> None:
    assert len(modules()) > 150
    assert {room(name) for name in modules() if name} == set(ROOMS)


def test_a_room_imports_only_rooms_before_it() -> None:
    upward = [
        f"{module} imports {target}"
        for module, targets in arrows().items()
        for target in sorted(targets)
        if room(module) != room(target) and ROOMS.index(room(module)) < ROOMS.index(room(target))
    ]
    assert upward == []


def test_modules_import_each_other_in_no_circle() -> None:
    assert cycles(arrows()) == []


def test_rooms_import_each_other_in_no_circle() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, targets in arrows().items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    assert cycles({name: frozenset(targets) for name, targets in rooms.items()}) == []


def test_interfaces_know_nearly_nobody() -> None:
    assert {room(target) for target in arrows()["interfaces"]} == INTERFACES_KNOW


def test_plugins_and_all_below_the_module_leave_lightning_alone() -> None:
    below = ROOMS[: ROOMS.index("module")]
    found = {
        name
        for name, tree in modules().items()
        if room(name) in below and any(room(target) == "lightning" for target in imports(tree, modules()))
    }
    assert found == LIGHTNING_BELOW_MODULE


@pytest.mark.parametrize("name", ["experts", "module"])
def test_what_works_with_any_plugin_imports_none(name: str) -> None:
    users = {module: targets for module, targets in arrows().items() if room(module) == name}
    assert users
    assert {room(target) for targets in users.values() for target in targets} & {"plugins", "callbacks"} == set()


def test_the_door_imports_nothing_but_old_names() -> None:
    at_once = [node for node in modules()[""].body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {target for node in at_once for target in imports(node, modules())} & modules().keys()
    assert found == {"settings"} or found == {"settings.renames"}


@pytest.mark.parametrize(
    "code",
    [
        "from sail_lightning.data import jsonl",
        "from sail_lightning.data.jsonl import read",
        "import sail_lightning.data.jsonl",
        "def f():\n    from sail_lightning.data.jsonl import read",
        "if TYPE_CHECKING:\n    from sail_lightning.data.jsonl import read",
    ],
)
def test_an_import_is_found_wherever_it_stands(code: str) -> None:
    assert list(imports(ast.parse(code), {"": None, "data": None, "data.jsonl": None})) == ["data.jsonl"]


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b"), "d": frozenset()}
    assert cycles(graph) == [["b", "c"]]
