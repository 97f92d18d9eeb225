"""How answers are judged: torchmetrics whose results, to the last bit, do not depend on batches or ranks."""

from sail_lightning.metrics.average_precision import MaskAveragePrecision
from sail_lightning.metrics.cider import Cider
from sail_lightning.metrics.grounded import GroundedCaption
from sail_lightning.metrics.meteor import Meteor
from sail_lightning.metrics.meteor_lite import MeteorLite
from sail_lightning.metrics.segmentation import ReferringSegmentation, VisualTextReferring
from sail_lightning.metrics.table import markdown_table, write_csv
from sail_lightning.metrics.tasks import TaskMetrics
from sail_lightning.metrics.text import ExactMatch, MultipleChoiceAccuracy, TokenF1, parse_choice, token_f1
from sail_lightning.metrics.yes_no import YesNo

__all__ = [
    "Cider",
    "ExactMatch",
    "GroundedCaption",
    "MaskAveragePrecision",
    "Meteor",
    "MeteorLite",
    "MultipleChoiceAccuracy",
    "ReferringSegmentation",
    "TaskMetrics",
    "TokenF1",
    "VisualTextReferring",
    "YesNo",
    "markdown_table",
    "parse_choice",
    "token_f1",
    "write_csv",
]
