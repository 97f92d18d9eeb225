"""`PixelSAIL`: the LightningModule that composes the sockets. It knows the sockets, never a plugin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

import lightning as L
import torch
import torch.distributed as dist
import torchmetrics
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
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
from sail_lightning.generation.answering import Question, answer_encoded, answer_questions
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.preprocessing import MAX_SIDE
from sail_lightning.interfaces import Backbone, PromptEncoder, Teacher, Upsampler, to_spec
from sail_lightning.model.bundle import ModelBundle
from sail_lightning.model.losses import DistillationLoss, LanguageLoss, MaskLoss, MSEDistillation
from sail_lightning.pretrained import model_folder
from sail_lightning.pretrained.lora import LoRA
from sail_lightning.pretrained.saving import Pretrained
from sail_lightning.registry import SOURCES, holds
from sail_lightning.sample import ImageRef, Prompt
from sail_lightning.settings import renames
from sail_lightning.settings.ranges import Checked, NonNegativeFloat, PositiveInt
from sail_lightning.settings.renames import renamed
from sail_lightning.training.distillation import Distillation
from sail_lightning.training.optim import WarmupCosine, parameter_groups

OWN_LOSSES = {"loss", "language", "mask", "dice"}
"""Names under which losses are logged; a teacher's loss is logged under the teacher's name."""
ScheduleCallable = Callable[[Optimizer, int], LRScheduler]


class PixelSAIL(Pretrained, Checked, L.LightningModule):
    """Pixel-SAIL: one transformer that answers in words and grounds them in masks.

    Args:
        backbone: The single transformer.
        upsampler: Turns vision tokens into mask features.
        prompt_encoder: How regions enter the sequence.
        teachers: Experts to distil, by name; null switches one off.
        tokenizer: A packaged name (`laboratory`), a tokenizer.json or a local Hugging Face folder.
        mask_channels: Size of mask queries and keys.
        max_side: Longest side of the resized image, in pixels.
        max_tokens: Longest sequence.
        max_new_tokens: Longest answer.
        language_weight: Weight of the language loss.
        language_loss: Loss over supervised tokens (`LanguageLoss`, `ChunkedLanguageLoss`, `LigerLanguageLoss`); null
            is plain cross-entropy.
        mask_loss: Loss over masks; null is cross-entropy 2.0 and dice 0.5.
        distillation_loss: Loss between student and teacher features; null is the mean squared difference.
        loss_normalization: `window` divides by the counts of the whole accumulation window and all ranks (by those of
            the batch and all ranks if the loader does not give a window's counts); `microbatch` by those of each
            batch alone (the official means).
        optimizer: Makes the optimiser from parameter groups.
        schedule: Makes the learning-rate schedule from the optimiser and the number of steps.
        weights: A model folder, or the name of a packaged model, to take initial weights from.
        adapter: Low-rank adapters to train in place of the decoder's own weights; null trains these.
        metrics: Metrics of your own, by name, beside the built-in ones: logged as `val/NAME` and `test/NAME`, and in
            the report of `test`; null switches one off. They belong to an evaluation: no checkpoint and no model folder
            holds them.

    A checkpoint holds these settings, so that `load_from_checkpoint` needs none. If the model was made in Python, it
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
        bundle = ModelBundle.of(
            backbone, upsampler, prompt_encoder, tokenizer, mask_channels, max_side, max_tokens, max_new_tokens
        )
        if made_by_command_line():  # which saves its own form
            self.save_hyperparameters()
        else:
            training = {"language_weight": language_weight, "loss_normalization": loss_normalization}
            others = {"teachers": to_spec(teachers), "adapter": adapter and adapter.spec()}
            spec = bundle.config(stored=False) | training | others
            self.save_hyperparameters(spec | {"_instantiator": INSTANTIATOR})
        self.model, self.tokens = bundle.model, bundle.tokens
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

        Teachers and their projections are made only where training begins: in a trainer that is about to `fit`, as its
        state shows before it calls this. `validate`, `test`, `predict` and `load_from_checkpoint` need no teacher, and
        its files may be gone; they leave the projections of a checkpoint aside.
        """
        self._build()
        if self._fits():
            self.configure_teachers()

    def _build(self) -> None:
        if self._built:
            return
        self.bundle.build()
        if self.weights:
            model_folder.load_weights(self.bundle, self.weights)
        if self.adapter is not None:
            self.adapter.apply(self.model.backbone)
        self._built = True

    def configure_teachers(self) -> None:
        """Makes the teachers and their projections, once; `fit` does so by itself.

        Call it in your own training loop before you make an optimiser. Projections of a checkpoint that was loaded
        before are loaded into them.

        Raises:
            SailError: A teacher's files are missing or damaged, or a projection of the checkpoint has another shape.
            SailUsageError: A teacher has an invalid setting.
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
    def bundle(self) -> ModelBundle:
        """The same model with its tokenizer and sizes, without Lightning, as a model folder holds it."""
        return ModelBundle(self.model, self.tokens, self.max_side, self.max_tokens, self.max_new_tokens)

    @property
    def config(self) -> dict[str, Any]:
        """Returns the settings that a model folder holds; those of a built model do not need the files from which it
        was made."""
        return self.bundle.config(stored=self._built)

    @property
    def teacher_names(self) -> dict[str, str]:
        return {name: type(teacher).__name__ for name, teacher in self.distill.teachers.items()}

    @property
    def encoder(self) -> Encoder:
        """The encoder that lays samples out for this model."""
        self.configure_model()
        return self.bundle.encoder

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
        # An inactive teacher has no loss to log, and an active one logs that of `every_n_steps: 1`.
        teachers = self.distill.teachers
        shown = {
            f"train/{name}": value.detach() / (teachers[name].every_n_steps if name in teachers else 1)
            for name, value in parts.items()
            if name not in teachers or not self.distill.is_inactive(name, self.global_step)
        }
        self.log_dict({"train/loss": loss.detach(), **shown}, batch_size=len(batch.samples))
        return loss

    def losses(self, batch: PackedBatch) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Returns weighted loss sums by name, as scalars, and the field of `Counts` by which each is divided.

        Raises:
            SailError: A teacher fails on an image; the message names the record.
            SailUsageError: The teachers are not made yet.
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
        """Returns the counts by which sums are divided, at least 1, so that an empty window gives zero."""
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
    """Judges the answers of validation and test."""

    def judge_by(self, rules: Rules | None, benchmark: Benchmark = None) -> None:
        """Sets the rules of the next evaluation, where None means the standard protocol; `EvaluationWriter` calls
        this."""
        object.__setattr__(self, "judge", Judge(rules, self.judge.own, benchmark))

    def on_validation_start(self) -> None:
        self._begin_evaluation()

    def on_test_start(self) -> None:
        self._begin_evaluation()

    def _begin_evaluation(self) -> None:
        self.judge.to(self.device).reset()  # the last evaluation may have been interrupted

    def validation_step(self, batch: list[EncodedSample], batch_idx: int) -> list[Prediction]:
        return self._evaluate(batch)

    def test_step(self, batch: list[EncodedSample], batch_idx: int) -> list[Prediction]:
        return self._evaluate(batch)

    def predict_step(self, batch: list[EncodedSample], batch_idx: int) -> list[Prediction]:
        return answer_encoded(self.bundle, batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _evaluate(self, batch: list[EncodedSample]) -> list[Prediction]:
        predictions = answer_encoded(self.bundle, batch)
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
        """Answers one question about an image.

        Args:
            image: A file (rotated by its EXIF orientation), an array (H, W, 3) uint8, or None for text only.
            text: The question; visual prompts are named `<Prompt0>`, `<Prompt1>`, ...
            prompts: Regions, identified by their `id` or else by their index in the list.
            max_new_tokens: Longest answer; the model's own setting if None.
            answer_prefix: How the answer begins, such as `It is [SEG].`; part of the answer, masks included.

        Raises:
            SailError: The image is missing or broken, or a prompt covers nothing of it.
            SailUsageError: The text is empty or too long, a prompt id is out of range, repeated, or named in the text
                without a prompt, or `max_new_tokens` is below 1.
        """
        return self.predict_batch([(image, text, prompts)], max_new_tokens, answer_prefix)[0]

    def predict_batch(
        self, questions: Iterable[Question], max_new_tokens: int | None = None, answer_prefix: str = ""
    ) -> list[Prediction]:
        """Answers many questions together, with the same results as `predict`; an image that occurs twice is read once.

        Raises:
            SailError: An image is missing or broken, or a prompt covers nothing of it.
            SailUsageError: A question is not valid (`predict`).
        """
        self.configure_model()
        return answer_questions(self.bundle, questions, max_new_tokens, answer_prefix)

    # -- checkpoints --------------------------------------------------------------------------------------------------

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
        """Loads a `.ckpt` file as Lightning does, also one whose settings have names of earlier versions."""
        if hparams_file is not None:
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
            )
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights_only)
        model = cls.from_checkpoint_content(checkpoint, strict, **kwargs)
        return model.to(next((tensor.device for tensor in checkpoint["state_dict"].values()), "cpu"))

    @classmethod
    def from_checkpoint_content(cls, checkpoint: dict[str, Any], strict: bool | None = None, **kwargs: Any) -> Self:
        """Makes the model of a checkpoint that was read, with its `state_dict` and `hyper_parameters`, on the CPU.

        Settings may have names of earlier versions; `kwargs` replace those of the same names.
        """
        registry.discover()
        stored = {"model": checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})}
        current = renames.current_keys(stored, registry.find)["model"]
        model: Self = module_of_checkpoint(
            cls, {**checkpoint, cls.CHECKPOINT_HYPER_PARAMS_KEY: current}, strict, **kwargs
        )
        return model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The checkpoint holds all weights, so it must load where the files from which training started are gone.
        lasting = self.config | {"tokenizer": model_folder.lasting_source(self.tokens), "weights": None}
        saved = dict(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        saved.pop("metrics", None)  # of an evaluation, not of the model
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {key: lasting.get(key, value) for key, value in saved.items()}
        # Projections of a model that was loaded and has no teachers yet: `fit` needs them.
        checkpoint["state_dict"] |= {f"distill.{name}": tensor for name, tensor in self.distill.pending_state.items()}
        # The message names the plugin; the command line says which --plugins to add, and imports none unasked.
        checkpoint["sail_plugins"] = [source for source in SOURCES if "(" not in source and holds(source, saved)]


__getattr__ = renamed(__name__, {"as_sample": "sail_lightning.generation.answering:as_sample"})
