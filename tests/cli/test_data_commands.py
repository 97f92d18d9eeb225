"""`data check` and `data stats` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from cli_harness import Command
from dataset_writers import referring
from PIL import Image

from sail_lightning.cli import data_progress

CONFIG = """\
data:
  train:
    class_path: Mixture
    init_args:
      sources: {refcoco: {class_path: RefCOCO}, grefcoco: {class_path: GRefCOCO}}
  val: {class_path: RefCOCO, init_args: {split: val, separate: true}}
"""
CHECK = ("data", "check", "-c", "mine.yaml", "--workers=0")


@pytest.fixture
def sets(tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$SAIL_DATA` with the referring sets, and `mine.yaml` that reads them."""
    monkeypatch.setenv("SAIL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SAIL_CACHE", str(tmp_path / "cache"))
    referring.write(tmp_path / "data")
    (workdir / "mine.yaml").write_text(CONFIG)
    return tmp_path / "data"


@pytest.mark.parametrize("command", ["check", "stats", "show", "convert"])
def test_help_fits_one_screen(command: str, sail: Command) -> None:
    shown = sail("data", command, "--help")
    lines = shown.out.splitlines()
    assert shown.code == 0 and lines[0].startswith(f"usage: sail-lightning data {command}")
    assert len(lines) <= 40 and max(map(len, lines)) <= 120


def test_help_lists_all_four_and_imports_no_torch(sail: Command) -> None:
    assert [name for name in ("check", "stats", "show", "convert") if f"\n  {name} " not in sail("data").out] == []
    code = "from sail_lightning.cli import main; main(['data', 'check', '--help'])"
    code += "; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_clean_set_is_exit_code_0(sail: Command, sets: Path, workdir: Path) -> None:
    shown = sail(*CHECK)
    assert shown.code == 0, shown.out + shown.err
    assert "No fault. Lengths were not checked: the config has no model." in shown.out
    assert shown.err == "0 of 24 records\n24 of 24 records\n"
    content = json.loads((workdir / "runs/check/mine/report.json").read_text())
    assert [(one["split"], one["name"]) for one in content["sources"]] == [
        ("train", "refcoco"),
        ("train", "grefcoco"),
        ("val", "RefCOCO"),
    ]
    assert content["command"] == "sail-lightning data check -c mine.yaml"


def test_a_fault_is_exit_code_1_and_named(sail: Command, sets: Path, workdir: Path) -> None:
    path = sets / "coco/train2014" / referring.file_name(referring.photo(1))
    path.unlink()
    shown = sail(*CHECK, "--split=train", "--out=found")
    assert shown.code == 1
    assert f"{path} 1: no image {path}" in shown.out and "missing_image" in shown.out
    assert "2 faults." in shown.out and "found/report.md, found/report.json" in shown.out
    content = json.loads((workdir / "found/report.json").read_text())
    assert [one["faults"]["missing_image"]["count"] for one in content["sources"]] == [1, 1]


def test_lengths_are_those_of_the_configs_model(sail: Command, sets: Path) -> None:
    args = (*CHECK, "-c", "model/sail_tiny", "--split=val", "--model.max_side=64")
    assert "Samples may have 8,192 tokens." in sail(*args).out
    shown = sail(*args, "--model.max_tokens=50")
    assert shown.code == 1 and "too_long" in shown.out and "tokens are over the limit of 50" in shown.out


def test_the_laboratory_has_no_fault(sail: Command) -> None:
    shown = sail("data", "check", "-c", "quickstart", "--limit=40", "--workers=0")
    assert shown.code == 0, shown.out
    assert [line.split()[:3] for line in shown.out.splitlines()[1:4]] == [
        ["train", "LaboratorySource", "40"],
        ["val", "LaboratorySource", "40"],
        ["test", "LaboratorySource", "40"],
    ]


def test_options_reach_sources_of_each_split(sail: Command, sets: Path) -> None:
    assert "18 of 18" in sail(*CHECK, "--split=val").err
    assert "3 of 3" in sail(*CHECK, "--split=val", "--data.val.separate=false").err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--split=trian"], ["--split must be one of train, val, test", "not trian"]),
        (["--split=test"], ["mine.yaml holds no data.test"]),
        (["--limit=0"], ["--limit must be 1 or more"]),
        (["--workers=-1"], ["--workers must be 0 or more"]),
        (["--trainer.max_steps=3"], ["unknown option --trainer.max_steps", "--data.SPLIT.ARGUMENT=VALUE"]),
        (["--data.val.splt=val"], ["RefCOCO has no argument 'splt'", "did you mean split?"]),
        (["-c", "model/sail_tiny", "--model.backbone.size=5b"], ["model.backbone.size must be one of"]),
        (["-c", "model/sail_tiny", "--model.max_sid=5"], ["model has no argument 'max_sid'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_usage_is_exit_code_2(args: list[str], words: list[str], sail: Command, sets: Path) -> None:
    assert sail(*CHECK, *args).is_one_sentence(2, *words)


def test_stats_draws_and_writes(sail: Command, sets: Path, workdir: Path) -> None:
    shown = sail("data", "stats", "-c", "mine.yaml", "-c", "model/sail_tiny", "--count=2", "--out=a/stats.png")
    assert shown.code == 0, shown.err
    assert [line.split()[:3] for line in shown.out.splitlines()[1:3]] == [["refcoco", "3", "2"], ["grefcoco", "3", "2"]]
    with Image.open(workdir / "a/stats.png") as picture:
        assert min(picture.size) > 400
    assert json.loads((workdir / "a/stats.json").read_text())["sources"][0]["tokens"]["count"] == 2


def test_stats_without_an_ending_tells_what_it_wrote(sail: Command, sets: Path, workdir: Path) -> None:
    shown = sail("data", "stats", "-c", "mine.yaml", "--count=1", "--out=st")
    assert shown.code == 0 and shown.out.splitlines()[-1] == "st.png, st.json"
    assert (workdir / "st.png").exists() and not (workdir / "st").exists()


def test_a_place_that_cannot_be_written_to_is_one_sentence(sail: Command, sets: Path, workdir: Path) -> None:
    (workdir / "file").write_text("mine")
    show, stats = (("data", command, "-c", "mine.yaml", "--count=1") for command in ("show", "stats"))
    assert sail(*show, "--out=a.xyz").is_one_sentence(2, "--out a.xyz is not the name of an image file; use a.png")
    assert sail(*show, "--out=sheet").is_one_sentence(2, "use sheet.png")
    assert sail(*show, "--out=file/a.png").is_one_sentence(1, "file/a.png cannot be written", "name another file")
    assert (
        "error: file/a.png cannot be written (File exists); name another file\n" in sail(*stats, "--out=file/a.png").err
    )
    assert sail(*CHECK, "--out=file").is_one_sentence(2, "--out file is a file; give a folder for the report")
    under = sail(*CHECK, "--out=file/a")
    assert under.is_one_sentence(1, "the report cannot be written to the folder file/a (Not a directory); name another")
    assert {path.name for path in workdir.iterdir()} == {"cache", "data", "file", "mine.yaml"}


def test_stats_of_a_missing_file_is_one_sentence(sail: Command, sets: Path) -> None:
    (sets / "ref_seg/refcoco/refs(unc).p").unlink()
    assert sail("data", "stats", "-c", "mine.yaml").is_one_sentence(1, "refs(unc).p", "docs/data.md")


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with data_progress.progress("records") as tell:
        tell(3, 10)
        tell(10, 10)
    assert "records" in capsys.readouterr().err


def test_progress_elsewhere_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 0.0, 1.0, 11.0, 11.0, 12.0, 12.0, 13.0])
    monkeypatch.setattr(data_progress.time, "monotonic", lambda: next(now))
    with data_progress.progress("samples") as tell:
        for done in (0, 1, 2, 1200):
            tell(done, 1200)
    assert capsys.readouterr().err == "0 of 1,200 samples\n2 of 1,200 samples\n1,200 of 1,200 samples\n"


@pytest.mark.parametrize(
    "args",
    [
        ["-c", "model/sail_tiny"],
        ["-c", "model/sail_tiny", "-c", "ablation/no_prompts", "--model.max_side=40"],
        ["-c", "model/sail_tiny", "-c", "ablation/vision_encoder"],
        ["-c", "model/eve_v2_7b", "--model.backbone.size=tiny", "--model.max_side=64"],
    ],
    ids=" ".join,
)
def test_lengths_are_decided_as_the_model_decides_them(args: list[str], workdir: Path) -> None:
    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.cli.lightning_cli import run

    names = [name for option, name in pairwise(args) if option == "-c"]
    mine = DataConfig(names, [], [arg for arg in args if arg.startswith("--")]).encoder()
    fit = ["fit", *args, "-c", "data/laboratory", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
    cli = run([*fit, "--trainer.enable_progress_bar=false"])
    theirs = cli.model.encoder
    assert mine is not None and mine.tokens.ids == theirs.tokens.ids
    assert replace(mine, tokens=theirs.tokens) == theirs
