"""The bench: both forms give the same numbers, operations are counted rightly, and the command writes what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sail_lightning.benchmarks import flops, workloads
from sail_lightning.benchmarks.cases import BASELINE, CASES, OURS
from sail_lightning.benchmarks.measure import alternate, peak_memory
from sail_lightning.benchmarks.settings import ModelSizes, Settings
from sail_lightning.cli import main
from sail_lightning.cli.bench import SMALL
from sail_lightning.data.collate import pack
from sail_lightning.plan import AttentionPlan, Span

SETTINGS = replace(Settings(threads=1), **SMALL, sizes=ModelSizes(64, 2, 4, 2, 96, 500))
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CASES)
def test_the_baseline_gives_the_same_numbers(name: str) -> None:
    case = CASES[name].make(SETTINGS)
    assert list(case.variants) == [BASELINE, OURS]
    assert case.tokens > 0
    # Of answers: the share of mask pixels whose logit is so near zero that rounding decides.
    assert case.difference() < (2e-3 if name in ("answer", "questions") else 1e-4)


spans = st.builds(Span, st.sampled_from(["image", "text"]), st.integers(0, 9))


@given(st.lists(st.lists(spans, min_size=1, max_size=5), min_size=1, max_size=4))
def test_seen_keys_are_the_entries_of_the_dense_mask(samples: list[list[Span]]) -> None:
    plan = AttentionPlan.build(samples)
    assert flops.seen_keys(plan) == int(plan.dense_mask().sum())


def test_operations_are_those_that_torch_counts() -> None:
    model = workloads.build_model(SETTINGS.sizes, 4)
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


def test_peak_memory_is_what_a_run_touches() -> None:
    found = peak_memory(lambda: torch.ones(64, 2**18).sum(), CPU)
    if found is None:
        pytest.skip("this system does not tell")
    assert 60 < found < 120


def test_settings_pass_through_json() -> None:
    assert Settings.from_dict(json.loads(json.dumps(SETTINGS.to_dict()))) == SETTINGS


def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = "loss,step-single,throughput"
    assert main(["bench", "--small", "--repeats", "1", "--threads", "1", "--only", only, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bench.md", "bench.json", "bench.png"}
    content: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert [case["case"] for case in content["cases"]] == ["loss", "step-single"]
    for case in content["cases"]:
        assert case["speedup"] > 0
        assert case["difference"] < 1e-4
        assert set(case["seconds"]) == set(case["peak_mib"]) == {BASELINE, OURS}
    assert content["throughput"][0]["flops"] > 0
    assert content["environment"]["torch"] == torch.__version__.split("+")[0]
    page = (tmp_path / "bench.md").read_text()
    assert "training step, one picture" in page
    assert page in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "attend"], "no case attend; there are step-single"),
        (["--repeats", "0"], "--repeats and --budget must be at least 1"),
        (["--devise", "cpu"], "unrecognized arguments: --devise"),
    ],
)
def test_a_wrong_command_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "there is no CUDA device here" in capsys.readouterr().err


def test_the_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*CASES, "throughput", "data"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_command_runs_on_cuda(tmp_path: Path) -> None:
    words = ["bench", "--small", "--device", "cuda", "--repeats", "1", "--only", "loss,throughput", "--no-memory"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["throughput"][0]["peak_mib"] > 0
