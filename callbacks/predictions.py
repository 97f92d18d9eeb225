"""`PredictionWriter`: writes answers to disk as they are generated, as JSON lines and images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import lightning as L

from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.evaluate.answer_log import encoded
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.preprocessing import IMAGE_SUFFIXES, load_mask
from sail_lightning.image.run_lengths import encode_rle
from sail_lightning.registry import register
from sail_lightning.sample import Box, Point, Prompt, Scribble

FILE, OVERLAYS = "predictions.jsonl", "overlays"


@register
class PredictionWriter(L.Callback):
    """Writes the answers of `predict`: `predictions.jsonl` and, if enabled, `overlays/<name>.png`.

    Each line is written and flushed as soon as its batch is answered, so a crash loses no answer that came before. A
    new run overwrites the file. With several ranks, each writes its own file, and rank 0 joins them at the end.

    One line is one JSON object:

    - `source`: the image's file, or the record's name;  `id`: the record's id, "" if it has none;
    - `question`, `text`: the question, and the answer as generated, `[SEG]` and phrase tags included;
    - `finish`: why the answer ended: `end`, `length` or `loop`;
    - `size`: [height, width] of the image in pixels, null without an image;
    - `masks`: one object per `[SEG]`, in order, at the image's own size: `segmentation` (COCO compressed RLE),
      `area` (pixels), `bbox` [x, y, width, height], `phrase` ("" if the answer gives none);
    - `prompts`: one object per visual prompt: `id` (K of `<PromptK>`), and `box` [x0, y0, x1, y1], `point` [x, y],
      `scribble` [[x, y], ...] or `mask` (a file, or COCO compressed RLE), in pixels of the image;
    - `seconds`: this answer's share of the time that its batch took;
    - `overlay`: path of the image with the answer drawn on it, relative to the file; null if none was drawn.

    Args:
        out: folder to write to; null is the run's folder.
        overlays: whether answers are drawn.
    """

    def __init__(self, out: str | None = None, overlays: bool = True) -> None:
        self.out, self.overlays = out, overlays
        self.path: Path | None = None
        """The path of `predictions.jsonl`, set when `predict` starts."""
        self._file: TextIO | None = None
        self._names: set[str] = set()
        self._suffix = ""

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = trainer.log_dir  # read on all ranks: Lightning broadcasts it
        folder = Path(self.out or run or trainer.default_root_dir)
        self.path = folder / FILE
        self._names = set()
        self._suffix = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        folder.mkdir(parents=True, exist_ok=True)
        if self.overlays:
            (folder / OVERLAYS).mkdir(exist_ok=True)
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)  # or a crash would leave the file of an earlier run
            for stale in folder.glob("predictions-rank*.jsonl"):
                stale.unlink()
        trainer.strategy.barrier("predictions: clean folder")
        self._file = self._own(self._suffix).open("w", encoding="utf-8")

    # Not Lightning's BasePredictionWriter, which warns that it does not know the indices of a streamed batch.
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Sequence[Prediction],
        batch: Sequence[EncodedSample],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._file is not None and self.path is not None
        for item, answer in zip(batch, outputs, strict=True):
            overlay = None
            if self.overlays and answer.image is not None:
                overlay = f"{OVERLAYS}/{self._name(answer.source or item.sample.id)}.png"
                answer.overlay().save(self.path.parent / overlay)
            record = to_record(answer, item.sample.id, overlay)
            self._file.write(encoded([record]))
            self._file.flush()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        trainer.strategy.barrier("predictions: all ranks wrote")
        if trainer.world_size > 1 and trainer.is_global_zero:
            self._join(trainer.world_size)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _own(self, suffix: str) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.stem}{suffix}{self.path.suffix}")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _join(self, ranks: int) -> None:
        """Joins the files of the ranks, one line of each in turn, in the order in which images were distributed."""
        assert self.path is not None
        parts = [self._own(f"-rank{rank}") for rank in range(ranks)]
        lines = [part.read_text(encoding="utf-8").split("\n")[:-1] for part in parts]  # `splitlines` cuts at U+2028 too
        joined = [line for turn in zip_longest(*lines) for line in turn if line is not None]
        whole = self.path.with_suffix(".tmp")
        whole.write_text("".join(f"{line}\n" for line in joined), encoding="utf-8")
        os.replace(whole, self.path)
        for part in parts:
            part.unlink()

    def _name(self, source: str) -> str:
        """Returns a file name for a source that is new in this run, also on file systems that ignore case."""
        path = Path(source)
        plain = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        plain = re.sub(r"[^\w.-]+", "_", plain).strip("._")[:80] or "prediction"
        name, number = f"{plain}{self._suffix}", 1
        while name.casefold() in self._names:
            number += 1
            name = f"{plain}-{number}{self._suffix}"
        self._names.add(name.casefold())
        return name


def to_record(prediction: Prediction, id: str = "", overlay: str | None = None) -> dict[str, Any]:
    """Returns one line of `predictions.jsonl`, as `PredictionWriter` describes it."""
    return {
        "source": prediction.source,
        "id": id,
        "question": prediction.question,
        "text": prediction.text,
        "finish": prediction.finish,
        "size": None if prediction.image is None else list(prediction.image.shape[:2]),
        "masks": prediction.to_coco(),
        "prompts": [_prompt(prompt, index) for index, prompt in enumerate(prediction.prompts)],
        "seconds": round(prediction.seconds, 6),
        "overlay": overlay,
    }


def _prompt(prompt: Prompt, index: int) -> dict[str, Any]:
    record: dict[str, Any] = {"id": index if prompt.id is None else prompt.id}
    if isinstance(prompt, Box):
        record["box"] = [prompt.x0, prompt.y0, prompt.x1, prompt.y1]
    elif isinstance(prompt, Point):
        record["point"] = [prompt.x, prompt.y]
    elif isinstance(prompt, Scribble):
        record["scribble"] = [list(point) for point in prompt.points]
    else:
        file = isinstance(prompt.mask, str | Path)
        record["mask"] = str(prompt.mask) if file else encode_rle(load_mask(prompt.mask))
    return record
