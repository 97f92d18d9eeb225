"""Comparison of two runs on the questions that both answered: differences, whether chance explains them, what changed.

Differences are tested in pairs, question by question, which finds far smaller ones than comparing two intervals does:

- **paired bootstrap**: both runs are drawn again with the same questions; the interval of the difference, and p, twice
  the share of draws on the other side of zero. It works for every metric, also pooled ones such as cIoU;
- **sign-flip permutation**: were the runs alike, each question's difference could as well have the other sign. p is the
  share of random signs whose mean difference is as large as the one found. It works for metrics that are means of an
  answer's own score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torchmetrics
from numpy.typing import NDArray

from sail_lightning.errors import SailError
from sail_lightning.evaluate import own
from sail_lightning.evaluate.benchmarks import perbench_name
from sail_lightning.evaluate.gallery import MAIN, main_score
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Combine, NoTargetFrom, ProtocolName, Rules
from sail_lightning.evaluate.scoring import Report, score

ROUNDS = 10_000
"""Number of draws of random signs in the sign-flip test."""
_CELLS = 1 << 22


@dataclass(frozen=True)
class Difference:
    """A metric of both runs. `difference` is the second minus the first, with its 95 % `interval` and `p`, None where
    there are none."""

    first: float
    second: float
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Paired:
    """The score called `name` of single answers: its means in both runs, and how many answers became better, worse or
    neither."""

    name: str
    first: float
    second: float
    p: float
    better: int
    worse: int
    same: int


@dataclass(frozen=True)
class Change:
    """One question to which the two runs' answers have different scores."""

    id: str
    question: str
    first: float
    second: float
    first_text: str
    second_text: str


@dataclass(frozen=True)
class Comparison:
    """Two runs on one benchmark. `only_first` and `only_second` count questions that the other did not answer."""

    benchmark: str
    questions: int
    only_first: int
    only_second: int
    figures: dict[str, Difference]
    paired: Paired | None
    changes: list[Change]
    settings: dict[str, Any] = field(default_factory=dict)
    """The rules by which both runs were scored, as `Report.settings`."""

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as values that JSON holds."""
        return asdict(self)


def compare(
    first: Iterable[EvalRecord],
    second: Iterable[EvalRecord],
    protocol: ProtocolName = "standard",
    no_target_from: NoTargetFrom = "mask",
    combine: Combine | None = None,
    bootstrap: int = 1000,
    changed: int = 20,
    seed: int = 0,
    metrics: Mapping[str, torchmetrics.Metric] | None = None,
) -> dict[str, Comparison]:
    """Scores two runs in the same way, on the questions that both answered.

    Args:
        first: Answers of the first run.
        second: Answers of the second run.
        protocol: As in `score`.
        no_target_from: As in `score`.
        combine: As in `score`.
        bootstrap: Number of draws.
        changed: How many of the questions that changed most are kept.
        seed: Seed of all draws.
        metrics: Metrics of your own, by name.

    Returns:
        Comparisons by benchmark, in the order of the first run.

    Raises:
        SailError: The runs share no question, or an answer cannot be judged.
        SailUsageError: The rules contradict each other.
    """
    own_metrics = own.checked(metrics)
    Rules(protocol, no_target_from, combine)  # refuses before anything is read
    left, right = _by_question(first), _by_question(second)
    # By name, so that signs are drawn for the same answers in whatever order these come.
    places = {benchmark: place for place, benchmark in enumerate(dict.fromkeys(key[0] for key in left))}
    shared = sorted(left.keys() & right.keys(), key=lambda key: (places[key[0]], left[key].id, key[1:]))
    if not shared:
        raise SailError("the two runs share no question; compare runs on one benchmark, of the same annotations")
    scored = [
        score(
            [run[key] for key in shared],
            protocol=protocol,
            no_target_from=no_target_from,
            combine=combine,
            bootstrap=bootstrap,
            seed=seed,
            metrics=own_metrics,
        )
        for run in (left, right)
    ]
    found = {}
    for name, report in scored[0].items():
        mine, theirs = (sum(_belongs(name, key[0]) for key in run) for run in (left, right))
        found[name] = _compared(report, scored[1][name], mine, theirs, changed, seed)
    return found


def _by_question(answers: Iterable[EvalRecord]) -> dict[tuple[str, str, int], EvalRecord]:
    """Returns answers by benchmark, question, and how many times the source asked it before, in the order of its
    numbers; of answers with the same number the first counts, as in `score`."""
    asked: dict[tuple[str, str], dict[int, EvalRecord]] = {}
    for one in answers:
        same = asked.setdefault((one.benchmark, one.dedup_key), {})
        same.setdefault(-1 if one.number is None else one.number, one)
    return {
        (*question, place): same[number]
        for question, same in asked.items()
        for place, number in enumerate(sorted(same))
    }


def _belongs(name: str, benchmark: str) -> bool:
    common = perbench_name(benchmark)
    return name == benchmark or (common is not None and name.casefold() == common.casefold())


def _compared(first: Report, second: Report, mine: int, theirs: int, changed: int, seed: int) -> Comparison:
    figures = {name: _difference(first, second, name) for name in first.metrics if name in second.metrics}
    scores = [[main_score(sample) for sample in report.per_sample] for report in (first, second)]
    pairs = [(index, a, b) for index, (a, b) in enumerate(zip(*scores, strict=True)) if a is not None and b is not None]
    largest = sorted(pairs, key=lambda pair: -abs(pair[2] - pair[1]))[:changed]
    changes = [_change(first, second, *pair) for pair in largest if pair[1] != pair[2]]
    questions = first.counts["answers"]
    return Comparison(
        first.benchmark,
        questions,
        mine - questions,
        theirs - questions,
        figures,
        _paired(first, pairs, seed),
        changes,
        first.settings,
    )


def _difference(first: Report, second: Report, name: str) -> Difference:
    values = first.metrics[name], second.metrics[name]
    if name not in first.replicates or name not in second.replicates:
        return Difference(*values, values[1] - values[0])
    # The same seed drew the same questions in both.
    draws = second.replicates[name] - first.replicates[name]
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Difference(*values, values[1] - values[0])
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    tail = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(*values, values[1] - values[0], low, high, min(1.0, 2 * tail / (1 + len(draws))))


def _paired(report: Report, pairs: Sequence[tuple[int, float, float]], seed: int) -> Paired | None:
    if not pairs:
        return None
    name = next(key for key in MAIN if report.per_sample[pairs[0][0]].get(key) is not None)
    before, after = (np.array([pair[place] for pair in pairs]) for place in (1, 2))
    gain = after - before
    return Paired(
        name=name,
        first=float(before.mean()),
        second=float(after.mean()),
        p=sign_flip(gain, seed),
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
        same=int((gain == 0).sum()),
    )


def sign_flip(differences: NDArray[np.float64], seed: int = 0, rounds: int = ROUNDS) -> float:
    """Returns the two-sided p of a mean difference: the share of random signs whose mean is as far from zero.

    It is exact where there are no more sign patterns than `rounds`. Differences of zero have no sign and take no part.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    found = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()  # sums with other signs may differ in their last bits
    if 2 ** len(moved) <= rounds:
        patterns = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float((np.abs((1 - 2 * patterns) @ moved) >= found).mean())
    rng = np.random.default_rng(seed)
    extreme, step = 0, max(1, _CELLS // len(moved))
    for start in range(0, rounds, step):
        signs = rng.integers(0, 2, (min(step, rounds - start), len(moved)), dtype=np.int8) * 2.0 - 1
        extreme += int((np.abs(signs @ moved) >= found).sum())
    return (1 + extreme) / (1 + rounds)


def _change(first: Report, second: Report, index: int, before: float, after: float) -> Change:
    one, other = first.records[index], second.records[index]
    return Change(str(one.id), one.question, before, after, one.prediction, other.prediction)


def to_markdown(comparisons: dict[str, Comparison], first: str, second: str) -> str:
    """Returns comparisons as a Markdown report, in which `first` and `second` name the runs."""
    lines = ["# Comparison", "", f"A is `{first}`, B is `{second}`; a difference is B less A.", ""]
    lines += _rule_lines(next(iter(comparisons.values())).settings) if comparisons else []
    for name, one in comparisons.items():
        lines += [f"## {name}", "", f"On the {one.questions:,} questions that both answered"]
        lines[-1] += (
            f" (A alone: {one.only_first:,}, B alone: {one.only_second:,})."
            if one.only_first or one.only_second
            else "."
        )
        lines += [
            "",
            "| metric | A | B | difference | 95 % interval | p |",
            "| --- | ---: | ---: | ---: | --- | ---: |",
        ]
        lines += [_row(key, difference) for key, difference in one.figures.items()]
        lines += ["", *_paired_lines(one.paired), *_change_lines(one.changes)]
    return "\n".join(lines) + "\n"


def _rule_lines(settings: Mapping[str, Any]) -> list[str]:
    """Returns the lines that state the rules by which both runs were scored."""
    named = {
        "protocol": "protocol",
        "no_target_from": "no target from",
        "combine": "several masks",
        "similarity": "similarity of phrases",
    }
    rules = ", ".join(f"{name} `{settings[key]}`" for key, name in named.items())
    return [f"Both are scored by: {rules}.", ""]


def _row(name: str, one: Difference) -> str:
    interval = "" if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}"
    p = "" if one.p is None else f"{one.p:.4f}{' *' if one.p < 0.05 else ''}"
    return f"| `{name}` | {one.first:.4f} | {one.second:.4f} | {one.difference:+.4f} | {interval} | {p} |"


def _paired_lines(paired: Paired | None) -> list[str]:
    if paired is None:
        return []
    return [
        f"Each answer's own `{paired.name}`: mean {paired.first:.4f} in A, {paired.second:.4f} in B; "
        f"{paired.better:,} better, {paired.worse:,} worse, {paired.same:,} the same; sign-flip permutation p = "
        f"{paired.p:.4f}.",
        "",
    ]


def _change_lines(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return []
    lines = [
        "Changed most:",
        "",
        "| id | question | A | B | A says | B says |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    for one in changes:
        cells = [one.id, one.question, f"{one.first:.3f}", f"{one.second:.3f}", one.first_text, one.second_text]
        lines.append(f"| {' | '.join(_short(cell) for cell in cells)} |")
    return [*lines, ""]


def _short(text: str, length: int = 80) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= length else f"{flat[: length - 3]}..."
