"""The bench: both forms give the same numbers, operations are counted rightly, and the command writes what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sail_lightning.benchmarks import (
    data_path,
    flops,
    measure,
    official_style,
    profile,
    record_index,
    throughput,
    workloads,
)
from sail_lightning.benchmarks.cases import BASELINE, CASES, OURS
from sail_lightning.benchmarks.measure import Timing, alternate, peak_allocated, peak_memory
from sail_lightning.benchmarks.report import Report, Result
from sail_lightning.benchmarks.settings import ModelSizes, Settings
from sail_lightning.cli import main
from sail_lightning.cli.commands import bench
from sail_lightning.cli.commands.bench import SMALL
from sail_lightning.encoding.collate import pack
from sail_lightning.errors import SailError
from sail_lightning.model.model import SailModel
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

SETTINGS = replace(Settings(threads=1), **SMALL, sizes=ModelSizes(64, 2, 4, 2, 96, 500))
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", CASES)
def test_the_baseline_gives_the_same_numbers(name: str) -> None:
    case = CASES[name].make(SETTINGS)
    assert list(case.variants) == [BASELINE, OURS]
    assert case.tokens > 0
    assert case.difference() < 1e-4


@pytest.mark.parametrize("name", ["answer", "questions"])
@pytest.mark.parametrize(("noise", "least"), [(0.001, 1e-4), (1.0, 0.1)])
def test_masks_from_other_features_are_told(
    name: str, noise: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SailModel.predict_masks

    def wrong(self: SailModel, tokens: Any, *others: Any) -> dict[int, Tensor]:
        return read(self, [token + noise * token.std() * torch.randn_like(token) for token in tokens], *others)

    monkeypatch.setattr(SailModel, "predict_masks", wrong)
    assert least < CASES[name].make(SETTINGS).difference() < 1


def test_other_words_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["answer"].make(SETTINGS)
    generate = official_style.generate
    monkeypatch.setattr(
        official_style, "generate", lambda *given: [([*ids[:-1], 7], logits) for ids, logits in generate(*given)]
    )
    assert case.difference() == 1


@pytest.mark.parametrize("name", ["step-single", "attention-batch", "loss", "mask-head-batch", "prefill"])
def test_the_baseline_gives_about_the_same_numbers_in_bfloat16(name: str) -> None:
    case = CASES[name].make(replace(SETTINGS, dtype="bfloat16"))
    found = {tensor.dtype for run in case.variants.values() for tensor in run().values()}
    assert torch.bfloat16 in found
    assert case.difference() < 0.1


def test_answers_are_decoded_in_bfloat16() -> None:
    case = CASES["questions"].make(replace(SETTINGS, dtype="bfloat16"))
    for run in case.variants.values():
        assert len(run()) == SETTINGS.questions
    assert case.difference() <= 1  # rounding may choose another word


spans = st.builds(Span, st.sampled_from(["image", "text"]), st.integers(0, 9))


@given(st.lists(st.lists(spans, min_size=1, max_size=5), min_size=1, max_size=4))
def test_seen_keys_are_the_entries_of_the_dense_mask(samples: list[list[Span]]) -> None:
    plan = AttentionPlan.build(samples)
    assert flops.seen_keys(plan) == int(plan.dense_mask().sum())


def test_operations_are_those_that_torch_counts() -> None:
    model = workloads.build_model(SETTINGS, 4)
    batch = pack([workloads.sample(model, size, 8, 500) for size in SETTINGS.mixed])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = model.backbone(model.embed(batch), batch.positions, batch.plan, batch.vision)
        model.backbone.logits(hidden[batch.target_rows])
    by_kind = {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for kind, count in by_kind.items() if "scaled_dot_product" in kind)
    expected = flops.transformer_forward(model, batch.plan, len(batch.patches), len(batch.target_ids))
    scores = 4 * flops.seen_keys(batch.plan) * 16 * 4 * 2
    assert counter.get_total_flops() - attention == expected - scores
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.mask_logits(hidden, batch)
    grids, masks = batch.grids, len(batch.seg_rows)
    found = flops.mask_head_forward(model, grids, masks)
    assert counter.get_total_flops() == pytest.approx(found, rel=0.02)  # the queries, a few rows, are left out


def test_variants_take_turns() -> None:
    turns: list[str] = []
    timings = alternate({name: lambda name=name: turns.append(name) for name in "ab"}, 3, CPU)  # type: ignore[misc]
    assert "".join(turns) == "abababab"
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    assert all(low <= timing.median <= high for timing in timings.values() for low, high in [timing.spread])


TOUCHES_64_MIB = """
import torch
from sail_lightning.benchmarks.measure import peak_memory
print(peak_memory(lambda: torch.ones(64, 2**18).sum(), torch.device("cpu")))
"""


def test_peak_memory_is_what_a_run_touches() -> None:
    # In a process of its own: this one holds memory that other tests have left.
    found = subprocess.run([sys.executable, "-c", TOUCHES_64_MIB], capture_output=True, text=True, check=True).stdout
    if found.strip() == "None":
        pytest.skip("this system does not tell")
    assert 60 < float(found) < 120


def test_peak_of_training_is_all_that_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: steps.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300 * 2**20)  # weights
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: steps.append("read") or 700 * 2**20)
    assert peak_allocated(lambda: steps.append("run"), torch.device("cuda")) == 700
    assert steps == ["reset", "run", "read"]
    assert peak_memory(lambda: None, torch.device("cuda")) == 400
    assert peak_allocated(lambda: None, CPU) is None


def test_what_fits_into_no_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(throughput, "pack", full)
    with pytest.raises(SailError, match="hidden 64, 2 layers: a batch of 100 tokens .* --checkpointing, or a smaller"):
        throughput.measure(SETTINGS, 1)


@pytest.mark.parametrize(
    ("machine", "dtype", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", True),
        ("NVIDIA H200", "bfloat16", True),
        ("NVIDIA H200 NVL", "bfloat16", False),
        ("NVIDIA H100 PCIe", "bfloat16", False),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", False),
        ("NVIDIA H200", "float32", False),
    ],
)
def test_shares_are_of_what_the_same_machine_can_do(machine: str, dtype: str, known: bool) -> None:
    assert bool(throughput.peaks_of(machine, dtype)) is known


def training_on(peak_mib: float | None, peaks: dict[str, float]) -> Report:
    found = throughput.Throughput("3b, transformer", 16_000, 0.5, 197_500 * 10**9, peak_mib, peaks)
    return Report("bench", {}, {}, throughput=(found,))


def test_training_on_an_h100_is_reported_with_its_shares_and_memory() -> None:
    report = training_on(60_000, throughput.PEAKS)
    (written,) = json.loads(json.dumps(report.to_dict()))["throughput"]
    assert (written["tokens_per_second"], written["teraflops"], written["peak_mib"]) == (32_000, 395, 60_000)
    assert written["shares"] == {"of_measured_product": 0.5, "of_data_sheet": pytest.approx(395 / 989)}
    page = report.to_markdown()
    assert "| model | tokens | step, s | tokens/s | TFLOP/s | of 790 | of 989 | peak, MiB |" in page
    assert "| 3b, transformer | 16000 | 0.5 | 32,000 | 395 | 50.0% | 39.9% | 60,000 |" in page


def test_training_on_the_cpu_is_reported_without_shares_of_a_gpu() -> None:
    report = training_on(None, {})
    assert "| model | tokens | step, s | tokens/s | TFLOP/s |\n" in report.to_markdown()
    assert "H100" not in report.to_markdown() and "%" not in report.to_markdown()
    assert report.to_dict()["throughput"][0]["shares"] == {}


def test_the_profile_counts_the_products_of_a_step_and_bounds_its_time() -> None:
    model = workloads.build_model(SETTINGS, profile.STRIDE)
    batch = pack([workloads.sample(model, size, 8, 500) for size in SETTINGS.mixed])
    counted = sum(2 * a * b * c * count for (a, b, c), count in profile.products(model, batch).items())
    transformer = flops.transformer_forward(model, batch.plan, len(batch.patches), len(batch.target_ids))
    decoder = transformer - flops.attention_forward(model, batch.plan)
    head = flops.mask_head_forward(model, batch.grids, len(batch.seg_rows))
    assert counted == pytest.approx(decoder + head, rel=0.08)  # depth-wise products are counted there too
    found = profile.measure(SETTINGS, 1)
    assert all(value > 0 for value in found.values())
    assert found["mixed_decoder_gflop"] == pytest.approx(3 * decoder / 1e9)
    assert found["mixed_mask_head_gflop"] == pytest.approx(3 * head / 1e9)
    assert found["mixed_products_gflop_per_s"] == found["mixed_products_gflop_per_s_thread"]  # of one thread
    assert found["single_floor_s"] > found["single_attention_s"]
    assert found["single_last_block_mib"] == 3 * 32 * 32 * 64 * 4 / 2**20


def test_settings_pass_through_json() -> None:
    assert Settings.from_dict(json.loads(json.dumps(SETTINGS.to_dict()))) == SETTINGS


def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = "loss,step-single,throughput,profile"
    assert main(["bench", "--small", "--repeats", "1", "--threads", "1", "--only", only, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bench.md", "bench.json", "bench.png"}
    content: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    asked = f"sail-lightning bench --only {only} --repeats 1 --threads 1 --small --out {tmp_path}"
    assert content["command"] == asked
    assert [case["case"] for case in content["cases"]] == ["loss", "step-single"]
    for case in content["cases"]:
        assert case["speedup"] > 0
        assert case["difference"] < 1e-4
        assert set(case["seconds"]) == set(case["peak_mib"]) == {BASELINE, OURS}
    assert content["throughput"][0]["flops"] > 0
    assert content["throughput"][0]["tokens_per_second"] > 0
    assert content["profile"]["single_step_s"] > 0
    assert content["settings"]["dtype"] == "float32"
    assert content["environment"]["torch"] == torch.__version__.split("+")[0]
    page = (tmp_path / "bench.md").read_text()
    assert "training step, one image" in page
    assert page in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "attend"], "no case attend; there are step-single"),
        (["--repeats", "0"], "--repeats must be 1 or more, not 0"),
        (["--devise", "cpu"], "unknown option --devise; did you mean --device?"),
        (["--small", "--budget", "50"], "--small sets its own sizes; leave out --budget or --small"),
        (["--small", "--preset", "3b"], "--small sets its own sizes; leave out --preset or --small"),
        (["--preset", "0.5b,7b"], "--preset must be one of 0.5b, 3b, several with commas, not 0.5b,7b"),
        (["--preset", "3b", "--only", "loss"], "--preset is for the case throughput"),
        (["--only", "loss", "--out", __file__], "(File exists); give another folder with --out"),
        (["--only", "loss", "--out", f"{__file__}/sub"], "(Not a directory); give another folder with --out"),
    ],
)
def test_a_wrong_command_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def measured(monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str]) -> list[tuple[str, Settings]]:
    """What the command would measure, and with which settings; nothing runs."""
    asked: list[tuple[str, Settings]] = []

    def compare(name: str, settings: Settings, repeats: int, memory: bool) -> Result:
        asked.append((name, settings))
        timings = {form: Timing((1.0,)) for form in (BASELINE, OURS)}
        return Result(name, timings, {}, 0.0, 1)

    def watched(name: str, made: Any) -> Any:
        return lambda first, *_: asked.append((name, first)) or made

    monkeypatch.setattr(bench, "_compare", compare)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "environment", lambda device: {"machine": str(device)})
    for module, made in ((throughput, []), (profile, {}), (data_path, {}), (record_index, {})):
        monkeypatch.setattr(module, "measure", watched(module.__name__.rpartition(".")[2], made))
    assert main(["bench", *words, "--out", str(folder)]) == 0
    return asked


def test_on_cuda_every_case_runs_in_bfloat16_and_throughput_with_both_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, tmp_path, ["--device", "cuda", "--compile"])
    assert [name for name, _ in asked] == [*CASES, "profile", "data_path", "record_index", "throughput", "throughput"]
    used = [settings for _, settings in asked if isinstance(settings, Settings)]
    assert {(settings.device, settings.dtype, settings.budget) for settings in used} == {("cuda", "bfloat16", 16_384)}
    presets = [(one.sizes.preset, one.sizes.vocabulary) for name, one in asked if name == "throughput"]
    assert presets == [("0.5b", 151_936), ("3b", 151_936)]
    assert all(settings.sizes == ModelSizes() for name, settings in asked[: len(CASES)])


@pytest.mark.parametrize(
    ("words", "dtype", "presets"),
    [
        (["--preset", "3b"], "float32", ["3b"]),
        ([], "float32", [None]),
        (["--dtype", "bfloat16", "--preset", "0.5b,3b"], "bfloat16", ["0.5b", "3b"]),
    ],
)
def test_precision_and_presets_can_be_chosen(
    words: list[str], dtype: str, presets: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, tmp_path, ["--only", "throughput", *words])
    assert [(settings.dtype, settings.sizes.preset) for _, settings in asked] == [(dtype, name) for name in presets]


def test_make_bench_runs_where_it_writes(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^bench:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tools = {"sail-lightning": 'echo "$@"', "python": "echo cuda --compile"}
    for name, line in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "Makefile").write_text(f"BIN := {tmp_path}\nPY := $(BIN)/python\nbench:\n{recipe}")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "-C", str(tmp_path), "-s"], capture_output=True, text=True, check=True, env=own)
    assert done.stdout == "bench --device cuda --compile --out benchmarks/results/cuda\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "there is no CUDA device here" in capsys.readouterr().err


def test_the_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*CASES, "throughput", "profile", "data", "index"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_command_runs_on_cuda(tmp_path: Path) -> None:
    only = ",".join([*CASES, "throughput", "profile"])
    words = ["bench", "--small", "--device", "cuda", "--repeats", "1", "--only", only, "--no-memory"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["throughput"][0]["peak_mib"] > 0
    # A tiny model in bfloat16: rounding alone, and of answers perhaps another word.
    assert all(case["difference"] < 0.1 for case in content["cases"] if case["case"] not in ("answer", "questions"))
