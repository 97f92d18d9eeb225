"""`SailDataModule`: turns sources into packed batches for training and lists of questions for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sail_lightning.compat.lightning import batch_progress
from sail_lightning.data.distributed_sampler import Indices, distributed_batches
from sail_lightning.data.prompt_syntax import parse_prompt
from sail_lightning.data.sources.base import Source
from sail_lightning.data.stream import AccumulationWindows, PackedStream, StreamState
from sail_lightning.encoding.batch import OpaqueBatch, PackedBatch, ShardCursor
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import IMAGE_SUFFIXES, ExifImage
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import Checked, NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from sail_lightning.settings.renames import renamed

logger = logging.getLogger(__name__)


class SailDataModule(Checked, L.LightningDataModule):
    """The data of fit, validate, test and predict, encoded as the Trainer's model needs it.

    A checkpoint stores how far training has read, batches that were prefetched not counted. `fit --ckpt_path` continues
    with exactly the batches that an uninterrupted run would have seen, given the same data, token budget, packing
    buffer, and numbers of processes and workers. Otherwise it continues with the same samples in other batches.

    Args:
        train: Source of `fit`.
        val: Source of `validate` and of the checks during `fit`.
        test: Source of `test`.
        images: Images of `predict`: a folder, a file, or a list of both; turned as their EXIF orientation says.
        text: The question that `predict` asks about each image.
        prompts: Regions for that question: `mask:FILE.png`, `box:X0,Y0,X1,Y1`, `point:X,Y` or `scribble:X,Y,X,Y,...`,
            with `K=` in front for <PromptK>.
        token_budget: Largest number of tokens in a training batch; a longer sample makes a batch of its own.
        eval_batch_size: Number of questions that are answered together.
        num_workers: Number of worker processes that read training data.
        mask_sample_weight: Weight of the language loss in samples that have masks (0.1 in the official recipe).
        seed: Seed for shuffling finite sources.
        packing_buffer_size: Encoded samples that each reader buffers; a training batch takes those that fill the
            budget best, and no sample waits for more than this many batches. 1 keeps the samples in order.
        max_error_rate: Share of broken training records, 0 to 1, that are skipped with a warning that names each; a
            larger share stops the run, and 0 stops it at the first.
    """

    def __init__(
        self,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        images: str | list[str] | None = None,
        text: str | None = None,
        prompts: list[str] | None = None,
        token_budget: PositiveInt = 1200,
        eval_batch_size: PositiveInt = 64,
        num_workers: NonNegativeInt = 0,
        mask_sample_weight: NonNegativeFloat = 1.0,
        seed: NonNegativeInt = 0,
        packing_buffer_size: PositiveInt = 32,
        max_error_rate: UnitInterval = 0.05,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = train, val, test
        self.max_error_rate = max_error_rate
        self.images, self.text = images, text
        self.prompts = tuple(parse_prompt(prompt) for prompt in prompts or ())
        self.token_budget, self.eval_batch_size, self.num_workers = token_budget, eval_batch_size, num_workers
        self.mask_sample_weight, self.seed, self.packing_buffer_size = mask_sample_weight, seed, packing_buffer_size
        self.broken: list[str] = []
        """One sentence for each image that `predict` could not read."""
        self.faults = 0
        """Number of training records that this process has skipped in this run."""
        self.completed_indices: Callable[[], Collection[int]] = tuple
        """Called when `test` begins; returns the indices of records that are answered already and are left out."""
        self.batch_indices: Sequence[Indices] = ()
        """Indices of the records in each batch of `test`, from the making of its loader on."""
        self._stream: PackedStream | None = None
        self._state = self._before = StreamState()
        self._begun = 0

    def setup(self, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is loaded, if there is one
            self._stream, self._begun, self.faults = None, 0, 0
            self._state = self._before = StreamState()

    def _encoder(self, **changes: Any) -> Encoder:
        encoder: Encoder = self.trainer.lightning_module.encoder  # type: ignore[assignment]
        return replace(encoder, **changes)

    def train_dataloader(self) -> AccumulationWindows:
        if self.train is None:
            raise SailUsageError("fit needs data.train, a source")
        stream = PackedStream(
            self.train,
            self._encoder(mask_sample_weight=self.mask_sample_weight),
            self.token_budget,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.packing_buffer_size,
            self.max_error_rate,
        )
        stream.state, self._stream = self._state, stream
        pin = self.trainer.strategy.root_device.type == "cuda"
        loader = DataLoader(stream, batch_size=None, num_workers=self.num_workers, pin_memory=pin)
        limit = self.trainer.limit_train_batches
        epoch = limit if isinstance(limit, int) else None
        begun, self._begun = self._begun, 0
        return _OpaqueWindows(loader, self.trainer.accumulate_grad_batches, begun, epoch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Takes a batch out of its `OpaqueBatch` and counts a training batch.

        Lightning calls this when the step of the batch begins, not when the batch is prefetched.
        """
        if isinstance(batch, OpaqueBatch):
            batch = batch.content
        if self._stream is not None and isinstance(batch, PackedBatch):
            self._before = self._state
            self._state = self._stream.state = self._state.advanced(batch, max(1, self.num_workers))
            self.faults += len(batch.faults)
            for fault in batch.faults:
                logger.warning("skipped a broken record (%s so far): %s", self.faults, fault)
        return batch

    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None or self._stream is None:
            return {}
        batches = batch_progress(self.trainer)
        # A run that is stopped within a step has not trained on that step's batch.
        state = self._state if batches.current.processed == batches.current.ready else self._before
        if self.trainer.world_size > 1:  # each rank knows its own shards only; checkpoints are put together on all
            ranks: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(ranks, state.cursors)
            state = state.merged(ranks)
        places = {shard: (cursor.next, list(cursor.waiting)) for shard, cursor in state.cursors.items()}
        begun = 0 if batches.is_last_batch else batches.current.processed
        return {"places": places, "turn": state.turn, "shards": self._shards, "begun": begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict or self.trainer is None or self.trainer.state.fn != "fit":
            return
        before, shards = state_dict["shards"], self._shards
        self._state = StreamState(
            {shard: _cursor(stored) for shard, stored in state_dict["places"].items()}, state_dict["turn"]
        )
        if shards != before:
            logger.warning(
                "resumed with %s readers instead of %s: training continues with the same samples, but in other batches",
                shards,
                before,
            )
            self._state = self._state.reshard(before, shards)
        self._before, self._begun = self._state, state_dict["begun"]

    @property
    def _shards(self) -> int:
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return world_size * max(1, self.num_workers)

    def val_dataloader(self) -> Any:
        return [] if self.val is None else self._loader(self.val, self._batches(self.val))

    def test_dataloader(self) -> Any:
        if self.test is None:
            raise SailUsageError("test needs data.test, a source")
        self.batch_indices = self._batches(self.test, self.completed_indices())
        return self._loader(self.test, self.batch_indices)

    def predict_dataloader(self) -> Any:
        if not self.images or not self.text:
            raise SailUsageError("predict needs --data.images (a folder or files) and --data.text (a question)")
        samples = [
            Sample(image=ExifImage(path), turns=(Turn(self.text),), prompts=self.prompts, source=str(path))
            for path in find_images(self.images)
        ]
        shard = samples[self.trainer.global_rank :: self.trainer.world_size]
        self.broken = []
        return DataLoader(_Readable(shard, self._encoder(), self.eval_batch_size, self.broken), batch_size=None)

    def _batches(self, source: Source, completed: Collection[int] = ()) -> list[Indices]:
        if source.length is None:
            raise SailUsageError(f"{type(source).__name__} has no end; give data a number of samples to evaluate")
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if source.length < ranks:
            raise SailUsageError(
                f"{source.length} questions are too few for {ranks} processes; use at most {source.length} devices"
            )
        return distributed_batches(source.image_keys(), self.eval_batch_size, rank, ranks, completed)

    def _loader(self, source: Source, batches: Sequence[Indices]) -> DataLoader:
        return DataLoader(_Questions(source, batches, self._encoder()), batch_size=None, collate_fn=OpaqueBatch)


def _cursor(stored: int | tuple[int, Sequence[int]]) -> ShardCursor:
    """A cursor from a checkpoint; early checkpoints, in which no sample waited, hold the number of samples read."""
    if isinstance(stored, int):
        return ShardCursor(stored)
    following, waiting = stored
    return ShardCursor(following, tuple(waiting))


class _OpaqueWindows(AccumulationWindows):
    def __iter__(self) -> Iterator[Any]:
        try:
            yield from map(OpaqueBatch, super().__iter__())
        except SailError as error:
            raise type(error)(_without_traceback(error)) from None


def _without_traceback(error: SailError) -> str:
    """The message of an error without the traceback of a worker, which torch puts before it."""
    return str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


class _Questions(Dataset[list[EncodedSample]]):
    """Batches of encoded samples in which the last answer is left out."""

    def __init__(self, source: Source, batches: Sequence[Indices], encoder: Encoder) -> None:
        self.source, self.batches, self.encoder = source, batches, encoder

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> list[EncodedSample]:
        return [self.encoder.encode(self.source[index], answers=False) for index in self.batches[batch]]


class _Readable(IterableDataset[OpaqueBatch]):
    """Batches of the images that can be read; `broken` gets one sentence for each of the others."""

    def __init__(self, samples: Sequence[Sample], encoder: Encoder, size: int, broken: list[str]) -> None:
        self.samples, self.encoder, self.size, self.broken = samples, encoder, size, broken

    def __iter__(self) -> Iterator[OpaqueBatch]:
        batch: list[EncodedSample] = []
        for sample in self.samples:
            try:
                batch.append(self.encoder.encode(sample, answers=False))
            except SailUsageError:
                raise
            except SailError as error:
                self.broken.append(str(error))
                logger.warning("skipped: %s", error)
                continue
            if len(batch) == self.size:
                yield OpaqueBatch(batch)
                batch = []
        if batch:
            yield OpaqueBatch(batch)


def find_images(images: str | Sequence[str]) -> list[Path]:
    """The image files that are given as folders (searched with their subfolders, in alphabetical order) and files.

    Raises:
        SailError: A file or folder does not exist, or there is no image.
    """
    found: list[Path] = []
    for name in [images] if isinstance(images, str) else images:
        path = Path(name)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise SailError(f"no image or folder {name}")
    if not found:
        raise SailError(f"no image in {images}; known file name endings: {' '.join(IMAGE_SUFFIXES)}")
    return found


__getattr__ = renamed(__name__, {"find_pictures": "find_images"})
