"""`SailDataModule`: sources in, packed batches for training and lists of questions for evaluation out."""

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
from sail_lightning.data.distributed_sampler import Numbers, deal
from sail_lightning.data.prompt_syntax import parse_prompt
from sail_lightning.data.sources.base import Source
from sail_lightning.data.stream import PackedStream, Progress, Windows
from sail_lightning.encoding.batch import PackedBatch, Place, Sealed
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import PICTURES, Upright
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import Checked, NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval

logger = logging.getLogger(__name__)


class SailDataModule(Checked, L.LightningDataModule):
    """Data for all four verbs. Encoding follows the model that the Trainer holds; nothing is set twice.

    Its state in a checkpoint is how far training has read, batches read ahead not counted: `fit --ckpt_path` goes on
    with exactly the batches that an uninterrupted run would have seen, given the same data, token budget, look-ahead,
    number of processes and of workers. Where these numbers differ it goes on with the same samples in other batches.

    Args:
        train: source of `fit`.
        val: source of `validate` and of the checks during `fit`.
        test: source of `test`.
        images: pictures of `predict`: a folder, a file, or a list of both; turned as their EXIF orientation says.
        text: the question that `predict` asks of each picture.
        prompts: regions for that question: `mask:FILE.png`, `box:X0,Y0,X1,Y1`, `point:X,Y` or `scribble:X,Y,X,Y,...`,
            with `K=` in front to be <PromptK>.
        token_budget: most tokens a training batch.
        eval_batch_size: questions answered together.
        num_workers: processes that read training data.
        mask_sample_weight: weight of the language loss in samples that own masks (0.1 in the official recipe).
        seed: of the shuffling of finite sources.
        look_ahead: encoded samples, of each reader, among which a training batch chooses those that fill the budget
            best; none waits for more than as many batches. 1 keeps the samples in order.
        max_fault_rate: share of broken training records that are skipped, each told by name; a larger share stops the
            run, and 0 does so at the first.
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
        look_ahead: PositiveInt = 32,
        max_fault_rate: UnitInterval = 0.05,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = train, val, test
        self.max_fault_rate = max_fault_rate
        self.images, self.text = images, text
        self.prompts = tuple(parse_prompt(prompt) for prompt in prompts or ())
        self.token_budget, self.eval_batch_size, self.num_workers = token_budget, eval_batch_size, num_workers
        self.mask_sample_weight, self.seed, self.look_ahead = mask_sample_weight, seed, look_ahead
        self.broken: list[str] = []
        """Pictures that `predict` could not read, one sentence each."""
        self.faults = 0
        """Training records that were skipped, in this run and by this process."""
        self.answered: Callable[[], Collection[int]] = tuple
        """Called when `test` begins: numbers of its records that are answered already, and not asked again."""
        self.asked: Sequence[Numbers] = ()
        """Numbers of the records in each batch of `test`, from the making of its loader on."""
        self._stream: PackedStream | None = None
        self._progress = self._before = Progress()
        self._begun = 0

    def setup(self, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is loaded, if there is one
            self._stream, self._begun, self.faults = None, 0, 0
            self._progress = self._before = Progress()

    def _encoder(self, **changes: Any) -> Encoder:
        encoder: Encoder = self.trainer.lightning_module.encoder  # type: ignore[assignment]
        return replace(encoder, **changes)

    def train_dataloader(self) -> Windows:
        if self.train is None:
            raise SailUsageError("fit needs data.train, a source")
        stream = PackedStream(
            self.train,
            self._encoder(mask_sample_weight=self.mask_sample_weight),
            self.token_budget,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.look_ahead,
            self.max_fault_rate,
        )
        stream.progress, self._stream = self._progress, stream
        pin = self.trainer.strategy.root_device.type == "cuda"
        loader = DataLoader(stream, batch_size=None, num_workers=self.num_workers, pin_memory=pin)
        limit = self.trainer.limit_train_batches
        epoch = limit if isinstance(limit, int) else None
        begun, self._begun = self._begun, 0
        return _SealedWindows(loader, self.trainer.accumulate_grad_batches, begun, epoch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Opens a batch; counts a training batch when its step begins (Lightning reads ahead before it calls this)."""
        if isinstance(batch, Sealed):
            batch = batch.content
        if self._stream is not None and isinstance(batch, PackedBatch):
            self._before = self._progress
            self._progress = self._stream.progress = self._progress.advanced(batch, max(1, self.num_workers))
            self.faults += len(batch.faults)
            for fault in batch.faults:
                logger.warning("skipped a broken record (%s so far): %s", self.faults, fault)
        return batch

    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None or self._stream is None:
            return {}
        batches = batch_progress(self.trainer)
        # A run that is stopped within a step has not trained on that step's batch.
        progress = self._progress if batches.current.processed == batches.current.ready else self._before
        if self.trainer.world_size > 1:  # each rank knows its own shards only; checkpoints are put together on all
            ranks: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(ranks, progress.places)
            progress = progress.merged(ranks)
        places = {shard: (place.next, list(place.waiting)) for shard, place in progress.places.items()}
        begun = 0 if batches.is_last_batch else batches.current.processed
        return {"places": places, "turn": progress.turn, "shards": self._shards, "begun": begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict or self.trainer is None or self.trainer.state.fn != "fit":
            return
        before, shards = state_dict["shards"], self._shards
        self._progress = Progress(
            {shard: _place(place) for shard, place in state_dict["places"].items()}, state_dict["turn"]
        )
        if shards != before:
            logger.warning(
                "resumed with %s readers instead of %s: training goes on with the same samples, but in other batches",
                shards,
                before,
            )
            self._progress = self._progress.reshared(before, shards)
        self._before, self._begun = self._progress, state_dict["begun"]

    @property
    def _shards(self) -> int:
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return world_size * max(1, self.num_workers)

    def val_dataloader(self) -> Any:
        return [] if self.val is None else self._loader(self.val, self._dealt(self.val))

    def test_dataloader(self) -> Any:
        if self.test is None:
            raise SailUsageError("test needs data.test, a source")
        self.asked = self._dealt(self.test, self.answered())
        return self._loader(self.test, self.asked)

    def predict_dataloader(self) -> Any:
        if not self.images or not self.text:
            raise SailUsageError("predict needs --data.images (a folder or files) and --data.text (a question)")
        samples = [
            Sample(image=Upright(path), turns=(Turn(self.text),), prompts=self.prompts, source=str(path))
            for path in find_pictures(self.images)
        ]
        shard = samples[self.trainer.global_rank :: self.trainer.world_size]
        self.broken = []
        return DataLoader(_Readable(shard, self._encoder(), self.eval_batch_size, self.broken), batch_size=None)

    def _dealt(self, source: Source, answered: Collection[int] = ()) -> list[Numbers]:
        if source.length is None:
            raise SailUsageError(f"{type(source).__name__} has no end; give data a number of samples to evaluate")
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if source.length < ranks:
            raise SailUsageError(
                f"{source.length} questions cannot be dealt to {ranks} processes; use as many devices at most"
            )
        return deal(source.pictures(), self.eval_batch_size, rank, ranks, answered)

    def _loader(self, source: Source, batches: Sequence[Numbers]) -> DataLoader:
        return DataLoader(_Questions(source, batches, self._encoder()), batch_size=None, collate_fn=Sealed)


def _place(stored: int | tuple[int, Sequence[int]]) -> Place:
    """A place from a checkpoint; those written before samples could wait hold the number of samples read."""
    if isinstance(stored, int):
        return Place(stored)
    following, waiting = stored
    return Place(following, tuple(waiting))


class _SealedWindows(Windows):
    def __iter__(self) -> Iterator[Any]:
        try:
            yield from map(Sealed, super().__iter__())
        except SailError as error:
            raise type(error)(_without_traceback(error)) from None


def _without_traceback(error: SailError) -> str:
    """A fault's own sentence: torch puts the traceback of a worker before it."""
    return str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


class _Questions(Dataset[list[EncodedSample]]):
    """Batches of samples with their last answer left open."""

    def __init__(self, source: Source, batches: Sequence[Numbers], encoder: Encoder) -> None:
        self.source, self.batches, self.encoder = source, batches, encoder

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[EncodedSample]:
        return [self.encoder.encode(self.source[number], answers=False) for number in self.batches[index]]


class _Readable(IterableDataset[Sealed]):
    """Batches of those pictures that can be read; the others are named in `broken`."""

    def __init__(self, samples: Sequence[Sample], encoder: Encoder, size: int, broken: list[str]) -> None:
        self.samples, self.encoder, self.size, self.broken = samples, encoder, size, broken

    def __iter__(self) -> Iterator[Sealed]:
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
                yield Sealed(batch)
                batch = []
        if batch:
            yield Sealed(batch)


def find_pictures(images: str | Sequence[str]) -> list[Path]:
    """Picture files named by folders (searched whole) and files, in alphabetical order within a folder.

    Raises:
        SailError: a name that does not exist, or no picture at all.
    """
    found: list[Path] = []
    for name in [images] if isinstance(images, str) else images:
        path = Path(name)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise SailError(f"no picture or folder {name}")
    if not found:
        raise SailError(f"no picture in {images}; known endings: {' '.join(PICTURES)}")
    return found
