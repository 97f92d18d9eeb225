"""Benchmarks from the command line: reports, tests that are killed and go on, scoring again, compare, SynthPerBench."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import FIT, Command
from PIL import Image

import sail_lightning
from sail_lightning import module
from sail_lightning.callbacks import EvaluationWriter
from sail_lightning.cli import main, rescoring
from sail_lightning.cli.command_parser import CommandParser
from sail_lightning.cli.configs import config_names, config_root
from sail_lightning.data.sources import PerBench
from sail_lightning.generation.prediction import Prediction, encode_rle
from sail_lightning.module import PixelSAIL

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--evaluation.bootstrap=20")
# No captions: METEOR's program takes seconds to start.
TASKS = "--data.test.tasks={refer: 0.6, choice: 0.2, vres: 0.2}"
LABORATORY = ("test", "--ckpt_path=sail-tiny", "--data.test.samples=22", "--data.eval_batch_size=4", TASKS, *QUIET)


@pytest.fixture(scope="module", autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a test that ran through."""
    root = tmp_path_factory.mktemp("unbroken")
    assert main([*LABORATORY, f"--runs={root}", "--evaluation.gallery=2"]) == 0
    return root / "test/version_0"


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(folder: Path) -> dict[str, str]:
    head, values = (folder / "metrics.csv").read_text().splitlines()
    return dict(zip(head.split(","), values.split(","), strict=True))


# -- what a test leaves -----------------------------------------------------------------------------------------------


def test_every_answer_is_on_disk_with_its_score(unbroken: Path) -> None:
    written = lines(unbroken / "per_sample.jsonl")
    assert [line["number"] for line in written] == list(range(22))
    assert {line["benchmark"] for line in written} == {"refer", "choice", "vres"}
    assert all(line["question"] and line["text"] and line["score"] for line in written)
    refer = [line for line in written if line["task"] == "refer"]
    assert any(line["target"] == [] for line in refer) and any(len(line["target"]) == 1 for line in refer)
    assert all(mask["size"] == [64, 64] for line in refer for mask in (*line["pred"], *line["target"]))


def test_a_report_says_what_its_figures_were_measured_with(unbroken: Path) -> None:
    result = report(unbroken)
    weights = Path(sail_lightning.__file__).parent / "zoo/sail-tiny/model.safetensors"
    assert result["protocol"] == "standard" and result["no_target_from"] == "mask" and result["bootstrap"] == 20
    assert result["weights"] == {"path": "sail-tiny", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert (result["dtype"], result["precision"], result["max_side"]) == ("float32", "32-true", 64)
    assert result["attention"] == "AutoAttention (SDPAAttention)"
    assert result["data"]["source"] == "LaboratorySource" and result["questions"] == 22
    counts = {name: one["counts"]["answers"] for name, one in result["benchmarks"].items()}
    assert sum(counts.values()) == 22 and counts["refer"] > counts["choice"] > 1
    assert result["benchmarks"]["refer"]["intervals"]["ciou"][0] <= result["benchmarks"]["refer"]["metrics"]["ciou"]


def test_figures_of_the_report_are_those_that_the_test_logged(unbroken: Path) -> None:
    benchmarks, logged = report(unbroken)["benchmarks"], figures(unbroken)
    for name in ("ciou", "giou", "n_acc", "t_acc"):
        assert benchmarks["refer"]["metrics"][name] == pytest.approx(float(logged[f"test/{name}"]), abs=1e-6)
    assert benchmarks["vres"]["metrics"]["ciou"] == pytest.approx(float(logged["test/vres_ciou"]), abs=1e-6)
    assert benchmarks["choice"]["metrics"]["mcq_accuracy"] == pytest.approx(
        float(logged["test/mcq_accuracy"]), abs=1e-6
    )


def test_the_gallery_shows_images_that_are_in_no_file(unbroken: Path) -> None:
    drawn = sorted(path.name for path in (unbroken / "gallery").iterdir())
    assert drawn == [
        f"{name}-{kind}.png" for name in ("choice", "refer", "vres") for kind in ("best", "random", "worst")
    ]
    pixels = np.asarray(Image.open(unbroken / "gallery/refer-best.png"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


# -- killed, and gone on with -----------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next test ends during the batch after so many, when half a line of it is written."""
    write = EvaluationWriter.on_test_batch_end

    def stop(self: EvaluationWriter, *args: Any, **more: Any) -> None:
        write(self, *args, **more)
        if args[4] == batches:
            assert self.folder is not None
            path = self.folder / "per_sample.jsonl"
            path.write_bytes(path.read_bytes()[:-40])
            raise Killed

    monkeypatch.setattr(EvaluationWriter, "on_test_batch_end", stop)


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of each batch that the model sees from now on."""
    sizes: list[int] = []
    step = PixelSAIL.test_step

    def count(self: PixelSAIL, batch: Any, number: int) -> Any:
        sizes.append(len(batch))
        return step(self, batch, number)

    monkeypatch.setattr(PixelSAIL, "test_step", count)
    return sizes


def same_as(folder: Path, other: Path, logged: Path) -> None:
    assert (folder / "per_sample.jsonl").read_bytes() == (other / "per_sample.jsonl").read_bytes()
    assert report(folder)["benchmarks"] == report(other)["benchmarks"]
    assert figures(logged) == figures(other)


def test_a_killed_test_goes_on_where_it_stopped_and_ends_with_the_same_numbers(
    sail: Command, unbroken: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(Killed):
            main([*LABORATORY, f"--runs={workdir}/first"])
    folder = workdir / "first/test/version_0"
    assert not (folder / "report.json").exists()
    sizes = asked(monkeypatch)
    assert sail(*LABORATORY, f"--evaluation.out={folder}", f"--runs={workdir}/again").code == 0
    assert sizes == [1, 4, 4, 2]  # 11 of the 22 had been answered, and none of them is asked again
    same_as(folder, unbroken, workdir / "again/test/version_0")


def test_a_test_that_was_finished_asks_one_question_again_and_changes_nothing(
    sail: Command, unbroken: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = workdir / "done"
    assert sail(*LABORATORY, f"--evaluation.out={done}").code == 0
    sizes = asked(monkeypatch)
    shown = sail(*LABORATORY, f"--evaluation.out={done}", f"--runs={workdir}/again")
    assert shown.code == 0 and f"report: {done}/report.md" in shown.out
    assert sizes == [1]
    same_as(done, unbroken, workdir / "again/test/version_0")


def test_answers_of_other_weights_or_data_are_not_gone_on_with(sail: Command, unbroken: Path) -> None:
    before = (unbroken / "per_sample.jsonl").read_bytes()
    shorter = [arg for arg in LABORATORY if "samples" not in arg]
    for args, words in (
        ([*LABORATORY, "--model.max_side=32"], "max_side differ"),
        ([*shorter, "--data.test.samples=21"], "data differ"),
    ):
        assert sail(*args, f"--evaluation.out={unbroken}").is_one_sentence(2, "answers of another test", words)
    assert (unbroken / "per_sample.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_test_that_the_system_killed_goes_on(sail: Command, unbroken: Path, workdir: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from sail_lightning.cli import main\n"
        "from sail_lightning.module import PixelSAIL\n"
        "step = PixelSAIL.test_step\n"
        "def test_step(self, batch, number):\n"
        "    if number == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, number)\n"
        "PixelSAIL.test_step = test_step\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, *LABORATORY, "--evaluation.out=out"]
    assert subprocess.run(command, capture_output=True, cwd=workdir).returncode == -signal.SIGKILL
    assert [line["number"] for line in lines(workdir / "out/per_sample.jsonl")] == list(range(12))
    assert sail(*LABORATORY, "--evaluation.out=out", "--name=again").code == 0
    same_as(workdir / "out", unbroken, workdir / "runs/again/version_0")


@pytest.mark.slow
def test_two_ranks_write_the_same_file_as_one(unbroken: Path, workdir: Path) -> None:
    ranks = ("--trainer.devices=2", "--trainer.strategy=ddp", "--evaluation.out=out")
    command = [sys.executable, "-m", "sail_lightning", *LABORATORY, *ranks]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=workdir, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    same_as(workdir / "out", unbroken, workdir / "runs/test/version_0")


# -- scoring again ----------------------------------------------------------------------------------------------------


def rle(rows: str) -> dict[str, Any]:
    return encode_rle(np.array([[cell == "1" for cell in row] for row in rows.split("/")]))


def record(id: str, pred: list[str], target: list[str], **more: Any) -> dict[str, Any]:
    masks = {"pred": [rle(rows) for rows in pred], "target": [rle(rows) for rows in target]}
    result = {"id": id, "benchmark": "grefcoco_val", "question": "", "text": "It is [SEG].", **masks}
    return result | {"ignore": None, "size": [2, 2], **more}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


@pytest.fixture
def own_file(workdir: Path) -> Path:
    """Anybody's file: two masks for one, a text that says "no target" beside a mask, and nothing where nothing is."""
    return write(
        workdir / "own.jsonl",
        record("1", ["10/00", "00/01"], ["10/01"]),
        record("2", ["10/00"], [], text="No target [SEG]."),
        record("3", [], []),
    )


def test_anybodys_file_is_scored_without_a_model(sail: Command, own_file: Path, workdir: Path) -> None:
    shown = sail("test", "--from", own_file, "--out", "scored")
    assert shown.code == 0 and "scored/report.json" in shown.out and "| `ciou` |" in shown.out
    result = report(workdir / "scored")
    assert result["metrics"]["ciou"] == pytest.approx(2 / 3) and result["metrics"]["giou"] == pytest.approx(2 / 3)
    assert result["metrics"]["n_acc"] == 0.5 and result["metrics"]["t_acc"] == 1.0
    assert [line["score"]["iou"] for line in lines(workdir / "scored/per_sample.jsonl")] == [1.0, 0.0, 1.0]
    assert len(result["from"]["own.jsonl" if "own.jsonl" in result["from"] else str(own_file)]) == 64


def test_the_text_may_say_that_nothing_is_meant(sail: Command, own_file: Path, workdir: Path) -> None:
    assert sail("test", "--from", own_file, "--out", "text", "--no-target", "text").code == 0
    result = report(workdir / "text")
    assert result["no_target_from"] == "text"
    assert result["metrics"]["n_acc"] == 0.5 and result["metrics"]["giou"] == pytest.approx(2 / 3)
    second, third = (line["score"] for line in lines(workdir / "text/per_sample.jsonl")[1:])
    assert (second["no_target_mask"], second["no_target_text"]) == (False, True)
    assert (third["no_target_mask"], third["no_target_text"]) == (True, False)


def test_the_official_protocol_looks_at_the_first_mask_only(sail: Command, own_file: Path, workdir: Path) -> None:
    assert sail("test", f"--from={own_file}", "--out=official", "--protocol=official").code == 0
    result = report(workdir / "official")
    assert result["protocol"] == "official" and result["combine"] == "first"
    assert result["metrics"]["ciou"] == pytest.approx(1 / 3)
    assert "faults included" in (workdir / "official/report.md").read_text()


def test_a_test_is_scored_to_its_own_figures_again(sail: Command, unbroken: Path, workdir: Path) -> None:
    args = ("--out", "again", "--bootstrap", "20")
    assert sail("test", "--from", unbroken / "per_sample.jsonl", *args).code == 0
    assert report(workdir / "again")["benchmarks"] == report(unbroken)["benchmarks"]
    assert (workdir / "again/per_sample.jsonl").read_bytes() == (unbroken / "per_sample.jsonl").read_bytes()


def test_several_files_make_one_report(sail: Command, own_file: Path, workdir: Path) -> None:
    other = write(workdir / "other.jsonl", record("1", ["10/00"], ["10/01"], benchmark="refcoco_val"))
    assert sail("test", "--from", own_file, other, "--out", "both").code == 0
    assert report(workdir / "both")["benchmarks"].keys() == {"grefcoco_val", "refcoco_val"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": "1"', ["own.jsonl line 2 is not JSON"]),
        ('{"id": "1"}', ["own.jsonl line 2", "benchmark"]),
        ('{"id": "1", "benchmark": "refcoco_val", "pred": []}', ["own.jsonl line 2", "target"]),
        ('{"id": "1", "benchmark": "refcoco_val", "pred": 3, "target": []}', ["own.jsonl line 2", "pred must be"]),
    ],
    ids=["json", "benchmark", "target", "pred"],
)
def test_a_bad_line_is_one_sentence(content: str, words: list[str], sail: Command, own_file: Path) -> None:
    first = own_file.read_text().splitlines()[0]
    own_file.write_text(f"{first}\n{content}\n")
    assert sail("test", "--from", own_file, "--out", "scored").is_one_sentence(1, *words)
    assert not Path("scored/report.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--out"]),
        (["--out=x", "--protocol=oficial"], ["--protocol", "oficial", "official"]),
        (["--out=x", "--protocol=official", "--no-target=text"], ["official protocol"]),
        (["--out=x", "--bootstrap=-1"], ["--bootstrap", "0 or more"]),
        (["--out=x", "--ckpt_path=sail-tiny"], ["--ckpt_path"]),
        (["--out=own.jsonl"], ["own.jsonl is a file"]),
        (["--out=/dev/null/x"], ["/dev/null/x", "--out"]),
    ],
    ids=["no-out", "protocol", "text-officially", "bootstrap", "foreign", "file", "below-a-file"],
)
def test_wrong_options_are_one_sentence(args: list[str], words: list[str], sail: Command, own_file: Path) -> None:
    assert sail("test", "--from", own_file, *args).is_one_sentence(2, *words)


def test_help_names_every_option_of_scoring_again(sail: Command) -> None:
    shown = sail("test", "--help").out
    parser = CommandParser("test", rescoring.rescore)
    assert len(parser.actions) > 6
    listed = shown.partition("--from FILE ")[2].partition("examples:")[0]
    assert [parser.shown(name) for name in parser.actions if name != "from_" and parser.shown(name) not in listed] == []


def test_a_missing_file_is_one_sentence(sail: Command) -> None:
    assert sail("test", "--from", "gone.jsonl", "--out", "x").is_one_sentence(1, "gone.jsonl")


def test_a_file_without_answers_is_one_sentence(sail: Command, own_file: Path, workdir: Path) -> None:
    empty = write(workdir / "empty.jsonl")
    assert sail("test", "--from", own_file, empty, "--out", "x").is_one_sentence(1, "empty.jsonl holds no answers")
    assert sail("compare", own_file, empty).is_one_sentence(1, "empty.jsonl holds no answers")


def test_scoring_again_imports_neither_lightning_nor_a_model(own_file: Path, workdir: Path) -> None:
    code = (
        "import sys; from sail_lightning.cli import main; "
        "code = main(['test', '--from', 'own.jsonl', '--out', 'scored', '--bootstrap', '0']); "
        "loaded = {'lightning.pytorch', 'pytorch_lightning', 'sail_lightning.module', 'sail_lightning.model.model'}; "
        "print(code, sorted(loaded & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=workdir, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


# -- compare ----------------------------------------------------------------------------------------------------------


def test_two_runs_are_shown_side_by_side(sail: Command, unbroken: Path, workdir: Path) -> None:
    worse = [{**line, "pred": []} for line in lines(unbroken / "per_sample.jsonl")]
    other = write(workdir / "worse.jsonl", *worse)
    shown = sail("compare", unbroken, other, "--out", "compared", "--changed", "3")
    assert shown.code == 0 and f"A is `{unbroken}`, B is `{other}`" in shown.out
    result = json.loads((workdir / "compared/comparison.json").read_text())["benchmarks"]["vres"]
    figure = result["figures"]["giou"]
    assert figure["second"] == 0 and figure["difference"] == -figure["first"] < 0
    assert figure["low"] <= figure["difference"] <= figure["high"]
    assert result["paired"]["worse"] == result["questions"] and len(result["changes"]) == 3
    assert (workdir / "compared/comparison.md").read_text() in shown.out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["gone", "own.jsonl"], 1, ["no file or folder gone"]),
        (["empty", "own.jsonl"], 1, ["empty holds no per_sample.jsonl"]),
        (["own.jsonl", "other.jsonl"], 1, ["share no question"]),
        (["own.jsonl"], 2, ["compare needs SECOND"]),
        (["own.jsonl", "own.jsonl", "--changed=-1"], 2, ["--changed", "0 or more"]),
        (["own.jsonl", "own.jsonl", "--out=other.jsonl"], 2, ["other.jsonl is a file"]),
    ],
    ids=["missing", "empty-folder", "nothing-shared", "one-run", "changed", "out"],
)
def test_compare_refuses(args: list[str], code: int, words: list[str], sail: Command, own_file: Path) -> None:
    Path("empty").mkdir()
    write(Path("other.jsonl"), record("1", [], [], benchmark="refcoco_val"))
    assert sail("compare", *args).is_one_sentence(code, *words)


@pytest.fixture
def tested(sail: Command, own_file: Path, workdir: Path) -> dict[str, Path]:
    """One file of answers, scored under each protocol."""
    for protocol in ("standard", "official"):
        args = ("--out", protocol, "--protocol", protocol, "--gallery", "0", "--bootstrap", "10")
        assert sail("test", "--from", own_file, *args).code == 0
    return {protocol: workdir / protocol for protocol in ("standard", "official")}


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_compare_scores_by_the_rules_of_both_tests_and_states_them(
    protocol: str, sail: Command, tested: dict[str, Path], workdir: Path
) -> None:
    folder = tested[protocol]
    shown = sail("compare", folder, folder / "per_sample.jsonl", "--bootstrap", "10", "--out", "compared")
    assert shown.code == 0 and f"Both are scored by: protocol `{protocol}`, no target from `mask`" in shown.out
    result = json.loads((workdir / "compared/comparison.json").read_text())
    assert (result["protocol"], result["combine"]) == (protocol, report(folder)["combine"])
    figures = result["benchmarks"]["grefcoco_val"]["figures"]
    assert {name: one["first"] for name, one in figures.items()} == report(folder)["metrics"]


def test_tests_of_different_rules_are_compared_only_if_an_option_says_by_which(
    sail: Command, tested: dict[str, Path]
) -> None:
    pair = (tested["standard"], tested["official"], "--bootstrap", "10")
    refused = sail("compare", *pair)
    assert refused.is_one_sentence(2, "protocol is standard in", "official in", "give --protocol")
    for protocol in tested:
        shown = sail("compare", *pair, "--protocol", protocol)
        assert shown.code == 0 and f"protocol `{protocol}`" in shown.out


def test_compare_takes_the_own_metrics_of_the_tests(sail: Command, tested: dict[str, Path]) -> None:
    first, second = (tested[name] / "report.json" for name in ("standard", "official"))
    plain = "torchmetrics.classification.BinaryJaccardIndex"
    content = json.loads(first.read_text()) | {"own_metrics": {"jaccard": plain}}
    first.write_text(json.dumps(content))
    second.write_text(json.dumps({key: value for key, value in content.items() if key != "own_metrics"}))
    pair = (first.parent, second.parent, "--bootstrap", "10")
    assert "| `jaccard` |" in sail("compare", *pair).out
    second.write_text(json.dumps(content | {"own_metrics": {"jaccard": "Cider"}}))
    assert sail("compare", *pair).is_one_sentence(2, "metric jaccard is", plain, "Cider", "give --metrics")


def test_a_report_that_is_of_no_test_is_one_sentence(sail: Command, tested: dict[str, Path]) -> None:
    (tested["standard"] / "report.json").write_text("[]")
    assert sail("compare", tested["standard"], tested["standard"]).is_one_sentence(1, "standard/report.json", "remove")


# -- SynthPerBench ----------------------------------------------------------------------------------------------------


@pytest.fixture
def perbench(sail: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SynthPerBench of six questions each, below `$SAIL_DATA`."""
    assert sail("perbench", "--out", "data", "--count", "6").code == 0
    monkeypatch.setenv("SAIL_DATA", str(workdir / "data"))
    return workdir / "data/perbench"


def test_synthperbench_is_laid_out_as_perbench(perbench: Path) -> None:
    captions, choices, vres = (
        json.loads((perbench / f"STBench_{name}.json").read_text()) for name in ("Detailed_Caption", "MCQ", "VRES")
    )
    assert [len(items) for items in (captions, choices, vres)] == [6, 6, 6]
    assert all((perbench / "images" / item["image_name"]).is_file() for item in (*captions, *choices, *vres))
    assert all(item.keys() == {"image_name", "object_annotations"} for item in captions)
    assert all(part.keys() == {"segmentation", "caption"} for item in captions for part in item["object_annotations"])
    assert all(part.keys() == {"object", "question", "answer"} for item in choices for part in item["mcqs"])
    assert all(item.keys() == {"image_name", "question", "answer", "segmentations"} for item in vres)
    for item in vres:
        assert list(item["segmentations"]) == ["obj0", "obj1"]
        assert "obj0" in item["question"] and "obj1" in item["answer"] and "obj0" not in item["answer"]
    assert isinstance(captions[0]["object_annotations"][0]["segmentation"]["counts"], str)


def test_synthperbench_is_read_by_the_source_of_perbench(perbench: Path) -> None:
    caption, choice, vres = (PerBench(task, words="{region} {question}") for task in ("caption", "choice", "vres"))
    assert all(source.length == 6 for source in (caption, choice, vres))
    described = caption[0]
    assert described.turns[0].question.strip() == "<Prompt0>" and described.turns[0].answer.startswith("a ")
    for number in range(6):
        turn = choice[number].turns[0]
        assert turn.answer in turn.choices and 2 <= len(turn.choices) <= 4
        asks = vres[number].turns[0]
        assert "<Prompt0>" in asks.question and asks.answer == "it is [SEG]." and asks.targets == (0,)


def test_synthperbench_is_the_same_each_time_and_another_for_another_seed(
    sail: Command, perbench: Path, workdir: Path
) -> None:
    for name, seed in (("same", "0"), ("other", "1")):
        assert sail("perbench", "--out", name, "--count", "6", "--seed", seed).code == 0
    for path in perbench.glob("*.json"):
        assert path.read_bytes() == (workdir / "same/perbench" / path.name).read_bytes()
        assert path.read_bytes() != (workdir / "other/perbench" / path.name).read_bytes()


def test_unseen_pairs_are_asked_about_where_they_are_asked_for(sail: Command, workdir: Path) -> None:
    unseen = ("red triangle", "green circle", "blue cross", "yellow square")
    for split, held_out in (("test", False), ("compositional", True)):
        assert sail("perbench", "--out", split, "--count", "12", "--split", split).code == 0
        items = json.loads((workdir / split / "perbench/STBench_Detailed_Caption.json").read_text())
        result = [item["object_annotations"][0]["caption"] for item in items]
        assert [any(pair in text for pair in unseen) for text in result] == [held_out] * 12


def test_the_packaged_model_knows_the_words_of_synthperbench(sail: Command, perbench: Path, workdir: Path) -> None:
    args = ("-c", "eval/perbench/mcq", "--ckpt_path=sail-tiny", "--data.test.words={question}", *QUIET)
    shown = sail("test", *args, "--evaluation.benchmark=synthperbench_mcq", "--evaluation.out=out")
    assert shown.code == 0, shown.err
    result = report(workdir / "out")
    assert result["metrics"]["mcq_accuracy"] >= 4 / 6 and result["annotations"].keys() == {
        str(perbench / "STBench_MCQ.json")
    }


@pytest.mark.slow
def test_all_of_synthperbench_gives_the_papers_overall_figure(sail: Command, perbench: Path, workdir: Path) -> None:
    shown = sail("test", "-c", "eval/synthperbench", "--ckpt_path=sail-tiny", *QUIET, "--evaluation.out=out")
    assert shown.code == 0, shown.err
    found = {name: one["metrics"] for name, one in report(workdir / "out")["benchmarks"].items()}
    words = found["synthperbench_caption"]
    key, meteor = ("perbench_overall", "meteor") if "meteor" in words else ("perbench_overall_lite", "meteor_lite")
    masks = (found["synthperbench_vres"]["ciou"] + found["synthperbench_vres"]["giou"]) / 2
    overall = 100 * (words[meteor] + found["synthperbench_mcq"]["mcq_accuracy"] + masks) / 3
    assert found["synthperbench"][key] == pytest.approx(overall) and overall > 50


@pytest.mark.parametrize("args", [["--count=0"], ["--seed=-1"], ["--split=train"], ["--out=x.txt"]])
def test_perbench_refuses(args: list[str], sail: Command, workdir: Path) -> None:
    (workdir / "x.txt").touch()
    assert sail("perbench", "--out", "x", *args).is_one_sentence(2)


# -- benchmarks as configs --------------------------------------------------------------------------------------------

BENCHMARKS = [name for name in config_names() if name.startswith("eval/")]


def test_every_benchmark_of_the_paper_has_its_config() -> None:
    referring = [
        f"{name}_{split}" for name in ("refcoco", "refcoco+", "grefcoco") for split in ("val", "testA", "testB")
    ]
    splits = [
        f"{name}_{split}"
        for name, parts in (("refcocog", "val test"), ("reasonseg", "val test"), ("gcg", "val test"))
        for split in parts.split()
    ]
    others = ["region_caption", "perbench", "perbench/caption", "perbench/mcq", "perbench/vres", "synthperbench"]
    assert {f"eval/{name}" for name in (*referring, *splits, *others)} <= set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_fifteen_lines_at_most(name: str) -> None:
    assert len((config_root() / f"{name}.yaml").read_text().splitlines()) <= 15


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sets that benchmarks read, written."""
    from dataset_writers import glamm, perbench, reason_seg, refcoco_m, referring, region_captions

    root = tmp_path_factory.mktemp("sets")
    for writer in (glamm, perbench, reason_seg, refcoco_m, referring, region_captions):
        writer.write(root)
    return root


FAST = (
    "refcoco_val",
    "refcoco+_testB",
    "refcocog_test",
    "grefcoco_testA",
    "reasonseg_val",
    "refcoco_m",
    "perbench/mcq",
)


@pytest.mark.parametrize("name", FAST)
def test_a_benchmark_runs_on_files_of_the_published_form(
    name: str, sail: Command, sets: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_benchmark(name, sail, sets, workdir, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcg_val", "gcg_test", "region_caption", "perbench/caption"])
def test_a_benchmark_of_words_runs_on_files_of_the_published_form(
    name: str, sail: Command, sets: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_benchmark(name, sail, sets, workdir, monkeypatch)


def test_logged_figures_leave_out_what_is_to_be_ignored_as_the_report_does(
    sail: Command, sets: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = module.answer_encoded

    def everything(bundle: Any, batch: Any, *args: Any) -> list[Prediction]:
        found = zip(answer(bundle, batch, *args), batch, strict=True)
        return [
            replace(one, text="It is [SEG].", masks=np.ones((1, *(item.image_size or ())), bool)) for one, item in found
        ]

    monkeypatch.setenv("SAIL_DATA", str(sets))
    monkeypatch.setattr(module, "answer_encoded", everything)
    few = ("--model.max_new_tokens=2", "--evaluation.gallery=0", "--runs=runs")
    assert sail("test", "-c", "eval/reasonseg_val", "--ckpt_path=sail-tiny", *QUIET, *few).code == 0
    (folder,) = (path.parent for path in (workdir / "runs").rglob("report.json"))
    assert any(line["ignore"] for line in lines(folder / "per_sample.jsonl"))
    for name in ("ciou", "giou"):
        assert report(folder)["metrics"][name] == pytest.approx(float(figures(folder)[f"test/{name}"]), abs=1e-6)


def run_benchmark(name: str, sail: Command, sets: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged model knows few of the words; the way from file to report is what is tested."""
    monkeypatch.setenv("SAIL_DATA", str(sets))
    few = (
        "--trainer.limit_test_batches=2",
        "--data.eval_batch_size=2",
        "--model.max_new_tokens=6",
        "--evaluation.gallery=1",
    )
    shown = sail("test", "-c", f"eval/{name}", "--ckpt_path=sail-tiny", *QUIET, *few, "--evaluation.out=out")
    assert shown.code == 0, shown.err
    result = report(workdir / "out")
    assert list(result["benchmarks"]) == [result["benchmark"]] and result["metrics"]
    assert result["annotations"] and all(Path(path).exists() for path in result["annotations"])
    written = lines(workdir / "out/per_sample.jsonl")
    assert 1 <= len(written) <= 4 and all(Path(line["image"]).is_file() for line in written)
    assert (workdir / "out/gallery/random.png").is_file()
    rescored = sail("test", "--from", "out/per_sample.jsonl", "--out", "again", "--bootstrap", "20", "--gallery", "0")
    assert rescored.code == 0 and report(workdir / "again")["benchmarks"] == result["benchmarks"]


# -- one judge --------------------------------------------------------------------------------------------------------

BOUNDARY_IOU = Path(__file__).parents[2] / "examples/boundary_iou.py"


@pytest.fixture
def boundary_iou(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> Iterator[Path]:
    """The example's file, copied to where it can be removed; forgotten again after the test."""
    from sail_lightning import registry

    monkeypatch.setattr(sys, "path", [*sys.path])
    path = workdir / "boundary_iou.py"
    path.write_bytes(BOUNDARY_IOU.read_bytes())
    yield path
    registry.SOURCES.pop(str(path.resolve()), None)
    sys.modules.pop("boundary_iou", None)


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_each_protocol_gives_one_number_in_log_report_answers_and_compare(
    protocol: str, sail: Command, boundary_iou: Path, workdir: Path
) -> None:
    own = (f"--plugins={boundary_iou}", "--model.metrics.biou=BoundaryIoU")
    args = (*LABORATORY, *own, "--data.test.split=compositional", f"--evaluation.protocol={protocol}")
    shown = sail(*args, "--evaluation.gallery=0", "--evaluation.out=out")
    assert shown.code == 0, shown.err
    result, table = report(workdir / "out"), figures(workdir / "runs/test/version_0")
    assert result["protocol"] == protocol and "biou" in result["benchmarks"]["refer"]["intervals"]
    for name in ("ciou", "giou"):
        for benchmark, prefix in (("refer", "test/"), ("vres", "test/vres_")):
            value = result["benchmarks"][benchmark]["metrics"][name]
            assert value == pytest.approx(float(table[f"{prefix}{name}"]), abs=1e-6)
    scores = [line["score"] for line in lines(workdir / "out/per_sample.jsonl")]
    by_answer = [one["biou"] for one in scores if "biou" in one]
    assert np.mean(by_answer) == pytest.approx(float(table["test/biou"]), abs=1e-6)
    assert f"{float(table['test/ciou']):.4f}" in shown.out

    again = ("--protocol", protocol, "--bootstrap", "20", "--metrics", "biou=BoundaryIoU", "--plugins", boundary_iou)
    assert sail("test", "--from", "out/per_sample.jsonl", "--out", "again", *again).code == 0
    assert report(workdir / "again")["benchmarks"] == result["benchmarks"]
    assert sail("compare", "out", "out", "--out", "both", *again).code == 0
    compared = json.loads((workdir / "both/comparison.json").read_text())["benchmarks"]
    for benchmark in ("refer", "vres"):
        for name in ("ciou", "biou"):
            assert compared[benchmark]["figures"][name]["first"] == result["benchmarks"][benchmark]["metrics"][name]


def test_official_answers_are_those_of_the_first_mask_in_the_log_too(
    sail: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(bundle: Any, batch: Any, *args: Any) -> list[Prediction]:
        """An empty mask before one that covers everything: all that a union finds, the first does not."""
        found = []
        for item in batch:
            assert item.image_size is not None
            masks = np.stack([np.zeros(item.image_size, bool), np.ones(item.image_size, bool)])
            found.append(Prediction("[SEG] [SEG]", masks, np.zeros((*item.image_size, 3), np.uint8)))
        return found

    monkeypatch.setattr(module, "answer_encoded", twice)
    values = {}
    for protocol in ("standard", "official"):
        few = ("--data.test.tasks={refer: 1.0}", "--evaluation.gallery=0", f"--name={protocol}")
        args = [arg for arg in LABORATORY if "tasks" not in arg]
        assert sail(*args, *few, f"--evaluation.protocol={protocol}").code == 0
        folder = workdir / f"runs/{protocol}/version_0"
        values[protocol] = float(figures(folder)["test/ciou"])
        assert report(folder)["metrics"]["ciou"] == pytest.approx(values[protocol], abs=1e-6)
    assert values["standard"] > 0 == pytest.approx(values["official"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--evaluation.protocol=official", "--evaluation.no_target=text"],
            ["official protocol", "no_target_from=text"],
        ),
        (["--evaluation.protocol=official", "--evaluation.combine=union"], ["official protocol", "combine=union"]),
        (["--evaluation.benchmark={describe: refcoco_val}"], ["refcoco_val is judged by masks", "describe"]),
        (["--evaluation.benchmark={descripe: x}"], ["no task 'descripe'"]),
        (["--model.metrics.ciou=Cider"], ["ciou is a name of the built-in metrics"]),
        (["--model.metrics.x=Cidre"], ["model.metrics.x", "Cider"]),
    ],
)
def test_settings_that_cannot_go_together_are_refused_before_a_question_is_asked(
    args: list[str], words: list[str], sail: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "answer_encoded", lambda *_: pytest.fail("a question was asked"))
    shown = sail(*LABORATORY, *args)
    assert shown.is_one_sentence(2, *words)


def test_the_old_name_of_the_section_works_with_a_warning(sail: Command) -> None:
    with pytest.warns(FutureWarning, match="the config section answers is now evaluation"):
        shown = sail("test", "--ckpt_path=sail-tiny", "--answers.protocol=official", "--print_config")
    assert shown.code == 0 and "evaluation:" in shown.out and "protocol: official" in shown.out
    assert "\nanswers:" not in shown.out


def test_fit_measures_ones_own_metrics_and_its_checkpoint_loads_where_their_file_is_gone(
    sail: Command, boundary_iou: Path, workdir: Path
) -> None:
    plain = "torchmetrics.classification.BinaryJaccardIndex"
    Path("own.yaml").write_text(f"model: {{metrics: {{biou: BoundaryIoU, jaccard: {plain}}}}}\n")
    args = (*FIT, "-c", "own.yaml", f"--plugins={boundary_iou}", "--data.val.samples=6")
    shown = sail(*args, "--trainer.val_check_interval=1", "--checkpoint.monitor=val/biou")
    assert shown.code == 0, shown.err
    assert "| metric | last (step 2) | best val/biou (step " in shown.out and "| val/jaccard |" in shown.out
    (best,) = (workdir / "runs/quickstart/version_0/checkpoints").glob("best-*.ckpt")
    assert f"best checkpoint: {best.relative_to(workdir)}" in shown.out or f"best checkpoint: {best}" in shown.out

    boundary_iou.unlink()
    script = (
        "import sys; from sail_lightning.cli import main; from sail_lightning import PixelSAIL\n"
        "assert PixelSAIL.load_from_checkpoint(sys.argv[1]).judge.own == {}\n"
        "sys.exit(main(['validate', '--ckpt_path', sys.argv[1], '--trainer.accelerator=cpu',"
        " '--data.val.samples=2', '--trainer.enable_progress_bar=false']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(best)], capture_output=True, text=True, cwd=workdir)
    assert done.returncode == 0, done.stderr
