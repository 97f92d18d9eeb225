"""How answers are judged: torchmetrics whose states are whole numbers, so results do not depend on batches or ranks."""

from sail_lightning.metrics.grounded import GroundedCaption
from sail_lightning.metrics.segmentation import ReferringSegmentation
from sail_lightning.metrics.table import markdown_table, write_csv
from sail_lightning.metrics.tasks import TaskMetrics
from sail_lightning.metrics.text import ExactMatch, MultipleChoiceAccuracy, TokenF1, parse_choice, token_f1

__all__ = [
    "ExactMatch",
    "GroundedCaption",
    "MultipleChoiceAccuracy",
    "ReferringSegmentation",
    "TaskMetrics",
    "TokenF1",
    "markdown_table",
    "parse_choice",
    "token_f1",
    "write_csv",
]
