"""The wheel holds what the checkout holds and runs, the pins fit the ranges, the folders at the top are one package."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from sail_lightning import registry
from sail_lightning.interfaces import Dims, Upsampler

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
PHOTOS = ROOT / "sail_lightning/data/photos"
TOP = ("benchmarks", "callbacks", "configs", "plugins")
"""Folders at the top of the repository that are sub-packages of sail_lightning."""
NOT_SOURCE = [".git", ".venv", ".uv", "runs", "quickstart", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"]
"""Left out of the copy that archives are built from."""


def source_folder(package: str) -> Path:
    """The folder of a package in the repository, by the longest entry of setuptools' `package-dir`."""
    directories = SETUPTOOLS["package-dir"]
    parent = max((name for name in directories if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT / directories[parent] / package.removeprefix(parent).lstrip(".").replace(".", "/")


def source_files() -> Iterator[tuple[str, Path]]:
    """Each file of the package: its path in a wheel, its path in the repository. Links are not followed."""
    for folder in ("sail_lightning", *TOP):
        prefix = f"sail_lightning/{folder}" if folder in TOP else folder
        for directory, _, names in os.walk(ROOT / folder):
            for path in (Path(directory) / name for name in names):
                # Measured results are not shipped.
                if not {"__pycache__", "results"} & set(path.parts) and not path.is_symlink():
                    yield f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}", path


def requirements() -> Iterator[Requirement]:
    """All ranges of pyproject.toml, extras included."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    for line in [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]:
        yield Requirement(line)


def operators(wanted: Requirement) -> set[str]:
    return {part.operator for part in wanted.specifier}


def pins() -> Iterator[str]:
    return (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command, away from the checkout."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SAIL_PLUGINS")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def own_plugins(base: type) -> list[str]:
    """The plugins of a socket that the package ships; other tests and `$SAIL_PLUGINS` may register more."""
    return [
        name for name, cls in registry.members_of(base).items() if cls.__module__.startswith("sail_lightning.plugins.")
    ]


def test_package_list_names_every_folder_that_holds_an_init() -> None:
    inits = (name for name, path in source_files() if path.name == "__init__.py")
    assert set(SETUPTOOLS["packages"]) == {name.removesuffix("/__init__.py").replace("/", ".") for name in inits}


def test_every_package_has_its_folder() -> None:
    assert [name for name in SETUPTOOLS["packages"] if not (source_folder(name) / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", TOP)
def test_links_inside_the_package_are_relative(name: str) -> None:
    link = ROOT / "sail_lightning" / name
    if not link.is_symlink():
        pytest.skip("checked out without symbolic links")
    assert Path(os.readlink(link)) == Path("..") / name


@pytest.mark.parametrize("name", TOP)
def test_folder_refuses_to_be_imported_by_its_bare_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=rf"import sail_lightning\.{name}, not {name}"):
        importlib.import_module(name)


def test_pins_are_names_and_versions_only() -> None:
    shape = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z0-9_<>=!.'() ]+)?", re.IGNORECASE)
    assert [line for line in pins() if not shape.fullmatch(line)] == []


def test_pins_lie_within_the_ranges_of_pyproject() -> None:
    versions = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, pins())}
    outside = {
        str(wanted): versions.get(canonicalize_name(wanted.name))
        for wanted in requirements()
        if versions.get(canonicalize_name(wanted.name)) not in wanted.specifier
    }
    assert outside == {}


def test_every_range_ends_at_what_was_tested() -> None:
    open_ended = [str(wanted) for wanted in requirements() if not {"<", "<=", "==", "~="} & operators(wanted)]
    assert open_ended == []


def test_every_library_that_is_imported_is_declared() -> None:
    imported: dict[str, str] = {}
    for name, path in source_files():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0]: name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported[node.module.split(".")[0]] = name
    distributions = packages_distributions()
    declared = {canonicalize_name(wanted.name) for wanted in requirements()}
    undeclared = {
        module: where
        for module, where in imported.items()
        if module not in sys.stdlib_module_names
        and module != "sail_lightning"
        and declared.isdisjoint(canonicalize_name(name) for name in distributions.get(module, [module]))
    }
    assert undeclared == {}


@pytest.mark.parametrize("path", sorted(PHOTOS.glob("*.jpg")), ids=lambda path: path.name)
def test_photograph_is_small_and_has_its_licence_beside_it(path: Path) -> None:
    with Image.open(path) as image:
        assert image.mode == "RGB" and max(image.size) <= 384
    assert path.stat().st_size <= 60_000
    (row,) = re.findall(rf"^\| `{path.name}` .*", (PHOTOS / "LICENSES.md").read_text(), re.MULTILINE)
    assert re.search(r"\| (CC0|public domain): \"", row)


def test_the_upsampler_of_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert code is not None
    # A name of its own: other tests follow the page to the letter, and one process may know a name once only.
    (tmp_path / "contributed_upsampler.py").write_text(code[1].replace("NearestUpsampler", "ContributedUpsampler"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(registry.members_of(Upsampler))
    registry.load("contributed_upsampler")
    try:
        (name,) = set(registry.members_of(Upsampler)) - before
        plugin = registry.members_of(Upsampler)[name]()
        dims = plugin.build(Dims(hidden_size=8, patch_size=16))
        ratio = 16 // dims.feature_stride
        assert plugin(torch.randn(2, 8, 3, 5)).shape == (2, dims.feature_channels, 3 * ratio, 5 * ratio)
    finally:
        del registry.SOCKETS[Upsampler].module_dict[name]
        del registry.SOURCES["contributed_upsampler"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a copy of this tree, and the wheel built from that archive; no network is used."""
    folder = tmp_path_factory.mktemp("archives")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"], folder)
    return next((folder / "dist").glob("*.tar.gz")), next((folder / "dist").glob("*.whl"))


def test_source_archive_holds_files_only(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        members = archive.getmembers()
    assert [member.name for member in members if not (member.isfile() or member.isdir())] == []
    assert {"LICENSE", "NOTICE", "Makefile", "constraints.txt"} <= {Path(member.name).name for member in members}


def test_wheel_holds_exactly_the_files_of_the_package(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == {name for name, _ in source_files()}


PROBE = """
import importlib.metadata, importlib.resources, json
import sail_lightning
configs = importlib.resources.files("sail_lightning.configs")
photos = importlib.resources.files("sail_lightning.data") / "photos"
print(json.dumps({
    "file": sail_lightning.__file__,
    "versions": [importlib.metadata.version("sail-lightning"), sail_lightning.__version__],
    "quickstart": configs.joinpath("quickstart.yaml").read_text(),
    "photos": sorted(path.name for path in photos.iterdir()),
}))
"""


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel in it, which sees this one's libraries but not the checkout.

    This environment's `.pth` files, by which an editable install works, are not read from there.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    (library,) = folder.glob("lib/python*/site-packages")
    (library / "libraries.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    python = folder / "bin/python"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, archives[1]], check=True
    )
    return folder / "bin"


def test_installed_package_finds_its_configs_and_photographs(installed: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(run([installed / "python", "-c", PROBE], tmp_path).splitlines()[-1])
    assert Path(found["file"]).is_relative_to(installed.parent)
    assert found["versions"] == [PROJECT["project"]["version"]] * 2
    assert found["quickstart"] == (ROOT / "configs/quickstart.yaml").read_text()
    assert found["photos"] == sorted(path.name for path in PHOTOS.iterdir())


def test_installed_command_lists_the_plugins_of_every_socket(installed: Path, tmp_path: Path) -> None:
    shown = run([installed / "sail-lightning", "plugins"], tmp_path)
    shipped = {base.__name__: own_plugins(base) for base in registry.SOCKETS}
    assert all(shipped.values())
    assert [name for names in shipped.values() for name in names if name not in shown] == []


# -- a fresh installation from the package index -----------------------------------------------------------------------

VERBS = {
    "predict": ["--ckpt_path", "sail-tiny", "--data.images", "PHOTO", "--data.text", "Please segment the tree."],
    "test": ["--ckpt_path", "sail-tiny", "--data.test.samples=8"],
    "fit": ["-c", "quickstart", "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--data.val.samples=8"],
}
"""The commands that a fresh installation must pass; `fit` validates twice."""
WRITTEN = {
    "predict": "predict/version_0/predictions.jsonl",
    "test": "test/version_0/report.md",
    "fit": "quickstart/version_0/checkpoints/last.ckpt",
}
"""What each leaves in the folder of runs."""


def reach_index(uv: Path, python: Path) -> None:
    """Skips the test where uv cannot look up one small package, without its cache."""
    options = ["--dry-run", "--no-cache", "--no-deps", "--reinstall", "--python", python]
    asked = subprocess.run([uv, "pip", "install", *options, "filelock"], capture_output=True, text=True)
    if asked.returncode:
        result = [line.removeprefix("error: ") for line in asked.stderr.splitlines() if line.startswith("error: ")]
        pytest.skip(f"no package index can be reached: {result[0] if result else asked.stderr}")


@pytest.fixture(scope="module", params=["pinned", "newest"])
def fresh(
    request: pytest.FixtureRequest, archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The Python of an environment with the wheel and its libraries, as `pip install` makes it.

    `pinned` has the versions of constraints.txt, `newest` the newest ones within the ranges of pyproject.toml.
    """
    folder = tmp_path_factory.mktemp(f"fresh-{request.param}") / "venv"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin/python"
    reach_index(uv, python)
    versions = ["--constraints", ROOT / "constraints.txt"] if request.param == "pinned" else ["--upgrade"]
    run([uv, "pip", "install", "--quiet", "--python", python, *versions, archives[1]], folder.parent)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_fresh_installation_predicts_tests_and_trains(
    verb: str, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning")  # what a library will rename or remove
    photo = next(PHOTOS.glob("*.jpg"))
    words = [str(photo) if word == "PHOTO" else word for word in VERBS[verb]]
    run([fresh, "-m", "sail_lightning", verb, *words, f"--runs={tmp_path / 'runs'}"], tmp_path)
    assert (tmp_path / "runs" / WRITTEN[verb]).stat().st_size > 0
