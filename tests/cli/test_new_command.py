"""A new command is one function in one file: listed, parsed, explained and refused as the packaged ones are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cli_harness import Command

from sail_lightning import registry
from sail_lightning.cli import command
from sail_lightning.errors import SailUsageError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "greet_command.py"
PROBE = '''
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_lightning.cli.command import command

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveFloat


def shared(*, depth: NonNegativeInt = 2) -> int:
    """What several commands share.

    Args:
        depth: How deep.
    """
    return depth


@command("data probe", section="data")
def probe(
    *overrides: str,
    from_: list[Path],
    seeds: list[NonNegativeInt] | None = None,
    names: list[str] | None = None,
    max_rate: PositiveFloat | None = None,
    dry_run: bool = False,
    show: bool | str = False,
    **options: Any,
) -> int:
    """Probes a data set.

    Args:
        from_: Files to read.
        seeds: Seeds.
        names: Names.
        max_rate: Highest rate.
        dry_run: Only say what would be done.
        show: Show one, or the first.
    """
    print([str(path) for path in from_], seeds, names, max_rate, dry_run, show, shared(**options), overrides)
    return 3
'''


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands and modules of a test are gone after it."""
    command.load_packaged()
    known, sources, modules = dict(command.COMMANDS), dict(registry.SOURCES), set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("SAIL_PLUGINS", raising=False)
    yield
    for kept, now in ((known, command.COMMANDS), (sources, registry.SOURCES), ({}, command.FAULTS)):
        now.clear()
        now.update(kept)
    for name in ("greet_command", "probe_command", "broken_command", "taken_command"):
        if name not in modules:
            sys.modules.pop(name, None)


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a command of a group, named in $SAIL_PLUGINS."""
    path = tmp_path / "probe_command.py"
    path.write_text(PROBE)
    monkeypatch.setenv("SAIL_PLUGINS", str(path))
    return path


def test_a_plugin_file_adds_a_command_with_options_and_help(sail: Command) -> None:
    file = ("--plugins", EXAMPLE)
    assert sail("greet", "sun", "--times", "2", "--tone=loud", *file).out == "HELLO, SUN\n" * 2
    shown = sail("greet", "--help", *file).out
    assert shown.startswith("usage: sail-lightning greet NAME [options]\n\nGreets somebody.\n")
    assert [line.split() for line in shown.splitlines() if "--t" in line] == [
        ["--times", "N", "How", "often", "(default:", "1)"],
        ["--tone", "{plain,loud}", "How", "it", "is", "said", "(default:", "plain)"],
    ]
    assert "  greet NAME                       Greets somebody\n" in sail("--help", *file).out


def test_a_type_that_is_not_defined_is_one_sentence(sail: Command, tmp_path: Path) -> None:
    text = Path(EXAMPLE).read_text(encoding="utf-8")
    (tmp_path / "probe_command.py").write_text(text.replace("times: PositiveInt", "times: PositivInt"))
    shown = sail("greet", "sun", "--times=x", "--plugins", tmp_path / "probe_command.py")
    assert shown.is_one_sentence(2, "the type PositivInt of times is not defined in its file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "greet needs NAME"),
        (["a", "b"], "unexpected 'b'; sail-lightning greet NAME [options]"),
        (["a", "--times=0"], "--times must be 1 or more, not 0"),
        (["a", "--times", "x"], "--times must be 1 or more, not x"),
        (["a", "--times"], "--times needs a value"),
        (["a", "--tone=rude"], "--tone must be one of plain, loud, not rude"),
        (["a", "--tome=loud"], "unknown option --tome; did you mean --tone?"),
        (["a", "-x"], "unknown option -x; there are --times, --tone, --plugins"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_one_sentence(words: list[str], message: str, sail: Command) -> None:
    assert sail("greet", "--plugins", EXAMPLE, *words).is_one_sentence(2, message)


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["--from", "a,b", "c"], "['a,b', 'c'] None None None False False 2 ()"),
        (["--from=a", "--from=b", "--seeds=0,1", "--seeds", "7"], "['a', 'b'] [0, 1, 7] None None False False 2 ()"),
        (["--from=a", "--names", "[x, 1]", "--max-rate=.5"], "['a'] None ['x', '1'] 0.5 False False 2 ()"),
        (["--from=a", "--max_rate", "2", "--dry-run"], "['a'] None None 2.0 True False 2 ()"),
        (["--from=a", "--show", "--depth=0"], "['a'] None None None False True 0 ()"),
        (["--from=a", "--show", "one"], "['a'] None None None False one 2 ()"),
        (["--from=a", "--data.x", "1", "--b"], "['a'] None None None False False 2 ('--data.x', '1', '--b')"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_types_of_a_signature_are_what_may_be_typed(words: list[str], result: str, sail: Command, probe: Path) -> None:
    shown = sail("data", "probe", *words)
    assert (shown.code, shown.out, shown.err) == (3, f"{result}\n", "")


def test_a_command_joins_a_group(sail: Command, probe: Path) -> None:
    assert "data check|convert|show|stats|probe" in sail("--help").out
    assert sail("data", "probe").is_one_sentence(2, "data probe needs --from")
    assert "--depth N " in sail("data", "probe", "--help").out
    assert sail("data", "probe", "--from=a", "--depth=-1").is_one_sentence(2, "--depth must be 0 or more, not -1")
    assert sail("data", "prob").is_one_sentence(2, "no command data prob; did you mean data probe?")


def entry(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str) -> None:
    """Installs a module as an entry point."""
    (folder / f"{name}_command.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    found = EntryPoint(name, f"{name}_command", command.ENTRY_POINTS)
    monkeypatch.setattr(command, "entry_points", lambda group: [found] if group == command.ENTRY_POINTS else [])


def test_an_installed_package_adds_a_command(sail: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, tmp_path, "greet", EXAMPLE.read_text())
    assert sail("greet", "moon").out == "hello, moon\n"
    assert "greet NAME" in sail("--help").out


def test_a_broken_installed_command_is_noted_and_breaks_nothing(
    sail: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(monkeypatch, tmp_path, "broken", "import gone_for_ever")
    assert sail("configs", "list").code == 0
    shown = sail("--help")
    assert shown.code == 0 and "not loaded: broken (?): ModuleNotFoundError" in shown.out
    assert sail("broken").is_one_sentence(2, "broken (?) cannot be imported", "gone_for_ever")


def test_a_name_is_taken_once(sail: Command, tmp_path: Path) -> None:
    path = tmp_path / "taken_command.py"
    path.write_text(EXAMPLE.read_text().replace("def greet", "def convert"))
    shown = sail("--help", "--plugins", path)
    assert shown.is_one_sentence(2, "the command convert is taken by sail_lightning.cli.commands.convert")


def test_a_wrong_decorator_is_one_sentence() -> None:
    with pytest.raises(SailUsageError, match="write @command\\(\\) with parentheses above hello"):

        @command.command  # type: ignore[arg-type]
        def hello() -> None: ...

    with pytest.raises(SailUsageError, match="'Say it loud' is not a name for a command"):
        command.command("Say it loud")(lambda: None)


def test_the_example_stands_in_the_guide_word_for_word() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```\n" in guide
