"""The table, from result files that were written by hand: every number can be checked with a pencil."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import result_files
from result_files import answer, folders, study, write

from sail_lightning.ablation.comparison import Cell, compare
from sail_lightning.ablation.cost import Cost
from sail_lightning.ablation.curves import draw_curves, together
from sail_lightning.ablation.runs import Result
from sail_lightning.ablation.statistics import Paired, Spread, holm
from sail_lightning.ablation.study import TableMetric
from sail_lightning.ablation.table import Findings, to_csv, to_json, to_markdown
from sail_lightning.evaluate import benchmark_metrics

PLAIN = ([2, 4, 6, 8], [3, 5, 5, 7])  # means 0.5 and 0.5
BETTER = ([4, 6, 8, 9], [4, 7, 6, 8])  # means 0.675 and 0.625


@pytest.fixture
def results(tmp_path: Path) -> list[Result]:
    costs = (Cost(100.0, 1000, 9000.0, 60.0, 0.5), Cost(120.0, 1000, None, None, 0.7))
    plain = [write(tmp_path, "plain", seed, found) for seed, found in enumerate(PLAIN)]
    better = [write(tmp_path, "better", seed, found, costs[seed]) for seed, found in enumerate(BETTER)]
    return [plain[0], better[0], plain[1], better[1]]


def findings(root: Path, results: list[Result], failures: dict[tuple[str, int], str] | None = None) -> Findings:
    chosen = study()
    return Findings(
        chosen, results, compare(results, chosen.metrics, chosen.baseline, folders(root, results)), failures or {}
    )


def test_mean_and_spread_over_seeds(tmp_path: Path, results: list[Result]) -> None:
    ciou, giou = study().metrics
    table = findings(tmp_path, results).table
    assert list(table) == ["plain", "better"]
    for metric in (ciou, giou):  # all masks are alike in size, so both are the mean IoU
        assert table["plain"][metric].spread.mean == pytest.approx(0.5)
        assert table["plain"][metric].spread.std == pytest.approx(0.0)
        assert table["better"][metric].spread.mean == pytest.approx(0.65)
        assert table["better"][metric].spread.std == pytest.approx(0.05 / math.sqrt(2))


def test_paired_over_seeds(tmp_path: Path, results: list[Result]) -> None:
    cell = findings(tmp_path, results).table["better"][study().metrics[0]]
    assert cell.difference == pytest.approx(0.15)
    assert cell.over_seeds is not None
    error = 0.025  # differences 0.175 and 0.125: their deviation 0.05 / sqrt(2), by sqrt(2)
    reach = math.tan(math.pi * 0.475) * error  # one degree of freedom
    assert (cell.over_seeds.low, cell.over_seeds.high) == pytest.approx((0.15 - reach, 0.15 + reach))
    assert cell.over_seeds.p == pytest.approx(1 - 2 / math.pi * math.atan(0.15 / error))


def test_paired_over_samples_draws_the_mean_over_seeds_of_each_question(tmp_path: Path, results: list[Result]) -> None:
    cell = findings(tmp_path, results).table["better"][study().metrics[1]]
    gains = (np.subtract(BETTER, PLAIN) / 10).mean(0)  # of each question
    assert cell.over_samples is not None
    assert cell.over_samples.difference == pytest.approx(gains.mean())
    assert gains.min() <= cell.over_samples.low < gains.mean() < cell.over_samples.high <= gains.max()
    exact = np.array([np.mean(gains[list(draw)]) for draw in np.ndindex(4, 4, 4, 4)])  # all draws there are
    assert cell.over_samples.low == pytest.approx(np.quantile(exact, 0.025), abs=0.01)
    assert cell.over_samples.high == pytest.approx(np.quantile(exact, 0.975), abs=0.01)
    assert cell.over_samples.p < 0.01, "every question gained"


def test_samples_are_judged_as_the_report_says(tmp_path: Path) -> None:
    metric = TableMetric("test", "refer", "n_acc")
    results = []
    for variant, texts in (("plain", ("it is [SEG].",) * 4), ("better", ("there is no target.",) * 4)):
        result = write(tmp_path, variant, 0, [5])
        folder = folders(tmp_path, [result])[variant, 0] / "test"
        lines = [answer(number, 0) | {"target": [], "text": text} for number, text in enumerate(texts)]  # empty masks
        (folder / "per_sample.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (folder / "report.json").write_text(
            json.dumps({"protocol": "standard", "no_target_from": "text", "combine": "union"})
        )
        results.append(replace(result, metrics={"test": {"refer": {"n_acc": float(variant == "better")}}}))
    cell = compare(results, [metric], "plain", folders(tmp_path, results))["better"][metric]
    assert cell.difference == 1.0 and cell.over_samples is not None
    assert (cell.over_samples.low, cell.over_samples.high) == (1.0, 1.0), "by the masks they would be alike"


def test_a_metric_of_ones_own_is_compared_over_samples_as_the_built_in_ones_are(tmp_path: Path) -> None:
    jaccard = {"jaccard": "torchmetrics.classification.BinaryJaccardIndex"}  # that of pooled pixels: cIoU
    results = []
    for variant, found in (("plain", [1, 2, 3, 4]), ("better", [2, 4, 5, 9])):
        result = write(tmp_path, variant, 0, found)
        path = folders(tmp_path, [result])[variant, 0] / "test" / "report.json"
        rules = {"protocol": "standard", "no_target_from": "mask", "combine": "union"}
        path.write_text(json.dumps({**rules, "own_metrics": jaccard}))
        values = {"ciou": sum(found) / 40, "jaccard": sum(found) / 40}
        results.append(replace(result, metrics={"test": {"refer": values}}))
    ours, built_in = (TableMetric("test", "refer", name) for name in ("jaccard", "ciou"))
    cells = compare(results, [ours, built_in], "plain", folders(tmp_path, results))["better"]
    own, other = cells[ours].over_samples, cells[built_in].over_samples
    assert own is not None and other is not None
    assert (own.low, own.high, own.p) == pytest.approx((other.low, other.high, other.p), abs=1e-6)


def test_p_is_corrected_over_the_variants_of_each_metric(tmp_path: Path, results: list[Result]) -> None:
    odd = [write(tmp_path, "odd", seed, [4, 4, 4, 4], true=8) for seed in (0, 1)]  # other questions: no samples
    near = [write(tmp_path, "near", seed, found) for seed, found in enumerate(([2, 4, 6, 9], [3, 5, 5, 8]))]
    found = findings(tmp_path, [*results, *odd, *near])
    for metric in study().metrics:
        cells = {name: found.table[name][metric] for name in ("better", "odd", "near")}
        seeds = {name: cell.over_seeds for name, cell in cells.items()}
        samples = {name: cell.over_samples for name, cell in cells.items()}
        assert samples["odd"] is None
        for family in (seeds, samples):
            known = {name: one for name, one in family.items() if one is not None}
            corrected = dict(zip(known, holm([one.p for one in known.values()]), strict=True))
            assert {name: one.p_holm for name, one in known.items()} == corrected
        assert seeds["better"] is not None and seeds["near"] is not None and samples["better"] is not None
        assert seeds["near"].p == 0.0 == seeds["near"].p_holm, "the same gain with both seeds"
        assert seeds["better"].p_holm == pytest.approx(2 * seeds["better"].p), "odd is all zero: p is 1"
        assert samples["better"].p_holm == pytest.approx(2 * samples["better"].p)


def test_a_star_follows_the_corrected_p(tmp_path: Path, results: list[Result]) -> None:
    found = findings(tmp_path, results)
    tests = Paired(0.1, 0.01, 0.2, p=0.03, p_holm=0.06), Paired(0.1, 0.05, 0.2, p=0.01, p_holm=0.02)
    cell = Cell({0: 0.5}, Spread(0.5, None), 0.1, *tests)
    found = replace(found, table={"better": {study().metrics[0]: cell}})
    seeds, samples = "+0.0100 to +0.2000 | 0.0300 | 0.0600", "+0.0500 to +0.2000 | 0.0100 | 0.0200 *"
    assert f"| better | refer/ciou | +0.1000 | {seeds} | {samples} |" in to_markdown(found).splitlines()
    (output,) = csv.DictReader(io.StringIO(to_csv(found)))
    names = [f"test/refer/ciou {test}_{part}" for test in ("seeds", "samples") for part in ("p", "p_holm")]
    assert [float(output[name]) for name in names] == [0.03, 0.06, 0.01, 0.02]
    stored = to_json(found)["table"]["better"]["metrics"]["test/refer/ciou"]
    assert (stored["over_seeds"]["p"], stored["over_seeds"]["p_holm"]) == (0.03, 0.06)


def test_the_baseline_has_no_difference(tmp_path: Path, results: list[Result]) -> None:
    for cell in findings(tmp_path, results).table["plain"].values():
        assert (cell.difference, cell.over_seeds, cell.over_samples) == (None, None, None)


def test_other_questions_are_compared_over_seeds_only(tmp_path: Path, results: list[Result]) -> None:
    odd = [write(tmp_path, "odd", seed, [4, 4, 4, 4], true=8) for seed in (0, 1)]
    cell = findings(tmp_path, [*results, *odd]).table["odd"][study().metrics[0]]
    assert cell.over_seeds is not None and cell.over_samples is None


def test_only_seeds_that_both_have_are_paired(tmp_path: Path, results: list[Result]) -> None:
    without = [one for one in results if (one.variant, one.seed) != ("plain", 1)]
    cell = findings(tmp_path, without).table["better"][study().metrics[0]]
    assert cell.spread.mean == pytest.approx(0.65), "all of its own seeds"
    assert cell.difference == pytest.approx(0.675 - 0.5), "seed 0 alone"
    assert cell.over_seeds is None and cell.over_samples is not None


def test_perbenchs_overall_score_is_paired_over_the_questions_of_its_three_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmark_metrics, "meteor_program", lambda: pytest.fail("no metric is METEOR's: it need not start")
    )
    metric = TableMetric("test", "perbench", "perbench_overall_lite")
    results = []
    for variant, letters in (("plain", "BBBA"), ("better", "AABA")):  # one and three of four are right
        result = write(tmp_path, variant, 0, [5])
        output = [{"id": "c", "benchmark": "perbench/caption", "text": "a red car", "reference": ["a red car"]}]
        output += [
            {"id": f"m{n}", "benchmark": "perbench/mcq", "text": letter, "answer": "A", "choices": ["x", "y"]}
            for n, letter in enumerate(letters)
        ]
        output += [answer(0, 5) | {"benchmark": "perbench/vres"}]
        (folders(tmp_path, [result])[variant, 0] / result.answers["test"]).write_text(
            "\n".join(map(json.dumps, output))
        )
        overall = 100 * (1 + letters.count("A") / 4 + 0.5) / 3
        results.append(replace(result, metrics={"test": {"perbench": {"perbench_overall_lite": overall}}}))
    cell = compare(results, [metric], "plain", folders(tmp_path, results))["better"][metric]
    assert cell.over_samples is not None
    assert cell.over_samples.difference == pytest.approx(100 / 3 / 2), "two answers of four are one third of the score"
    assert (cell.over_samples.low, cell.over_samples.high) == pytest.approx((0.0, 100 / 3)), "none of the two, and all"


def test_markdown_holds_the_numbers(tmp_path: Path, results: list[Result]) -> None:
    text = to_markdown(findings(tmp_path, results, {("odd", 1): "fit: it broke"}))
    lines = text.splitlines()
    assert lines[0] == "# Ablation: byhand"
    assert "100 steps each; seeds 0, 1." in text
    assert "| variant | seeds | refer/ciou | refer/giou | train s | tokens/s | parameters | peak GiB |" in lines
    assert "| plain (baseline) | 2 | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 | 60 | 9,000 | 1,000 | 0.50 |" in lines
    assert "| better | 2 | 0.6500 ± 0.0354 | 0.6500 ± 0.0354 | 110 | 9,000 | 1,000 | 0.60 |" in lines
    (row,) = (line for line in lines if line.startswith("| better | refer/ciou"))
    assert row.startswith("| better | refer/ciou | +0.1500 | -0.1677 to +0.4677 | 0.1051 | ")
    assert row.endswith(" * |"), "significant over samples, not over two seeds"
    assert lines[-1] == "- odd, seed 1: fit: it broke"


def test_csv_holds_a_row_for_each_variant(tmp_path: Path, results: list[Result]) -> None:
    plain, better = csv.DictReader(io.StringIO(to_csv(findings(tmp_path, results))))
    assert (plain["variant"], plain["seeds"], better["variant"]) == ("plain", "2", "better")
    assert float(better["test/refer/ciou mean"]) == pytest.approx(0.65)
    assert float(better["test/refer/ciou difference"]) == pytest.approx(0.15)
    assert plain["test/refer/ciou difference"] == ""
    assert float(better["test/refer/giou samples_p"]) < 0.01
    assert (float(better["seconds"]), float(better["tokens_per_s"])) == (110.0, 9000.0)


def test_json_holds_every_run(tmp_path: Path, results: list[Result]) -> None:
    content = json.loads(json.dumps(to_json(findings(tmp_path, results, {("odd", 0): "no"}))))
    assert [(run["variant"], run["seed"]) for run in content["runs"]] == [(one.variant, one.seed) for one in results]
    assert content["table"]["better"]["metrics"]["test/refer/ciou"]["values"] == pytest.approx({"0": 0.675, "1": 0.625})
    assert content["failures"] == [{"variant": "odd", "seed": 0, "error": "no"}]


def test_a_metric_that_a_variant_lacks_is_left_empty(tmp_path: Path) -> None:
    chosen = study(metrics=["refer/ciou", "vres/giou"])
    results = [write(tmp_path, "plain", 0, [1, 2])]
    table = compare(results, chosen.metrics, "plain", folders(tmp_path, results))
    found = Findings(chosen, results, table, {})
    assert "| plain (baseline) | 1 | 0.1500 |  | 60 |" in to_markdown(found)
    (row,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert row["test/vres/giou mean"] == ""


def test_curves_are_joined_at_the_steps_that_all_seeds_have() -> None:
    steps, values = together([([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]), ([2.0, 3.0, 4.0], [0.4, 0.6, 0.8])])
    assert steps.tolist() == [2.0, 3.0]
    assert values.tolist() == [[0.2, 0.3], [0.4, 0.6]]


def test_curves_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    tables = {}
    for variant, gain in (("plain", 0.0), ("better", 0.2)):
        for seed in (0, 1):
            rows = [f"{step},{0.1 * step + gain + 0.05 * seed}," for step in range(1, 5)]
            path = tmp_path / f"{variant}_{seed}.csv"
            path.write_text("step,val/ciou,val/none\n" + "\n".join(rows) + "\n")
            tables.setdefault(variant, []).append(path)
    drawn = draw_curves({**tables, "gone": [tmp_path / "no.csv"]}, ["val/ciou", "val/none", "x"], tmp_path / "a.png")
    assert drawn is not None and drawn.stat().st_size > 5000
    assert draw_curves(tables, ["val/none"], tmp_path / "b.png") is None
    assert not (tmp_path / "b.png").exists()


def test_masks_by_hand_have_the_iou_that_they_should() -> None:
    from sail_lightning.evaluate import EvalRecord, score

    report = score([EvalRecord.from_json(result_files.answer(0, 3))], bootstrap=0)["refer"]
    assert report.metrics["giou"] == pytest.approx(0.3)
