"""`sail-lightning quickstart`, in small, and the script that makes `sail-tiny`."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from cli_harness import Command

from sail_lightning import PixelSAIL

LAST = re.compile(
    r"quickstart: scratch_ciou=\S+ ciou=\S+ giou=\S+ n_acc=\S+ t_acc=\S+ mcq=\S+ exact=\S+ minutes=\S+ report=(\S+)"
)


def test_quickstart_trains_tests_predicts_and_ends_with_its_figures(sail: Command, model_folder: Path) -> None:
    result = sail("quickstart", "--steps", "2", "--samples", "24", "--model", model_folder, "--out", "quick")
    assert result.code == 0, result.err
    match = LAST.fullmatch(result.out.splitlines()[-1])
    assert match
    report = Path(match[1])
    out = report.parent
    with (out / "metrics.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["untrained", "from scratch", str(model_folder), f"{model_folder}, unseen pairs"]
    assert f"scratch_ciou={float(rows['from scratch']['ciou']):.3f}" in match[0]
    assert (out / "learning_curve.png").stat().st_size > 1000
    assert len(list((out / "scenes").glob("*.png"))) == 12
    lines = (out / "photos" / "version_0" / "predictions.jsonl").read_text().splitlines()
    assert sorted(Path(json.loads(line)["source"]).stem for line in lines) == ["astronaut", "cat", "coffee", "rocket"]
    text = report.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (out / link).exists(), link


def test_the_zoo_script_packs_a_finished_run(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "examples" / "train_sail_tiny.py"
    spec = importlib.util.spec_from_file_location("train_sail_tiny", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path / "packed"
    runs = [str(run_folder)] * 5
    monkeypatch.setattr(sys, "argv", [str(path), "--run", *runs, "--out", str(out), "--samples", "20"])
    script.main()
    card = (out / "README.md").read_text()
    assert (
        card.count("2 steps of 1 x 400 tokens") == 5
        and "| untrained |" in card
        and capsys.readouterr().out.strip().splitlines()[-1] in card
    )
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.yaml", "curve.png", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert (
        PixelSAIL.from_pretrained(out).predict(None, "please segment the red circle.", max_new_tokens=2).text
        is not None
    )


@pytest.mark.parametrize("option", ["--steps", "--samples"])
def test_numbers_below_one_are_refused_before_anything_is_trained(option: str, sail: Command) -> None:
    assert sail("quickstart", option, "0").is_one_sentence(2, f"{option} must be 1 or more, not 0")
