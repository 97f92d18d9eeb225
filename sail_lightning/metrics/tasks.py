"""One object that judges every answer by the metrics of its task."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from sail_lightning.metrics.grounded import GroundedCaption
from sail_lightning.metrics.masks import Masks
from sail_lightning.metrics.meteor_lite import MeteorLite
from sail_lightning.metrics.segmentation import PRECISIONS, ReferringSegmentation, VisualTextReferring
from sail_lightning.metrics.sums import Sums
from sail_lightning.metrics.text import ExactMatch, MultipleChoiceAccuracy, TokenF1, says_no_target
from sail_lightning.sample import Task, Turn
from sail_lightning.sequence.chat_template import phrases_of


class TaskMetrics(nn.Module):
    """Routes answers by `Turn.task` and reports flat figures.

    | task | figures |
    |---|---|
    | `refer` | `ciou giou n_acc t_acc pr@0.5 ... pr@0.9` |
    | `vres` | `vres_ciou vres_giou` |
    | `describe` | `exact_match token_f1 meteor_lite` |
    | `choice` | `mcq_accuracy` |
    | `caption` | `gcg_miou gcg_recall caption_f1` |
    | `chat` | none |

    `no_target_from` is that of `ReferringSegmentation`; `text` reads "no target" in the answer.
    """

    def __init__(self, no_target_from: Literal["mask", "text"] = "mask") -> None:
        super().__init__()
        self.refer = ReferringSegmentation(no_target_from=no_target_from)
        self.vres = VisualTextReferring()
        self.exact = ExactMatch()
        self.description = TokenF1()
        self.meteor = MeteorLite()
        self.choice = MultipleChoiceAccuracy()
        self.grounded = GroundedCaption()
        self.caption = TokenF1()

    def update(
        self,
        task: str,
        *,
        text: str,
        masks: Masks,
        phrases: Sequence[str],
        turn: Turn,
        targets: Masks,
        ignore: Masks | None = None,
    ) -> None:
        """Adds one answer.

        Args:
            task: `turn.task`, or another task to judge the turn by.
            text: the answer's text; markup and special tokens may be in it.
            masks: predicted masks (n, H, W) bool, one per `[SEG]`, in order.
            phrases: the answer's phrases, one per mask, in order (read by `caption` only).
            turn: the question with its true answer.
            targets: the turn's true masks (m, H, W) bool, one per `[SEG]` of the true answer.
            ignore: (H, W) bool, pixels that count nowhere (read by `refer` and `vres` only).

        Raises:
            ValueError: no such task, or shapes that do not fit.
            SailError: the true answer does not fit its task.
        """
        if task == "refer":
            self.refer.update(masks, targets, ignore, no_target_text=says_no_target(text))
        elif task == "vres":
            self.vres.update(masks, targets, ignore)
        elif task == "describe":
            self.exact.update(text, turn.answer)
            self.description.update(text, turn.answer)
            self.meteor.update(text, turn.answer)
        elif task == "choice":
            self.choice.update(text, turn.answer, turn.choices)
        elif task == "caption":
            self.grounded.update(masks, phrases, targets, phrases_of(turn.answer))
            self.caption.update(text, turn.answer)
        elif task not in get_args(Task):
            raise ValueError(f"no task {task!r}; tasks are {', '.join(get_args(Task))}")

    def _figures(self) -> list[tuple[Sums, dict[str, str]]]:
        """Every metric with its keys as reported, in the one order in which every rank visits them."""
        return [
            (self.refer, {key: key for key in ("ciou", "giou", "n_acc", "t_acc", *PRECISIONS)}),
            (self.vres, {"ciou": "vres_ciou", "giou": "vres_giou"}),
            (self.exact, {"exact_match": "exact_match"}),
            (self.description, {"token_f1": "token_f1"}),
            (self.meteor, {"meteor_lite": "meteor_lite"}),
            (self.choice, {"mcq_accuracy": "mcq_accuracy"}),
            (self.grounded, {"gcg_miou": "gcg_miou", "gcg_recall": "gcg_recall"}),
            (self.caption, {"token_f1": "caption_f1"}),
        ]

    def compute(self) -> dict[str, float]:
        """Figures of all ranks, in [0, 1]; those with nothing to judge are left out.

        A collective: every rank calls it, also one that saw no sample, and all get the same keys and figures.
        """
        found: dict[str, float] = {}
        with warnings.catch_warnings():
            # A task that this rank never met is not a mistake here.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            for metric, names in self._figures():
                values = metric.compute()
                found |= {name: float(values[key]) for key, name in names.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def reset(self) -> None:
        """Forgets all answers."""
        for metric, _ in self._figures():
            metric.reset()
