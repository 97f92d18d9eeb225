"""Which metrics judge which kind of benchmark: one table, for what is logged and for what is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sail_lightning.evaluate.benchmarks import Kind
from sail_lightning.evaluate.metric import Metric
from sail_lightning.evaluate.metrics.average_precision import MaskAveragePrecision
from sail_lightning.evaluate.metrics.captions import ExactMatch, MeteorLite, TokenF1
from sail_lightning.evaluate.metrics.choices import MultipleChoiceAccuracy
from sail_lightning.evaluate.metrics.cider import Cider
from sail_lightning.evaluate.metrics.expressions import PRECISIONS
from sail_lightning.evaluate.metrics.grounded import GroundedCaption
from sail_lightning.evaluate.metrics.meteor import Meteor, meteor_program
from sail_lightning.evaluate.metrics.segmentation import ReferringSegmentation, VisualTextReferring
from sail_lightning.evaluate.metrics.yes_no import YesNo
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Rules


@dataclass(frozen=True, eq=False)
class BuiltIn:
    """A built-in metric in the table.

    What is logged of kinds of benchmarks that share an entry is judged together, under one name.

    Args:
        make: Makes the metric for given rules; None where the rules leave it out, or its program is not installed.
        logged: Names of its values, each with the name under which it is logged. Values that are not named are in the
            report only, as are those that need all answers at once.
    """

    make: Callable[[Rules], Metric | None]
    logged: Mapping[str, str] = field(default_factory=dict)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _meteor(rules: Rules) -> Metric | None:
    return Meteor(rules.protocol) if rules.meteor and meteor_program() else None


_REFERRING = BuiltIn(
    lambda rules: ReferringSegmentation(rules.protocol, rules.no_target_from, rules.combine),
    _same("ciou", "giou", "n_acc", "t_acc", *PRECISIONS),
)
_VISUAL_TEXT = BuiltIn(lambda rules: VisualTextReferring(rules.protocol), {"ciou": "vres_ciou", "giou": "vres_giou"})
_EXACT_MATCH = BuiltIn(lambda rules: ExactMatch(rules.protocol), _same("exact_match"))
_TOKEN_F1 = BuiltIn(lambda rules: TokenF1(rules.protocol), _same("token_f1"))
_METEOR_LITE = BuiltIn(lambda rules: MeteorLite(rules.protocol), _same("meteor_lite"))
_METEOR, _CIDER = BuiltIn(_meteor), BuiltIn(lambda rules: Cider(rules.protocol))
_CHOICE = BuiltIn(lambda rules: MultipleChoiceAccuracy(rules.protocol), _same("mcq_accuracy"))
_PRECISION = BuiltIn(lambda rules: MaskAveragePrecision())
_GROUNDED = BuiltIn(lambda rules: GroundedCaption(rules.protocol, rules.similarity), _same("gcg_miou", "gcg_recall"))
_REPORTED_METEOR_LITE = BuiltIn(_METEOR_LITE.make)
_CAPTION_F1 = BuiltIn(_TOKEN_F1.make, {"token_f1": "caption_f1"})
_YES_NO = BuiltIn(lambda rules: YesNo(rules.protocol), _same("accuracy", "precision", "recall", "f1", "yes_ratio"))

METRICS: dict[Kind, tuple[BuiltIn, ...]] = {
    **dict.fromkeys(("refer", "refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg"), (_REFERRING,)),
    "perbench_vres": (_VISUAL_TEXT,),
    "perbench_caption": (_METEOR, _METEOR_LITE, _CIDER, _TOKEN_F1),
    "region_caption": (_METEOR, _METEOR_LITE, _CIDER, _TOKEN_F1, _EXACT_MATCH),
    "perbench_mcq": (_CHOICE,),
    "mcq": (_CHOICE,),
    "gcg": (_PRECISION, _GROUNDED, _METEOR, _REPORTED_METEOR_LITE, _CIDER, _CAPTION_F1),
    "pope": (_YES_NO,),
}
"""The metrics of each kind of benchmark, in the order of a report."""


def reported(kind: Kind, records: Sequence[EvalRecord], rules: Rules) -> list[Metric]:
    """Returns the metrics of the report on a benchmark; those of the words of grounded captions only where all records
    hold a reference."""
    made = [metric for entry in METRICS[kind] if (metric := entry.make(rules)) is not None]
    if kind == "gcg" and not all(record.reference for record in records):
        return [metric for metric in made if metric.takes != "words"]
    return made


def logged(rules: Rules) -> dict[BuiltIn, Metric]:
    """Returns the metrics that are logged, of all kinds of benchmarks, by their entry in the table."""
    entries = dict.fromkeys(entry for kind in METRICS.values() for entry in kind if entry.logged)
    return {entry: metric for entry in entries if (metric := entry.make(rules)) is not None}
