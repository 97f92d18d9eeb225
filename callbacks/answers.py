"""`AnswerWriter`: what `test` answers goes to disk as it comes, and is scored and reported at the end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from numpy.typing import NDArray

from sail_lightning.callbacks.predictions import to_record
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import Source
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.generation.prediction import Prediction, encode_rle
from sail_lightning.image.preprocessing import load_image, load_mask
from sail_lightning.metrics.masks import ignored
from sail_lightning.module import PixelSAIL
from sail_lightning.provenance import annotations_of, questions_of, weights_of
from sail_lightning.registry import register
from sail_lightning.sample import BoolMask
from sail_lightning.scoring import Answer, read_answers, score
from sail_lightning.scoring.answer_log import NUMBER, AnswerLog, Line
from sail_lightning.scoring.report import COUNTED, write_report
from sail_lightning.sequence.chat_template import phrases_of
from sail_lightning.settings.ranges import Checked, NonNegativeInt

Benchmark = str | dict[str, str] | None
NAMES = {"caption": "gcg"}
"""Of answers to a task, where they are given none and are not called as the task."""
MASK_TASKS = ("refer", "vres", "caption")
"""Tasks whose answers are judged by masks."""


@register
class AnswerWriter(Checked, L.Callback):
    """Writes what `test` answers to `per_sample.jsonl`, and at the end scores it: report.md, report.json, gallery/.

    Each batch is written and flushed as soon as it is answered. A test that was killed goes on where it stopped if it
    is started again with `out` the folder that it wrote to: what is answered is not asked again, and the figures are
    those of a test that ran through. With several ranks, each writes a file of its own; rank 0 joins and scores them.

    Lines follow the schema of `scoring.record`, and hold besides: `number`, of the record in its source; `task`;
    `image`, the picture's file or null; `finish`, why the answer ended.

    Args:
        benchmark: name of what is measured, such as `refcoco_val`: how answers are scored follows from its beginning
            (docs/evaluation.md); or a name for each task. Null names each answer by the task of its question.
        protocol: `official` repeats the official code's figures, with its faults.
        no_target: what answers that nothing is meant: an empty `mask` or the `text`.
        out: folder to write to; the run's folder if null.
        bootstrap: resamples for the 95 % intervals; 0 gives none.
        gallery: how many of the best, of the worst and of other answers are drawn; 0 draws none.
    """

    def __init__(
        self,
        benchmark: str | dict[str, str] | None = None,
        protocol: Literal["standard", "official"] = "standard",
        no_target: Literal["mask", "text"] = "mask",
        out: str | None = None,
        bootstrap: NonNegativeInt = 1000,
        gallery: NonNegativeInt = 8,
    ) -> None:
        self.benchmark, self.out = benchmark, out
        self.protocol, self.no_target = protocol, no_target
        self.bootstrap, self.gallery = bootstrap, gallery
        self.folder: Path | None = None
        """Where the files lie, from the start of `test` on; None where data is not of `SailDataModule`."""
        self._data: SailDataModule | None = None
        self._log: AnswerLog | None = None
        self._head: dict[str, Any] = {}
        self._kept: list[Line] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder, self._data, self._log, self._kept = None, None, None, []
        data = getattr(trainer, "datamodule", None)
        if stage == "test" and isinstance(data, SailDataModule) and isinstance(pl_module, PixelSAIL):
            run = trainer.log_dir  # asked on all ranks: Lightning broadcasts it
            self.folder, self._data = Path(self.out or run or trainer.default_root_dir), data
            data.answered = partial(self._begin, trainer, pl_module)

    @property
    def _source(self) -> Source:
        assert self._data is not None and self._data.test is not None
        return self._data.test

    def _begin(self, trainer: L.Trainer, model: PixelSAIL) -> list[int]:
        """Opens the files, once the model has its weights; returns the numbers of what is answered already."""
        assert self.folder is not None
        source = self._source
        self._log = AnswerLog(self.folder, trainer.global_rank, trainer.world_size)
        if trainer.is_global_zero:
            self._head = _head(trainer, model, source, self.benchmark)
            self._log.begin(self._head)
        trainer.strategy.barrier("answers: joined what was there")
        lines = self._log.open()
        trainer.strategy.barrier("answers: read what was there")
        # Each rank asks something, so that none is left waiting in a collective; it is not counted twice.
        most = max(0, (source.length or 0) - trainer.world_size)
        self._kept = lines[:most]
        return [line[NUMBER] for line in self._kept]

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What an earlier run answered counts in the logged figures too."""
        metrics: Any = pl_module.metrics
        for line in self._kept[trainer.global_rank :: trainer.world_size]:
            sample = self._source[line[NUMBER]]
            turn = sample.turns[-1]
            metrics.update(
                turn.task,
                text=line["text"],
                masks=_stacked([load_mask(rle) for rle in line.get("pred", ())], line["size"]),
                phrases=line.get("phrases", ()),
                turn=turn,
                targets=_stacked([load_mask(sample.masks[index]) for index in turn.targets], line["size"]),
                ignore=ignored(sample, turn.targets),
            )

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Sequence[Prediction],
        batch: Sequence[EncodedSample],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._log is not None and self._data is not None:
            numbers = self._data.asked[batch_idx]
            self._log.add(
                to_line(number, self.benchmark, item, answer)
                for number, item, answer in zip(numbers, batch, outputs, strict=True)
            )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._log is None:
            return
        self._log.close()
        trainer.strategy.barrier("answers: all ranks wrote")
        if trainer.is_global_zero:
            self._log.join()
            self._report(self._log, pl_module)

    def _report(self, log: AnswerLog, model: Any) -> None:
        reports = score(
            read_answers(log.path),
            protocol=self.protocol,
            no_target_from=self.no_target,
            bootstrap=self.bootstrap,
        )
        meta = {**self._head, "attention": _kernels(model), COUNTED: self._head["data"]["questions"]}
        write_report(log.folder, reports, meta, partial(_picture, self._source), self.gallery)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._log is not None:
            self._log.close()
        self._let_go()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """The data module may serve another test, which is to ask everything."""
        if self._data is not None:
            self._data.answered = tuple
            self._data = None


def to_line(number: int, benchmark: Benchmark, item: EncodedSample, prediction: Prediction) -> Line:
    """One line of `per_sample.jsonl`, as `AnswerWriter` describes it."""
    sample, turn = item.sample, item.sample.turns[-1]
    told = to_record(prediction, sample.id)
    line: Line = {
        "id": sample.id or str(number),
        "benchmark": _named(benchmark, turn.task),
        "question": turn.question,
        "text": prediction.text,
        "size": told["size"],
        NUMBER: number,
        "task": turn.task,
        "image": str(sample.image) if isinstance(sample.image, str | Path) else None,
        "finish": prediction.finish,
    }
    if sample.prompts:
        line["prompts"] = told["prompts"]
    if turn.task in MASK_TASKS or not turn.answer:
        targets = [load_mask(sample.masks[index]) for index in turn.targets]
        nothing = turn.task == "refer" and not any(mask.any() for mask in targets)
        region = ignored(sample, turn.targets)
        line["pred"] = [mask["segmentation"] for mask in told["masks"]]
        line["target"] = [] if nothing else [encode_rle(mask) for mask in targets]
        line["ignore"] = None if region is None else encode_rle(region)
    if turn.task == "caption":
        line["phrases"] = [mask["phrase"] for mask in told["masks"]]
        line |= {"reference": sample.meta.get("caption", turn.answer), "reference_phrases": phrases_of(turn.answer)}
    elif turn.task == "choice":
        line |= {"choices": list(turn.choices), "answer": turn.answer}
    elif turn.task in ("describe", "chat"):
        line["reference"] = turn.answer
    return line


def _named(benchmark: Benchmark, task: str) -> str:
    if isinstance(benchmark, str):
        return benchmark
    return (benchmark or {}).get(task) or NAMES.get(task, task)


def _stacked(masks: list[BoolMask], size: Sequence[int] | None) -> np.ndarray:
    return np.stack(masks) if masks else np.zeros((0, *(size or (0, 0))), bool)


def _picture(source: Source, answer: Answer) -> NDArray[np.uint8] | None:
    image = next(iter(source[answer.extra[NUMBER]].images), None)
    return None if image is None else load_image(image)


def _kernels(model: Any) -> str:
    """The attention plugin, and of `auto` the kernels that it chose."""
    attention = getattr(model.model.backbone, "attention", None)
    chosen = getattr(attention, "chosen", None)
    return type(attention).__name__ + (f" ({', '.join(chosen)})" if chosen else "")


def _head(trainer: L.Trainer, model: PixelSAIL, source: Source, benchmark: Benchmark) -> dict[str, Any]:
    """What makes a test: answers of two tests that differ in it must not be mixed."""
    return {
        "benchmark": benchmark,
        "data": questions_of(source),
        "annotations": annotations_of(source),
        "weights": weights_of(trainer.ckpt_path or model.weights, model.state_dict),
        "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        "precision": str(trainer.precision),
        "max_side": model.max_side,
        "max_new_tokens": model.max_new_tokens,
    }
