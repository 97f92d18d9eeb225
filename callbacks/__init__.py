"""Lightning callbacks of the package; imported as `sail_lightning.callbacks`."""

from __future__ import annotations

if __name__ != "sail_lightning.callbacks":
    # From the repository's root, `import callbacks` would make a second copy whose classes are not the package's.
    raise ImportError("import sail_lightning.callbacks, not callbacks: the folder belongs to the package")

from sail_lightning.callbacks.ema import EMA
from sail_lightning.callbacks.evaluation import EvaluationWriter
from sail_lightning.callbacks.grad_norm import GradNorm
from sail_lightning.callbacks.non_finite import NonFiniteGuard
from sail_lightning.callbacks.overlays import OverlayLogger
from sail_lightning.callbacks.predictions import PredictionWriter
from sail_lightning.callbacks.throughput import Throughput
from sail_lightning.evaluate.curves import draw_learning_curve
from sail_lightning.settings.renames import renamed

__all__ = [
    "EMA",
    "EvaluationWriter",
    "GradNorm",
    "NonFiniteGuard",
    "OverlayLogger",
    "PredictionWriter",
    "Throughput",
    "draw_learning_curve",
]

__getattr__ = renamed(__name__, {"AnswerWriter": "EvaluationWriter"})
