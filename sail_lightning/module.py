"""`PixelSAIL`: the LightningModule that composes the sockets. It knows the sockets, never a plugin."""

from __future__ import annotations

import inspect
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
import torchmetrics
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sail_lightning import registry
from sail_lightning.compat.lightning import (
    INSTANTIATOR,
    made_by_command_line,
    module_of_checkpoint,
    read_checkpoint,
)
from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate import Judge, Metric, Rules
from sail_lightning.evaluate.benchmarks import Benchmark
from sail_lightning.evaluate.from_prediction import record_of
from sail_lightning.generation.engine import generate
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.preprocessing import MAX_SIDE, ExifImage, load_image
from sail_lightning.interfaces import Backbone, PromptEncoder, Teacher, Upsampler, to_spec
from sail_lightning.model.bundle import Network
from sail_lightning.model.losses import DistillationLoss, LanguageLoss, MaskLoss, MSEDistillation
from sail_lightning.pretrained import hub, lora, model_folder
from sail_lightning.pretrained.card import Data, Figures
from sail_lightning.pretrained.lora import LoRA
from sail_lightning.registry import SOURCES
from sail_lightning.sample import ImageRef, Prompt, Sample, Turn
from sail_lightning.settings import renames
from sail_lightning.settings.ranges import Checked, NonNegativeFloat, PositiveInt
from sail_lightning.training.distillation import Distillation
from sail_lightning.training.optim import WarmupCosine, parameter_groups

OWN_LOSSES = {"loss", "language", "mask", "dice"}
"""Names that losses are logged by, those of teachers beside them."""
ScheduleCallable = Callable[[Optimizer, int], LRScheduler]
Question = Sample | tuple[ImageRef | None, str] | tuple[ImageRef | None, str, Sequence[Prompt]]
"""What `predict_batch` answers: a sample (its last turn), or a picture, a text and, if any, prompts."""


class PixelSAIL(Checked, L.LightningModule):
    """Pixel-SAIL: one transformer that answers in words and grounds them in masks.

    Args:
        backbone: the single transformer.
        upsampler: vision tokens to mask features.
        prompt_encoder: how regions enter the sequence.
        teachers: experts to distil, by name; null switches one off.
        tokenizer: a packaged name (`laboratory`), a tokenizer.json or a local Hugging Face folder.
        mask_channels: size of mask queries and keys.
        max_side: longest side of the resized picture, in pixels.
        max_tokens: longest sequence.
        max_new_tokens: longest answer.
        language_weight: of the language loss.
        language_loss: over supervised tokens (`LanguageLoss`, `ChunkedLanguageLoss`, `LigerLanguageLoss`); null is
            plain cross-entropy.
        mask_loss: over masks; null is cross-entropy 2.0 and dice 0.5.
        distillation_loss: between student and teacher features; null is the mean squared difference.
        loss_normalization: `window` divides by the counts of the whole accumulation window and all ranks (of a loader
            that does not tell a window's counts, by those of the batch and all ranks); `microbatch` by those of each
            batch alone (the official means).
        optimizer: makes the optimiser from parameter groups.
        schedule: makes the learning-rate schedule from the optimiser and the number of steps.
        weights: a model folder, or a packaged model's name, whose weights to start from.
        adapter: low-rank adapters to train in place of the decoder's own weights; null trains these.
        metrics: metrics of your own, by name, beside the built-in ones: logged as `val/NAME` and `test/NAME`, and in
            the report of `test`; null switches one off. They belong to an evaluation: no checkpoint and no model folder
            holds them.

    A checkpoint holds these settings, so that `load_from_checkpoint` needs none. Of a model that was made in Python it
    holds all but losses, optimiser and schedule: give those again to train on.
    """

    def __init__(
        self,
        backbone: Backbone,
        upsampler: Upsampler,
        prompt_encoder: PromptEncoder,
        teachers: dict[str, Teacher | None] | None = None,
        tokenizer: str = "laboratory",
        mask_channels: PositiveInt = 256,
        max_side: PositiveInt = MAX_SIDE,
        max_tokens: PositiveInt = 8192,
        max_new_tokens: PositiveInt = 128,
        language_weight: NonNegativeFloat = 1.0,
        language_loss: LanguageLoss | None = None,
        mask_loss: MaskLoss | None = None,
        distillation_loss: DistillationLoss | None = None,
        loss_normalization: Literal["window", "microbatch"] = "window",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: ScheduleCallable = WarmupCosine,
        weights: str | None = None,
        adapter: LoRA | None = None,
        metrics: dict[str, Metric | torchmetrics.Metric | None] | None = None,
    ) -> None:
        super().__init__()
        settings = {
            "tokenizer": tokenizer,
            "mask_channels": mask_channels,
            "max_side": max_side,
            "max_tokens": max_tokens,
            "max_new_tokens": max_new_tokens,
            "language_weight": language_weight,
            "loss_normalization": loss_normalization,
        }
        plugins = {"backbone": backbone, "upsampler": upsampler, "prompt_encoder": prompt_encoder}
        if not made_by_command_line():  # the command line saves its own form
            spec = to_spec({**plugins, "teachers": teachers}) | settings | {"adapter": adapter and adapter.spec()}
            self.save_hyperparameters(spec | {"_instantiator": INSTANTIATOR})
        else:
            self.save_hyperparameters()
        network = Network.of(
            backbone, upsampler, prompt_encoder, tokenizer, mask_channels, max_side, max_tokens, max_new_tokens
        )
        self.model, self.tokens = network.model, network.tokens
        self.max_side, self.max_tokens, self.max_new_tokens = max_side, max_tokens, max_new_tokens
        self.language_weight = language_weight
        self.language_loss = language_loss or LanguageLoss()
        self.mask_loss = mask_loss or MaskLoss()
        self.distillation_loss = distillation_loss or MSEDistillation()
        self.loss_normalization = loss_normalization
        self.optimizer, self.schedule = optimizer, schedule
        self.weights, self.adapter = weights, adapter
        self.distill = Distillation(teachers or {})
        if taken := sorted(self.distill.teachers.keys() & OWN_LOSSES):
            raise SailUsageError(
                f"no teacher may be called {taken[0]}, as a loss of the model's own is; choose another name"
            )
        # Not among the model's own modules: a metric may hold a network, which is neither trained nor saved.
        object.__setattr__(self, "judge", Judge(metrics=metrics))
        self._built = False

    # -- building -----------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Makes all weights, once; Lightning calls this before it loads a checkpoint.

        Teachers and their projections are made only where training begins: in a trainer that is to `fit`, which its
        state says before it calls this. `validate`, `test`, `predict` and `load_from_checkpoint` need no teacher, whose
        files may be gone; they leave the projections of a checkpoint aside.
        """
        self._build()
        if self._fits():
            self.configure_teachers()

    def _build(self) -> None:
        if self._built:
            return
        self.network.build()
        if self.weights:
            model_folder.load_weights(self.network, self.weights)
        if self.adapter is not None:
            self.adapter.apply(self.model.backbone)
        self._built = True

    def configure_teachers(self) -> None:
        """Makes the teachers and their projections, once; `fit` does so by itself.

        A training loop of your own calls this before it makes an optimiser. Projections of a checkpoint that was loaded
        before take their places.

        Raises:
            SailError: a teacher's files are missing or damaged, or such a projection has another shape.
            SailUsageError: a teacher has a setting that cannot be.
        """
        self._build()
        if self.distill.made:
            return
        self.distill.make(self.model.dims, self.model.mask_channels)
        if not self._fits():  # a trainer moves the model later, and teachers where training starts
            self.distill.to(self.device)
            self.distill.place(self.device)

    def _fits(self) -> bool:
        """Whether a trainer has begun to `fit`."""
        try:
            trainer = self.trainer
        except RuntimeError:  # there is none
            return False
        return isinstance(trainer, L.Trainer) and trainer.state.fn == TrainerFn.FITTING

    @property
    def network(self) -> Network:
        """What a model folder holds of it: the same model and words, without Lightning."""
        return Network(self.model, self.tokens, self.max_side, self.max_tokens, self.max_new_tokens)

    @property
    def encoder(self) -> Encoder:
        """Encodes samples as this model reads them."""
        self.configure_model()
        return self.network.encoder

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        if not 0 <= steps < math.inf:
            raise SailUsageError(
                "training data has no end; give the trainer max_steps, or max_epochs and limit_train_batches"
            )
        try:
            optimizer = self.optimizer(parameter_groups(self))
            schedule = self.schedule(optimizer, int(steps))
        except ValueError as error:  # torch's own classes look at their numbers only now
            raise SailUsageError(f"model.optimizer or model.schedule cannot be made: {error}") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.distill.place(self.device)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        sums, counts = self.losses(batch)
        totals = self._totals(batch)
        scale = 1  # what Lightning averages over, batches and processes, makes up for what sums were divided by
        if self.loss_normalization == "window":
            scale = self.trainer.world_size * (self.trainer.accumulate_grad_batches if batch.accumulation_counts else 1)
        parts = {name: value / totals[counts[name]] * scale for name, value in sums.items()}
        loss = torch.stack(list(parts.values())).sum()
        # A teacher that rests has no loss to show, and one that does not shows that of `every_n_steps: 1`.
        teachers = self.distill.teachers
        shown = {
            f"train/{name}": value.detach() / (teachers[name].every_n_steps if name in teachers else 1)
            for name, value in parts.items()
            if name not in teachers or not self.distill.is_inactive(name, self.global_step)
        }
        self.log_dict({"train/loss": loss.detach(), **shown}, batch_size=len(batch.samples))
        return loss

    def losses(self, batch: PackedBatch) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Weighted loss sums by name, and the field of `Counts` that divides each.

        Raises:
            SailError: a teacher cannot say anything about a picture; names the record.
            SailUsageError: the teachers are not made yet.
        """
        if not self.distill.made:
            raise SailUsageError("the teachers are not made yet; call configure_teachers() before making an optimiser")
        step = self.global_step
        output = self.model(batch, self.distill.required_features(step), self.language_loss)
        masks = self.mask_loss(output.mask_logits, batch.masks or (output.mask_logits[0].new_zeros(0, 1, 1),))
        sums = {"language": self.language_weight * output.language, "mask": masks.bce, "dice": masks.dice}
        counts = {"language": "tokens", "mask": "masks", "dice": "masks"}
        distilled = self.distill(output, batch, step, self.distillation_loss)
        return sums | distilled, counts | dict.fromkeys(distilled, "images")

    def _totals(self, batch: PackedBatch) -> dict[str, float | Tensor]:
        """What sums are divided by; at least 1, so that an empty window gives zero."""
        counts = batch.counts
        if self.loss_normalization == "window":
            counts = batch.accumulation_counts or counts
            if self.trainer.world_size > 1:  # stays on the device, so that the host need not wait
                values = torch.tensor([counts.tokens, counts.masks, counts.images], device=self.device)
                dist.all_reduce(values)
                return dict(zip(("tokens", "masks", "images"), values.clamp(min=1).unbind(), strict=True))
        return {name: max(1.0, getattr(counts, name)) for name in ("tokens", "masks", "images")}

    # -- evaluation ---------------------------------------------------------------------------------------------------

    judge: Judge
    """Judges what is answered in validation and test."""

    def judge_by(self, rules: Rules | None, benchmark: Benchmark = None) -> None:
        """Sets the rules of the next evaluation; None: the standard protocol. `EvaluationWriter` calls it."""
        object.__setattr__(self, "judge", Judge(rules, self.judge.own, benchmark))

    def on_validation_start(self) -> None:
        self._begin_evaluation()

    def on_test_start(self) -> None:
        self._begin_evaluation()

    def _begin_evaluation(self) -> None:
        self.judge.to(self.device).reset()  # the last evaluation may have broken off

    def validation_step(self, batch: list[EncodedSample], batch_idx: int) -> list[Prediction]:
        return self._evaluate(batch)

    def test_step(self, batch: list[EncodedSample], batch_idx: int) -> list[Prediction]:
        return self._evaluate(batch)

    def predict_step(self, batch: list[EncodedSample], batch_idx: int) -> list[Prediction]:
        return self._answer(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _evaluate(self, batch: list[EncodedSample]) -> list[Prediction]:
        predictions = self._answer(batch)
        for item, prediction in zip(batch, predictions, strict=True):
            self.judge.update(record_of(item, prediction, self.judge.benchmark))
        return predictions

    def _log_metrics(self, stage: str) -> None:
        values = self.judge.compute()
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=False)
        self.judge.reset()

    # -- answering ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        image: ImageRef | None,
        text: str,
        prompts: Sequence[Prompt] = (),
        max_new_tokens: int | None = None,
        answer_prefix: str = "",
    ) -> Prediction:
        """Answers one question about a picture.

        Args:
            image: a file (turned as its EXIF orientation says), an array (H, W, 3) uint8, or None for text only.
            text: the question; visual prompts are named `<Prompt0>`, `<Prompt1>`, ...
            prompts: regions, by their `id` or else by their place in the list.
            max_new_tokens: longest answer; the model's own setting if None.
            answer_prefix: how the answer shall begin, such as `It is [SEG].`; part of the answer, masks included.

        Raises:
            SailError: a missing or broken picture, or a prompt that covers nothing of it.
            SailUsageError: an empty text or one over the limit, a prompt id that is out of range, given twice or named
                without a prompt, `max_new_tokens` below 1.
        """
        return self.predict_batch([(image, text, prompts)], max_new_tokens, answer_prefix)[0]

    def predict_batch(
        self, questions: Iterable[Question], max_new_tokens: int | None = None, answer_prefix: str = ""
    ) -> list[Prediction]:
        """Answers many questions together; equal to one at a time. Pictures that occur twice are read once.

        Raises:
            SailError: as `predict`.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise SailUsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        self.configure_model()
        encoder = self.encoder
        encoded = [
            encoder.encode(as_sample(question), answers=False, answer_prefix=answer_prefix) for question in questions
        ]
        training = self.training
        self.eval()
        try:
            return self._answer(encoded, max_new_tokens)
        finally:
            self.train(training)

    def _answer(self, batch: Sequence[EncodedSample], max_new_tokens: int | None = None) -> list[Prediction]:
        start = time.perf_counter()
        answers = generate(self.model, self.tokens, batch, max_new_tokens or self.max_new_tokens)
        seconds = (time.perf_counter() - start) / max(1, len(batch))
        predictions = []
        pictures: dict[Any, NDArray[np.uint8]] = {}  # those that several questions are about are decoded once
        for item, answer in zip(batch, answers, strict=True):
            sample = item.sample
            image = next(iter(sample.images), None)
            named = isinstance(image, str | Path | ExifImage)
            key = image if named else id(image)
            if image is not None and key not in pictures:
                pictures[key] = load_image(image)
            predictions.append(
                Prediction(
                    text=self.tokens.decode(answer.ids),
                    masks=answer.masks,
                    image=pictures.get(key),
                    question=sample.turns[-1].question,
                    prompts=sample.prompts,
                    source=str(image) if named else sample.id,
                    finish=answer.finish,
                    seconds=seconds,
                    meta=sample.meta,
                )
            )
        return predictions

    # -- folders ------------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Lightning's method for `.ckpt` files, which also reads settings that had other names in earlier versions."""
        if hparams_file is not None:
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
            )
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights_only)
        registry.discover()
        stored = {"model": checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})}
        checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY] = renames.current_keys(stored, registry.find)["model"]
        model: Self = module_of_checkpoint(cls, checkpoint, strict, **kwargs)
        return model.to(next((tensor.device for tensor in checkpoint["state_dict"].values()), "cpu"))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> Self:
        """A model from a folder that `save_pretrained` wrote, or a packaged model by name (`sail-tiny`), in eval mode.

        Args:
            folder: or name.
            overrides: arguments of `PixelSAIL` in place of the folder's, such as `max_side=512`.

        Raises:
            SailError: no such folder, a file is missing or damaged, or names or shapes of weights do not agree.
            SailUsageError: a plugin that is not loaded, or an argument that does not exist.
        """
        if unknown := sorted(overrides.keys() - (inspect.signature(cls).parameters.keys() - {"weights"})):
            raise SailUsageError(f"from_pretrained cannot override {unknown[0]}: PixelSAIL has no such setting")
        model = cls(**(model_folder.read_config(folder) | overrides), weights=str(folder))
        model.configure_model()
        return model.eval()

    def save_pretrained(
        self,
        folder: str | Path,
        card: str = "",
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = "5GB",
        metrics: Figures | None = None,
        data: Data | None = None,
        licence: str | None = None,
    ) -> Path:
        """Writes config.yaml, weights, tokenizer.json and README.md; teachers and their projections stay out.

        Args:
            folder: made if missing; a model that is there is replaced.
            card: text of the README; made from the model and from what follows if empty.
            dtype: of the stored weights; None keeps theirs.
            max_shard_size: of a weight file, such as `500MB`, or bytes; larger models are stored in several.
            metrics: figures for the card, by row: `{"RefCOCO val": {"protocol": "official", "ciou": 0.71}}`.
            data: what it was trained on, for the card: names, or names with their licences.
            licence: of the weights, for the card.

        Raises:
            SailError: a file has the folder's name.
            SailUsageError: a size that cannot be read, or what a card cannot be made of.
        """
        return model_folder.save_folder(self, Path(folder), card, dtype, max_shard_size, metrics, data, licence)

    def push_to_hub(self, repo_id: str, private: bool = True, token: str | None = None, **saving: Any) -> str:
        """Saves the model to a repository of the Hugging Face Hub, `owner/name`, and returns its address.

        Args:
            repo_id: made if missing.
            private: who sees a repository that is made; one that exists stays as it is.
            token: of the account; None takes that of `hf auth login`.
            saving: arguments of `save_pretrained`, such as `dtype` or `licence`.

        Raises:
            SailError: no network, no login, no right to write, or a name that cannot be.
        """
        with tempfile.TemporaryDirectory() as folder:
            return hub.push(self.save_pretrained(folder, **saving), repo_id, private, token)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that a model folder holds; of a built model, such as need no file that it was made from."""
        model = self.model
        parts = {"backbone": model.backbone, "upsampler": model.upsampler, "prompt_encoder": model.prompt_encoder}
        return {
            **to_spec(parts, stored=self._built),
            "tokenizer": self.tokens.source,
            "mask_channels": model.mask_channels,
            "max_side": self.max_side,
            "max_tokens": self.max_tokens,
            "max_new_tokens": self.max_new_tokens,
        }

    def save_adapter(self, folder: str | Path) -> Path:
        """Writes what was trained and nothing else: the adapters in PEFT's format, and the other trained tensors.

        Raises:
            SailUsageError: the model has no adapter.
        """
        return lora.save(self, Path(folder))

    def load_adapter(self, folder: str | Path) -> Self:
        """Puts an adapter that `save_adapter` wrote on this model, which must be the one that it was trained on.

        Raises:
            SailError: a missing or damaged file, or names, shapes or settings that differ; the model is then as before.
        """
        self._set_adapter(lora.load(self, Path(folder)))
        return self

    def merge_adapter(self) -> Self:
        """Folds the adapters into the weights: the model answers as before, and is a plain one again.

        Raises:
            SailUsageError: the model has no adapter.
        """
        self.configure_model()
        if self.adapter is None:
            raise SailUsageError("this model has no adapter to merge")
        self.adapter.remove(self.model.backbone, merge=True)
        self._set_adapter(None)
        return self

    def _set_adapter(self, adapter: LoRA | None) -> None:
        self.adapter = adapter
        self.hparams["adapter"] = adapter and adapter.spec()  # a checkpoint is loaded by them

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The checkpoint holds all weights: it must load where the files that training started from are gone.
        lasting = self.config | {"tokenizer": model_folder.lasting_source(self.tokens), "weights": None}
        saved = dict(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        saved.pop("metrics", None)  # of an evaluation, not of the model
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {key: lasting.get(key, value) for key, value in saved.items()}
        # Of a model that was loaded, and whose teachers are not made: `fit` will want them.
        checkpoint["state_dict"] |= {f"distill.{name}": tensor for name, tensor in self.distill.pending_state.items()}
        # Named, never imported unasked: the command line tells which --plugins to add.
        checkpoint["sail_plugins"] = [source for source in SOURCES if "(" not in source and _holds_any(source, saved)]


def _holds_any(source: str, settings: Any) -> bool:
    """Whether a plugin file or module holds one of the classes that settings name."""
    if isinstance(settings, Mapping):
        root = Path(source).stem if source.endswith(".py") else source.partition(".")[0]
        path = settings.get("class_path")
        named = isinstance(path, str) and path.partition(".")[0] == root
        return named or any(_holds_any(source, value) for value in settings.values())
    return isinstance(settings, list | tuple) and any(_holds_any(source, value) for value in settings)


def as_sample(question: Question) -> Sample:
    """A question in any accepted form as a `Sample` with one open turn."""
    if isinstance(question, Sample):
        return question
    image, text, *rest = question
    prompts = tuple(rest[0]) if rest else ()
    name = str(Path(image)) if isinstance(image, str | Path) else ""
    return Sample(
        image=ExifImage(image) if isinstance(image, str | Path) else image,
        turns=(Turn(text),),
        prompts=prompts,
        source=name,
    )
