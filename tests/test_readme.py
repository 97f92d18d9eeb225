"""README.md, CONTRIBUTING.md and docs/: every command and every piece of Python runs, every name and file exists.

Commands are run in this process, in the order of the page, on a model of a few thousand weights for one or two steps;
what one command leaves (a checkpoint, a model folder) the next one finds.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jsonargparse import typing as ranges

import sail_lightning
from sail_lightning import callbacks, errors, evaluate, registry
from sail_lightning.cli import command, main, rescoring
from sail_lightning.cli.configs import config_names
from sail_lightning.data import sources
from sail_lightning.data.sources import layout
from sail_lightning.interfaces import Dims
from sail_lightning.model import losses
from sail_lightning.pretrained import model_folder
from sail_lightning.sample import Sample

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
EXAMPLE = ROOT / "examples" / "my_upsampler.py"
METRIC = ROOT / "examples" / "boundary_iou.py"
PACKAGED = "sail-tiny"

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
SMALL_MODEL = (
    "--model.backbone.hidden_size=32",
    "--model.backbone.num_layers=1",
    "--model.backbone.num_heads=2",
    "--model.backbone.num_key_value_heads=2",
    "--model.max_new_tokens=4",
)
OVERRIDES = {
    "fit": (*QUIET, *SMALL_MODEL, "--data.token_budget=400"),
    "validate": (*QUIET, "--data.val.samples=2", "--model.max_new_tokens=2"),
    "test": (*QUIET, "--data.test.samples=2", "--model.max_new_tokens=2"),
    "predict": QUIET,
    "bench": ("--small", "--repeats=1", "--threads=1", "--no-memory"),
}
"""Put into a page's commands, so that they take a second; which plugin, config and data they name stays as it is."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Step:
    """What a reader does: a command (`words`), or a piece of Python or a file to write (`text`)."""

    place: str
    kind: str
    text: str
    words: tuple[str, ...] = ()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]) for match in found]


def commands(block: Block) -> list[list[str]]:
    """The lines of a bash block, as words; without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def shortened(words: list[str]) -> tuple[str, ...]:
    """A command as the tests run it."""
    verb, *rest = words
    if verb not in OVERRIDES or {"--print_config", "--from"} & set(rest):
        return tuple(words)
    kept = [word for word in rest if not word.startswith("--trainer.max_steps=")]
    steps = () if verb != "fit" else (f"--trainer.max_steps={2 if '--ckpt_path' in rest else 1}",)
    own = [option for option in OVERRIDES[verb] if not ("--model.weights=" in " ".join(rest) and "backbone" in option)]
    return (verb, *steps, *own, *kept)


def steps() -> list[Step]:
    """All that the pages ask a reader to do, each command once."""
    found: list[Step] = []
    seen: set[tuple[str, ...]] = set()
    for block in (block for page in PAGES for block in blocks(page)):
        place = f"{block.page.name}:{block.line}"
        if block.kind == "yaml" and (named := re.match(r"# (\S+\.yaml)\n", block.text)):
            found.append(Step(f"{place} {named[1]}", "file", block.text, (named[1],)))
        elif block.kind == "python" and not re.search(r"@(register|command)\b", block.text):
            found.append(Step(f"{place} python", "python", block.text))
        elif block.kind == "bash":
            for first, *rest in commands(block):
                words = shortened(rest) if first == "sail-lightning" else ()
                if words and words not in seen:
                    seen.add(words)
                    found.append(Step(f"{place} {' '.join(rest)}", "command", " ".join(rest), words))
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that looks like a clone to a reader, with a photograph and the run that the README starts with."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.copy(ROOT / "sail_lightning" / "data" / "photos" / "cat.jpg", folder / "photo.jpg")
    saved = re.findall(r"Save this as `(\S+)`.*?```python\n(.*?)```", PAGES[1].read_text(encoding="utf-8"), re.DOTALL)
    assert len(saved) > 5
    for name, text in saved:
        (folder / name).write_text(text, encoding="utf-8")

    plugins = {point.base: dict(point.registry.module_dict) for point in registry.swap_points()}
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    loaded, modules = dict(registry.SOURCES), examples | {Path(name).stem for name, _ in saved}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SAIL_PLUGINS", raising=False)
        patch.setattr(sys, "path", [place for place in sys.path if Path(place) != ROOT / "examples"])
        for name in modules:
            patch.delitem(sys.modules, name, raising=False)
        assert main(list(shortened(["fit", "-c", "quickstart", "--name=lab"]))) == 0
        yield folder
        for name in modules:
            sys.modules.pop(name, None)
    for base, kept in plugins.items():
        registry.SWAP_POINTS[base].registry.module_dict.clear()
        registry.SWAP_POINTS[base].registry.module_dict.update(kept)
    registry.SOURCES.clear()
    registry.SOURCES.update(loaded)


@pytest.mark.parametrize("step", steps(), ids=lambda step: step.place)
def test_what_a_page_says_to_do_works(
    step: Step, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # a reader's command is a process of its own
    if step.kind == "file":
        (desk / step.words[0]).write_text(step.text, encoding="utf-8")
    elif step.kind == "python":
        exec(compile(step.text, step.place, "exec"), {"__name__": "page"})
    else:
        code = main(list(step.words))
        assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page) if block.text.startswith("$ sail-lightning ")],
    ids=lambda block: block.text.splitlines()[0],
)
def test_quoted_output_is_what_the_command_prints(block: Block, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *quoted = block.text.splitlines()
    capsys.readouterr()
    main(shlex.split(first)[2:])
    shown = capsys.readouterr()
    printed = shown.out + shown.err
    wanted, cut, _ = "\n".join(quoted).partition("...")  # the rest is left out on the page
    assert wanted and (printed.startswith(wanted) if cut else printed == f"{wanted}\n")


def test_plugin_in_the_readme_is_the_example_word_for_word() -> None:
    assert f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```\n" in README.read_text(encoding="utf-8")


def test_metric_in_contributing_is_the_example_word_for_word() -> None:
    assert f"```python\n{METRIC.read_text(encoding='utf-8')}```\n" in PAGES[1].read_text(encoding="utf-8")


def test_table_of_sockets_lists_every_plugin_of_the_package() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {socket: set(re.findall(r"`([A-Z]\w+)`", plugins)) for socket, plugins in rows}
    registered = {
        base.__name__: {
            n for n, cls in registry.members_of(base).items() if cls.__module__.startswith("sail_lightning.")
        }
        for base in registry.SOCKETS
    }
    assert listed == registered


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [words for page in PAGES for block in blocks(page) if block.kind == "bash" for words in commands(block)]
    lines += [code.split() for page in PAGES for code in inline_code(page)]
    named = {words[words.index("make") + 1] for words in lines if "make" in words[:-1]}
    assert {"quickstart", "test", "zoo"} <= named
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", prose(page)) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    def anchors(of: Path) -> set[str]:
        titles = re.findall(r"^#+ (.+)$", prose(of), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}

    links = re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", prose(page))
    assert [f"{path}#{name}" for path, name in links if name not in anchors(page.parent / path if path else page)] == []


def test_the_index_of_what_can_be_added_counts_the_lines_of_each_example() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    rows = re.findall(r"^\| an? .*\| (\S+) \| \[(Add an? [^]]+)\]", text, re.MULTILINE)
    lines = {title: example(text, title).count("\n") for _, title in rows}
    assert len(rows) == 9
    assert {title: count for count, title in rows} == {title: str(count) for title, count in lines.items()}


def example(text: str, title: str) -> str:
    """What a page of CONTRIBUTING.md shows: the file in examples/ that it names, or else its first piece of Python."""
    page = re.search(rf"^## {title}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if page is None:
        return ""
    if file := re.search(r"`(examples/\w+\.py)`", page[0]):
        return (ROOT / file[1]).read_text(encoding="utf-8")
    shown = re.search(r"^```python\n(.*?)^```$", page[0], re.MULTILINE | re.DOTALL)
    return shown[1] if shown else ""


def test_the_rule_of_imports_is_quoted_from_its_test() -> None:
    tree = ast.parse((ROOT / "tests" / "core" / "test_imports.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS"
    )
    quoted = re.search(r"<!-- rooms: begin.*?```text\n(.*?)```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL)
    assert quoted is not None
    assert re.findall(r"\w+", quoted[1]) == re.findall(r"'(\w+)'", ast.unparse(value))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_configs_in_the_text_exist(page: Path) -> None:
    made_by_runs = ("runs/", "checkpoints/", "overlays/", "dist/", "val/", "test/")
    of_data_sets = tuple(f"{Path(place).parts[0]}/" for name, place in vars(layout).items() if name.isupper())
    configs = {*config_names(), *(f"{name}.yaml" for name in config_names())}
    places = (ROOT, ROOT / "sail_lightning", ROOT / "configs")
    named = [code for code in inline_code(page) if re.fullmatch(r"[\w.-]+/[\w./-]*|\w+\.py", code)]
    absent = [name for name in named if name not in configs and not any((place / name).exists() for place in places)]
    own = re.findall(r"Save this as `(\S+)`", prose(page))
    assert [name for name in absent if not name.startswith((*made_by_runs, *of_data_sets)) and name not in own] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_classes_in_the_text_exist(page: Path) -> None:
    known = {*sail_lightning.__all__, *callbacks.__all__, *dir(torch.optim), *dir(losses), Dims.__name__}
    known |= {*sources.__all__, *evaluate.__all__, Sample.__name__, *dir(errors), *dir(ranges), *dir(rescoring)}
    for point in registry.swap_points():
        known |= {point.base.__name__, *point.members}
    named = {
        code for code in inline_code(page) if re.fullmatch(r"[A-Z]\w*[a-z]\w*", code) and code != code.capitalize()
    }
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {name for code in inline_code(page) for name in re.findall(r"(?<!\S)(-c\b|--[a-z][\w.-]*)", code)}
    command.load_packaged()
    command.load_users(["--plugins", str(ROOT / "examples" / "greet_command.py")])
    try:
        assert main(["--help"]) == 0
        for name in command.COMMANDS:
            assert main([*name.split(), "--help"]) == 0
    finally:
        command.COMMANDS.pop("greet")
        sys.modules.pop("greet_command")
    helped = capsys.readouterr().out
    assert [name for name in sorted(named) if not re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", helped)] == []


# -- figures ----------------------------------------------------------------------------------------------------------


def marked(name: str) -> str:
    """What stands between the marks of a part that is filled with real output."""
    found = re.search(rf"<!-- {name}: begin.*?-->\n(.*?)<!-- {name}: end -->", README.read_text(), re.DOTALL)
    assert found is not None, f"README.md has no part {name}"
    return found[1]


def table(text: str) -> dict[str, dict[str, str]]:
    """Rows of the first Markdown table in a text, by name."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: dict(zip(cells[0][1:], values, strict=True)) for name, *values in cells[2:]}


def test_last_line_of_the_quickstart_is_quoted_with_its_figures() -> None:
    last = marked("quickstart-output").rstrip("`\n ").splitlines()[-1]
    figures = ("scratch_ciou", "ciou", "giou", "n_acc", "t_acc", "mcq", "exact", "minutes")
    value = r"\d+\.\d+"
    expected = " ".join(f"{name}={value}" for name in figures)
    assert re.fullmatch(rf"quickstart: {expected} report=runs/quickstart/report\.md", last)


def test_figures_of_the_packaged_model_are_those_of_its_card() -> None:
    card = table((model_folder.locate(PACKAGED) / model_folder.CARD).read_text(encoding="utf-8"))
    quoted = table(marked("sail-tiny-results"))
    assert PACKAGED in quoted and set(quoted) <= set(card)
    for name, row in quoted.items():
        assert row == {metric: card[name].get(metric) for metric in row}
