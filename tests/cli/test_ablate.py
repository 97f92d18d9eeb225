"""`sail-lightning ablate`: a study of a tiny model, from its file to its table.

But for one slow test, what would be a process of its own runs in this one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml
from cli_harness import Command

from sail_lightning.ablation import runs
from sail_lightning.ablation.runs import Run, Stopped, last_error
from sail_lightning.cli import main
from sail_lightning.errors import SailError

TINY: dict[str, Any] = {
    "configs": ["quickstart"],
    "base": {
        "model": {
            "backbone": {
                "init_args": {
                    "hidden_size": 32,
                    "num_layers": 1,
                    "num_heads": 2,
                    "num_key_value_heads": 2,
                    "intermediate_size": 64,
                }
            },
            "max_new_tokens": 3,
        },
        "data": {
            "token_budget": 300,
            "val": {"init_args": {"samples": 2}},
            "test": {"init_args": {"samples": 6}},
        },
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1},
    },
    "variants": {
        "plain": {"model": {"upsampler": "IdentityUpsampler"}},
        "upsampled": None,
        "broken": {"model": {"upsampler": {"class_path": "DeconvUpsampler", "init_args": {"stride": 3}}}},
    },
    "seeds": [0, 1],
    "seeded": ["data.train.seed"],
    "steps": 2,
    "checks": 2,
    "metrics": ["refer/ciou", "refer/n_acc"],
}
GOOD = {name: patch for name, patch in TINY["variants"].items() if name != "broken"}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return path


class InThisProcess:
    """Stands for `runs._process`; remembers what was run, and stops where it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.stop_at: str | None = None

    def __call__(self, run: Run, name: str, words: Sequence[str], stop: Event) -> str:
        self.calls.append((run.name, name))
        if name == self.stop_at:
            raise Stopped
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(list(words))
        if code:
            raise SailError(f"{words[0]}: {last_error(printed.getvalue())}")
        return printed.getvalue()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    stand_in = InThisProcess()
    monkeypatch.setattr(runs, "_process", stand_in)
    return stand_in


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:
    """A study that was run: its folder, the exit code and what was printed."""
    folder = tmp_path_factory.mktemp("study")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_process", InThisProcess())
        patch.chdir(folder)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main(["ablate", str(write(folder / "tiny.yaml"))])
    yield folder / "runs" / "ablate" / "tiny", code, printed.getvalue()


# -- a study from end to end ------------------------------------------------------------------------------------------


def test_one_failed_variant_does_not_lose_the_rest(done: tuple[Path, int, str]) -> None:
    folder, code, printed = done
    assert code == 1
    assert "error: 2 of 6 runs failed, first broken with seed 0: fit: DeconvUpsampler doubles the grid" in printed
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [(row["variant"], row["seeds"]) for row in rows] == [("plain", "2"), ("upsampled", "2")]
    result = (folder / "table.md").read_text()
    assert "- broken, seed 1: fit: DeconvUpsampler doubles the grid in every block" in result


def test_progress_is_told_run_by_run(done: tuple[Path, int, str]) -> None:
    lines = done[2].splitlines()
    assert lines[0].startswith("6 runs: 3 variants, 2 seeds; into ")
    assert "[1/6] plain, seed 0: started" in lines and "[4/6] plain, seed 1: started" in lines
    assert any(line.startswith("[2/6] upsampled, seed 0: test/refer/ciou 0.") for line in lines)
    assert any(line.startswith("[3/6] broken, seed 0: failed: fit: Deconv") for line in lines)


def test_runs_of_one_seed_differ_in_their_patch_only(done: tuple[Path, int, str]) -> None:
    configs = {
        (variant, seed): yaml.safe_load((done[0] / variant / f"seed_{seed}" / "config.yaml").read_text())
        for variant in ("plain", "upsampled")
        for seed in (0, 1)
    }
    plain, upsampled, other = configs["plain", 0], configs["upsampled", 0], configs["plain", 1]
    assert plain["model"].pop("upsampler") != upsampled["model"].pop("upsampler")
    assert plain == upsampled
    seeds = [(c["seed_everything"], c["data"]["seed"], c["data"]["train"]["init_args"]["seed"]) for c in (plain, other)]
    assert seeds == [(0, 0, 0), (1, 1, 1)]
    assert plain["data"]["test"] == other["data"]["test"], "all are asked the same questions"


def test_the_budget_is_in_steps_whatever_limits_the_base_has(done: tuple[Path, int, str]) -> None:
    config = yaml.safe_load((done[0] / "upsampled" / "seed_0" / "config.yaml").read_text())
    trainer = config["trainer"]
    assert (trainer["max_steps"], trainer["max_time"], trainer["val_check_interval"]) == (2, None, 1)
    assert config["model"]["schedule"]["init_args"]["minutes"] is None


def test_results_hold_metrics_costs_and_differences(done: tuple[Path, int, str]) -> None:
    content = json.loads((done[0] / "results.json").read_text())
    for run in content["runs"]:
        report = json.loads((done[0] / run["variant"] / f"seed_{run['seed']}" / "test" / "report.json").read_text())
        assert run["metrics"]["test"]["refer"] == report["benchmarks"]["refer"]["metrics"]
        assert run["cost"]["seconds"] > 0 and run["cost"]["tokens_per_s"] > 0 and run["cost"]["peak_memory_gib"] > 0
    parameters = {run["variant"]: run["cost"]["parameters"] for run in content["runs"]}
    assert parameters["upsampled"] > parameters["plain"] > 10_000
    cell = content["table"]["upsampled"]["metrics"]["test/refer/ciou"]
    means = {
        name: statistics.fmean(
            run["metrics"]["test"]["refer"]["ciou"] for run in content["runs"] if run["variant"] == name
        )
        for name in GOOD
    }
    assert cell["difference"] == pytest.approx(means["upsampled"] - means["plain"])
    assert cell["over_seeds"] is not None and cell["over_samples"] is not None
    assert (done[0] / "curves.png").stat().st_size > 5000


# -- going on ---------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(sail: Command, workdir: Path, processes: InThisProcess) -> None:
    file = write(workdir / "s.yaml", variants=GOOD, seeds=[0])
    first = sail("ablate", file)
    assert first.code == 0, first.err
    assert processes.calls == [(f"{name}, seed 0", part) for name in GOOD for part in ("fit", "test")]
    table = (workdir / "runs/ablate/s/table.csv").read_text()
    processes.calls.clear()
    again = sail("ablate", file)
    assert again.code == 0 and processes.calls == []
    assert again.out.count("done before") == 2
    assert (workdir / "runs/ablate/s/table.csv").read_text() == table

    changed = GOOD | {"upsampled": {"model": {"upsampler": "BilinearUpsampler"}}}
    assert sail("ablate", write(file, variants=changed, seeds=[0])).code == 0
    assert processes.calls == [("upsampled, seed 0", "fit"), ("upsampled, seed 0", "test")]

    processes.calls.clear()
    asked = {"test": {"data": {"test": {"init_args": {"split": "compositional"}}}}}
    assert sail("ablate", write(file, variants=changed, seeds=[0], evaluate=asked)).code == 0
    assert processes.calls == [(f"{name}, seed 0", "test") for name in GOOD], "trained models are asked other questions"


def test_a_test_that_was_stopped_does_not_repeat_the_training(
    sail: Command, workdir: Path, processes: InThisProcess
) -> None:
    file = write(workdir / "s.yaml", variants={"upsampled": None}, seeds=[0])
    processes.stop_at = "test"
    with pytest.raises(Stopped):
        sail("ablate", file)
    processes.stop_at = None
    assert sail("ablate", file).code == 0
    assert processes.calls == [("upsampled, seed 0", part) for part in ("fit", "test", "test")]


def test_a_training_that_was_killed_starts_again(sail: Command, workdir: Path, processes: InThisProcess) -> None:
    file = write(workdir / "s.yaml", variants={"upsampled": None}, seeds=[0])
    left = workdir / "runs/ablate/s/upsampled/seed_0/fit/version_0/checkpoints"
    left.mkdir(parents=True)
    (left / "last.ckpt").write_bytes(b"half a check")
    assert sail("ablate", file).code == 0
    assert (left / "last.ckpt").stat().st_size > 10_000
    assert not (left.parents[1] / "version_1").exists()


def test_variants_can_be_run_one_by_one_into_one_table(sail: Command, workdir: Path, processes: InThisProcess) -> None:
    file = write(workdir / "s.yaml", variants=GOOD)
    assert sail("ablate", file, "--only=plain", "--seeds=3", "--steps=1").code == 0
    assert {name for name, _ in processes.calls} == {"plain, seed 3"}
    assert sail("ablate", file, "--only", "upsampled", "--seeds=3", "--steps=1").code == 0
    rows = list(csv.DictReader((workdir / "runs/ablate/s/table.csv").open()))
    assert [row["variant"] for row in rows] == ["plain", "upsampled"]
    assert rows[1]["test/refer/ciou difference"] != ""


def test_minutes_limit_the_training_and_its_schedule(sail: Command, workdir: Path) -> None:
    file = write(workdir / "s.yaml", minutes=90.5)
    config = yaml.safe_load(sail("ablate", file, "--print_config").out)
    assert (config["trainer"]["max_time"], config["trainer"]["max_steps"]) == ("00:01:30:30", 2)
    assert config["model"]["schedule"]["init_args"]["minutes"] == 90.5


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on(workdir: Path, sail: Command) -> None:
    """In processes of its own, two at a time."""
    file = write(workdir / "s.yaml")
    words = [sys.executable, "-m", "sail_lightning", "ablate", str(file), "--jobs=2"]
    folder = workdir / "runs" / "ablate" / "s"
    with (workdir / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: any(folder.rglob("result.json")), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert 1 <= len(kept) < 4

    with (workdir / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: "started" in (workdir / "log").read_text(), process)
        process.terminate()
        assert process.wait(60) == 130, "asked to end, it ends its processes and itself"
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # none is left of its group

    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "2 of 6 runs failed, first broken with seed 0" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [(row["variant"], row["seeds"]) for row in rows] == [("plain", "2"), ("upsampled", "2")]


def wait_for(true: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


# -- what is wrong is told before anything runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {"bad": {"model": {"upsampler": "DeconvUpsample"}}}}, ("variant bad", "did you mean Deconv")),
        ({"variants": {"bad": {"modle": {}}}}, ("s, variant bad", "no setting modle")),
        ({"base": {"data": {"token_budget": "many"}}}, ("variant plain", "token_budget")),
        ({"evaluate": {"test": {"data": {"test": {"init_args": {"split": "tset"}}}}}}, ("evaluate.test", "split")),
        (
            {"evaluate": {"test": {"evaluation": {"protocol": "official", "no_target": "text"}}}},
            ("evaluate.test", "the official protocol does not go with no_target"),
        ),
        (
            {
                "base": {
                    "model": {
                        "upsampler": "IdentityUpsampler",
                        "teachers": {"edge": {"class_path": "TimmTeacher", "init_args": {"model": "x", "tasks": []}}},
                    }
                }
            },
            ("variant plain", "tasks"),
        ),
        ({"seeded": ["data.train.init_args.sed"]}, ("variant plain", "sed")),
        ({"metrics": ["ciou"]}, ("s: metrics", "BENCHMARK/METRIC")),
        ({"configs": ["quikstart"]}, ("quikstart", "did you mean quickstart?")),
    ],
)
def test_a_study_that_does_not_parse_runs_nothing(
    sail: Command, workdir: Path, processes: InThisProcess, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    shown = sail("ablate", write(workdir / "s.yaml", **changes))
    assert shown.is_one_sentence(2, *words)
    assert processes.calls == [] and not (workdir / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ("name one study",)),
        (["s.yaml", "-c", "s.yaml"], ("name one study",)),
        (["s.yaml", "--seeds=0,0"], ("--seeds must be different whole numbers",)),
        (["s.yaml", "--seeds=-1"], ("--seeds",)),
        (["s.yaml", "--steps=0"], ("--steps must be 1 or more",)),
        (["s.yaml", "--jobs=0"], ("--jobs must be 1 or more",)),
        (["s.yaml", "--only=upsampling"], ("s has no variant upsampling; there are plain, upsampled, broken",)),
        (["study/papr"], ("no config study/papr", "did you mean study/paper?")),
    ],
)
def test_wrong_options_are_one_sentence(
    sail: Command, workdir: Path, options: list[str], words: tuple[str, ...]
) -> None:
    write(workdir / "s.yaml")
    assert sail("ablate", *options).is_one_sentence(2, *words)


def test_a_metric_that_no_test_gives_is_told_with_those_there_are(
    sail: Command, workdir: Path, processes: InThisProcess
) -> None:
    file = write(workdir / "s.yaml", variants={"upsampled": None}, seeds=[0], metrics=["refer/iou"])
    shown = sail("ablate", file)
    assert shown.is_one_sentence(2, "no test gave the metric test/refer/iou", "refer/ciou, refer/giou")
    processes.calls.clear()
    assert sail("ablate", write(file, variants={"upsampled": None}, seeds=[0])).code == 0
    assert processes.calls == [], "the runs are kept"


def test_print_config_shows_what_a_variant_is_trained_with(sail: Command, workdir: Path) -> None:
    write(workdir / "s.yaml")
    base = yaml.safe_load(sail("ablate", "s.yaml", "--print_config").out)
    other = yaml.safe_load(sail("ablate", "-c", "s.yaml", "--print_config", "upsampled").out)
    assert base["model"]["upsampler"]["class_path"].endswith("IdentityUpsampler")
    assert other["model"]["upsampler"]["class_path"].endswith("DeconvUpsampler")
    assert not (workdir / "runs").exists()


def test_last_error_is_ours_or_the_last_line() -> None:
    ours = "step 1\nerror: no image a.png\n  more: sail-lightning fit --help\n"
    assert last_error(ours) == "no image a.png"
    assert last_error("Traceback ...\nZeroDivisionError: division by zero\n\n") == "ZeroDivisionError: division by zero"
    assert last_error("") == ""
