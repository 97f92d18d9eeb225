"""From recorded answers to trusted figures, without a model: `read_answers`, `score`."""

from sail_lightning.scoring.benchmarks import Kind, kind_of
from sail_lightning.scoring.record import Answer, read_answers
from sail_lightning.scoring.score import Report, score

__all__ = ["Answer", "Kind", "Report", "kind_of", "read_answers", "score"]
