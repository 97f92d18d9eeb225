"""From answers to figures: one report per benchmark, under a named protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.metrics.average_precision import picture_order
from sail_lightning.metrics.grounded import Similarity
from sail_lightning.metrics.segmentation import Combine, NoTargetFrom
from sail_lightning.metrics.text import token_f1
from sail_lightning.scoring.benchmarks import CAPTION_KINDS, CHOICE_KINDS, Kind, kind_of, perbench_name
from sail_lightning.scoring.bootstrap import intervals, replicates
from sail_lightning.scoring.captions import captions
from sail_lightning.scoring.choices import multiple_choice, yes_or_no
from sail_lightning.scoring.grounded import grounded_captions
from sail_lightning.scoring.parts import Floats, Options, Part, ProtocolName
from sail_lightning.scoring.record import Answer
from sail_lightning.scoring.referring import referring

PERBENCH_TASKS: tuple[Kind, ...] = ("perbench_caption", "perbench_mcq", "perbench_vres")


@dataclass(frozen=True)
class Report:
    """What a benchmark's answers are worth.

    `metrics` are fractions in [0, 1] (CIDEr to 10; `perbench_overall` to 100), those with nothing to judge left out;
    `intervals` their 95 % bootstrap intervals; `counts` whole numbers; `settings` what they depend on, as JSON.
    `per_sample` holds the score of each of `answers`, which are those given, in order, without the ones that came
    before. `replicates` are the bootstrap's figures, (rounds,) each.
    """

    benchmark: str
    kind: str
    protocol: ProtocolName
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    per_sample: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    replicates: dict[str, Floats] = field(default_factory=dict, repr=False)


def score(
    answers: Iterable[Answer],
    protocol: ProtocolName = "standard",
    no_target_from: NoTargetFrom = "mask",
    combine: Combine | None = None,
    similarity: Similarity = token_f1,
    bootstrap: int = 1000,
    seed: int = 0,
    meteor: bool = True,
) -> dict[str, Report]:
    """Judges answers, benchmark by benchmark.

    Neither the order of the answers nor an answer that comes twice changes a figure: of answers with the same id to the
    same question about the same truth the first counts.

    Args:
        answers: of any number of benchmarks, mixed.
        protocol: `standard` by the definitions; `official` as the official code does, faults included.
        no_target_from: what says "no target" where masks are judged, the `mask` or the `text`; the official protocol
            reads masks only.
        combine: several masks of an answer are their `union`, or only the `first` counts; None: what the protocol says
            (standard: union, official: first). Visual-text referring pairs masks in order instead.
        similarity: of phrases of grounded captions, to [0, 1]; each pair is asked for once.
        bootstrap: number of draws for the intervals; 0 for none.
        seed: of the draws.
        meteor: whether captions are also put to METEOR's own program, where it is installed; it takes seconds.

    Returns:
        reports by benchmark, in the order in which they first come. Where the three tasks of PerBench are there, one
        more, by their common name, with `perbench_overall`; with `meteor_lite` instead of METEOR it is
        `perbench_overall_lite`.

    Raises:
        SailUsageError: an option that does not exist, or does not go with the protocol.
        SailError: an answer that cannot be judged; the message names it.
    """
    options = _options(protocol, no_target_from, combine, similarity, meteor)
    if bootstrap < 0:
        raise SailUsageError(f"bootstrap must be 0 or more draws, not {bootstrap}")
    settings = {
        "protocol": protocol,
        "no_target_from": options.no_target_from,
        "combine": options.combine,
        "similarity": getattr(similarity, "__name__", type(similarity).__name__),
        "bootstrap": bootstrap,
        "seed": seed,
    }
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.benchmark, []).append(answer)
    reports = {name: _report(name, group, options, settings) for name, group in groups.items()}
    return reports | _overall(reports, protocol, settings)


def _options(
    protocol: ProtocolName,
    no_target_from: NoTargetFrom,
    combine: Combine | None,
    similarity: Similarity,
    meteor: bool,
) -> Options:
    for name, value, known in (
        ("protocol", protocol, get_args(ProtocolName)),
        ("no_target_from", no_target_from, get_args(NoTargetFrom)),
        ("combine", combine, (None, *get_args(Combine))),
    ):
        if value not in known:
            names = " or ".join(str(one) for one in known if one)
            raise SailUsageError(f"{name} must be {names}, not {value!r}")
    if protocol == "official" and (no_target_from == "text" or combine == "union"):
        setting = "no_target_from=text" if no_target_from == "text" else "combine=union"
        raise SailUsageError(f"the official protocol does not go with {setting}; leave it out, or use the standard one")
    united = combine or ("first" if protocol == "official" else "union")
    return Options(protocol, no_target_from, united, lru_cache(maxsize=None)(similarity), meteor)


def _report(name: str, group: Sequence[Answer], options: Options, settings: Mapping[str, Any]) -> Report:
    first: dict[str, Answer] = {}
    for answer in group:
        first.setdefault(answer.truth, answer)
    kept, truths = list(first.values()), list(first)
    # Ranking and drawing go by name, so that no figure depends on the order in which answers come.
    order = sorted(range(len(kept)), key=lambda place: (picture_order(kept[place].id), truths[place]))
    held = {key for answer in kept for key in answer.held}
    kind = kind_of(name, held, [answer.answer for answer in kept if answer.answer])
    parts = _parts(kind, [kept[place] for place in order], options)
    metrics = {key: value for part in parts for key, value in part.metrics().items() if not math.isnan(value)}
    counts = {"answers": len(kept), "duplicates": len(group) - len(kept)}
    samples: list[dict[str, Any]] = [{} for _ in kept]
    for part in parts:
        counts |= part.counts
        for place, sample in zip(order, part.samples, strict=True):
            samples[place] |= sample
    values = replicates(parts, len(kept), settings["bootstrap"], settings["seed"], name)
    values = {key: figure for key, figure in values.items() if key in metrics}
    return Report(
        benchmark=name,
        kind=kind,
        protocol=options.protocol,
        metrics=metrics,
        intervals=intervals(values),
        counts=counts,
        per_sample=samples,
        answers=kept,
        settings=dict(settings),
        replicates=values,
    )


def _parts(kind: Kind, answers: Sequence[Answer], options: Options) -> list[Part]:
    if kind == "gcg":
        return grounded_captions(answers, options)
    if kind in CAPTION_KINDS:
        return captions(answers, options, kind)
    if kind in CHOICE_KINDS:
        return [multiple_choice(answers, options)]
    if kind == "pope":
        return [yes_or_no(answers, options)]
    return [referring(answers, options, kind)]


def _overall(reports: Mapping[str, Report], protocol: ProtocolName, settings: Mapping[str, Any]) -> dict[str, Report]:
    """A report per PerBench whose three tasks are there: mean(100 METEOR, 100 MCQ, 100 (cIoU + gIoU) / 2)."""
    benches: dict[str, tuple[str, dict[str, Report]]] = {}
    for name, report in reports.items():
        common = perbench_name(name)
        if common is not None:
            benches.setdefault(common.casefold(), (common, {}))[1][report.kind] = report
    found: dict[str, Report] = {}
    for common, tasks in benches.values():
        if set(tasks) != set(PERBENCH_TASKS):
            continue
        if common in reports:
            raise SailError(f"benchmark {common} is also the name of PerBench's overall score; call it otherwise")
        caption, choice, vres = (tasks[kind] for kind in PERBENCH_TASKS)
        meteor = "meteor" if "meteor" in caption.metrics else "meteor_lite"
        key = "perbench_overall" if meteor == "meteor" else "perbench_overall_lite"
        if "giou" not in vres.metrics:  # no question with a target
            continue
        sides = [(task.metrics, task.replicates) for task in (caption, choice, vres)]
        exact, drawn = (_mean_of_tasks(side, meteor) for side in zip(*sides, strict=True))
        values = {} if drawn is None else {key: drawn}
        found[common] = Report(
            benchmark=common,
            kind="perbench",
            protocol=protocol,
            metrics={key: float(exact)},
            intervals=intervals(values),
            counts={"answers": sum(report.counts["answers"] for report in tasks.values())},
            settings=dict(settings),
            replicates=values,
        )
    return found


def _mean_of_tasks(tasks: Sequence[Mapping[str, Any]], meteor: str) -> Any:
    """The paper's overall score, 0 to 100, of three tasks' figures, or of their figures in each draw; None of none."""
    caption, choice, vres = tasks
    if not caption:
        return None
    return 100 * (caption[meteor] + choice["mcq_accuracy"] + (vres["ciou"] + vres["giou"]) / 2) / 3
