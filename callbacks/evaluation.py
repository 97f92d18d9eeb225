"""`EvaluationWriter`: the rules of an evaluation; what `test` answers goes to disk as it comes, and is reported."""

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
from sail_lightning.evaluate import EvalRecord, Rules, read_records
from sail_lightning.evaluate.answer_log import NUMBER, AnswerLog, Line
from sail_lightning.evaluate.benchmarks import Benchmark, check_benchmark
from sail_lightning.evaluate.from_prediction import record_of
from sail_lightning.evaluate.provenance import annotations_of, questions_of, weights_of
from sail_lightning.evaluate.report import COUNTED, OWN_METRICS, write_report
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.preprocessing import load_image
from sail_lightning.module import PixelSAIL
from sail_lightning.registry import register
from sail_lightning.settings.ranges import Checked, NonNegativeInt
from sail_lightning.settings.renames import renamed


@register
class EvaluationWriter(Checked, L.Callback):
    """Gives `fit`, `validate` and `test` the rules by which answers are judged, and writes what `test` answers.

    `per_sample.jsonl` gets each batch as soon as it is answered; at the end come report.md, report.json and gallery/.
    A test that was killed goes on where it stopped if it is started again with `out` the folder that it wrote to: what
    is answered is not asked again, and the values are those of a test that ran through. With several ranks, each writes
    a file of its own; rank 0 joins and scores them.

    Lines follow the schema of `evaluate.record`, and hold besides: `number`, the record's index in its source; `task`;
    `image`, the image's file or null; `finish`, why the answer ended.

    Args:
        benchmark: name of what is measured, such as `refcoco_val`: how answers are scored follows from its beginning
            (docs/evaluation.md); or a name for each task. Null names each answer by the task of its question.
        protocol: `official` repeats the official code's values, with its faults, in the log and in the report.
        no_target: what answers that nothing is meant: an empty `mask` or the `text`.
        combine: several masks of an answer are their `union`, or only the `first` counts; null: what the protocol says.
        out: folder to write to; the run's folder if null.
        bootstrap: resamples for the 95 % intervals; 0 gives none.
        gallery: how many of the best, of the worst and of other answers are drawn; 0 draws none.
    """

    def __init__(
        self,
        benchmark: str | dict[str, str] | None = None,
        protocol: Literal["standard", "official"] = "standard",
        no_target: Literal["mask", "text"] = "mask",
        combine: Literal["union", "first"] | None = None,
        out: str | None = None,
        bootstrap: NonNegativeInt = 1000,
        gallery: NonNegativeInt = 8,
    ) -> None:
        check_benchmark(benchmark)
        self.rules = Rules(protocol, no_target, combine)
        self.benchmark, self.out = benchmark, out
        self.bootstrap, self.gallery = bootstrap, gallery
        self.folder: Path | None = None
        """Where the files lie, from the start of `test` on; None where data is not of `SailDataModule`."""
        self._data: SailDataModule | None = None
        self._log: AnswerLog | None = None
        self._run_metadata: dict[str, Any] = {}
        self._resumed: list[Line] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder, self._data, self._log, self._resumed = None, None, None, []
        if not isinstance(pl_module, PixelSAIL):
            return
        if stage in ("fit", "validate", "test"):
            pl_module.judge_by(self.rules, self.benchmark)
        data = getattr(trainer, "datamodule", None)
        if stage == "test" and isinstance(data, SailDataModule):
            run = trainer.log_dir  # asked on all ranks: Lightning broadcasts it
            self.folder, self._data = Path(self.out or run or trainer.default_root_dir), data
            data.completed_indices = partial(self._begin, trainer, pl_module)

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
            self._run_metadata = _metadata(trainer, model, source, self.benchmark)
            self._log.begin(self._run_metadata)
        trainer.strategy.barrier("answers: joined what was there")
        lines = self._log.open()
        trainer.strategy.barrier("answers: read what was there")
        # Each rank asks something, so that none is left waiting in a collective; it is not counted twice.
        most = max(0, (source.length or 0) - trainer.world_size)
        self._resumed = lines[:most]
        return [line[NUMBER] for line in self._resumed]

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What an earlier run answered counts in the logged values too."""
        judge: Any = pl_module.judge
        for line in self._resumed[trainer.global_rank :: trainer.world_size]:
            judge.update(EvalRecord.from_json(line))

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
            numbers = self._data.batch_indices[batch_idx]
            self._log.add(
                to_line(number, self.benchmark, item, answer)
                for number, item, answer in zip(numbers, batch, outputs, strict=True)
            )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._log is None:
            return
        self._log.close()
        trainer.strategy.barrier("answers: all ranks wrote")
        if trainer.is_global_zero and isinstance(pl_module, PixelSAIL):
            self._log.join()
            self._report(self._log, pl_module)

    def _report(self, log: AnswerLog, model: PixelSAIL) -> None:
        reports = model.judge.reports(read_records(log.path), self.bootstrap)
        meta = {**self._run_metadata, "attention": _kernels(model), COUNTED: self._run_metadata["data"]["questions"]}
        if model.judge.own:
            meta[OWN_METRICS] = _specs(model)
        write_report(log.folder, reports, meta, partial(_image, self._source), self.gallery)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._log is not None:
            self._log.close()
        self._detach()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._detach()
        if isinstance(pl_module, PixelSAIL):
            pl_module.judge_by(None)

    def _detach(self) -> None:
        """The data module may serve another test, which is to ask everything."""
        if self._data is not None:
            self._data.completed_indices = tuple
            self._data = None


def to_line(number: int, benchmark: Benchmark, item: EncodedSample, prediction: Prediction) -> Line:
    """One line of `per_sample.jsonl`, as `EvaluationWriter` describes it."""
    sample = item.sample
    line = record_of(item, prediction, benchmark, number).to_json()
    line["image"] = str(sample.image) if isinstance(sample.image, str | Path) else None
    line["finish"] = prediction.finish
    if sample.prompts:
        line["prompts"] = to_record(prediction, sample.id)["prompts"]
    return line


def _image(source: Source, record: EvalRecord) -> NDArray[np.uint8] | None:
    image = next(iter(source[record.extra[NUMBER]].images), None)
    return None if image is None else load_image(image)


def _kernels(model: Any) -> str:
    """The attention plugin, and of `auto` the kernels that it chose."""
    attention = getattr(model.model.backbone, "attention", None)
    chosen = getattr(attention, "chosen", None)
    return type(attention).__name__ + (f" ({', '.join(chosen)})" if chosen else "")


def _specs(model: PixelSAIL) -> dict[str, Any]:
    """The metrics of one's own as the config made them; of those made in Python, the class alone."""
    given = model.hparams.get("metrics") or {}
    return {
        name: given.get(name) or f"{type(metric).__module__}.{type(metric).__qualname__}"
        for name, metric in model.judge.own.items()
    }


def _metadata(trainer: L.Trainer, model: PixelSAIL, source: Source, benchmark: Benchmark) -> dict[str, Any]:
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


__getattr__ = renamed(__name__, {"AnswerWriter": "EvaluationWriter"})
