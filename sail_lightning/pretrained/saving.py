"""Public methods of a model for loading, saving, the hub and adapters; `PixelSAIL` derives from `Pretrained`."""

from __future__ import annotations

import inspect
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch

from sail_lightning.errors import SailUsageError
from sail_lightning.model.bundle import ModelBundle
from sail_lightning.pretrained import hub, lora, model_folder
from sail_lightning.pretrained.card import About, Data, Metrics
from sail_lightning.pretrained.lora import LoRA


class Pretrained:
    """Base class with methods that load and save a model and its adapter; it knows only the bundle, the adapter and the
    names of teachers."""

    adapter: LoRA | None
    """Adapters that are trained in place of the decoder's own weights."""
    hparams: Any
    """Settings with which a checkpoint is loaded."""

    @property
    @abstractmethod
    def bundle(self) -> ModelBundle:
        """The model with its tokenizer and sizes, without Lightning, as a model folder holds it."""

    @property
    @abstractmethod
    def teacher_names(self) -> dict[str, str]:
        """Returns the class of each teacher by the name that it was given; model cards list them."""

    @abstractmethod
    def configure_model(self) -> None:
        """Makes all weights, once."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> Self:
        """Opens a folder that `save_pretrained` wrote, or a packaged model by name (`sail-tiny`), in eval mode.

        Args:
            folder: The folder, or the name of a packaged model.
            overrides: Arguments of `PixelSAIL` in place of the folder's, such as `max_side=512`.

        Raises:
            SailError: The folder does not exist, a file is missing or damaged, or names or shapes of weights differ.
            SailUsageError: A plugin is not loaded, or an argument does not exist.
        """
        if unknown := sorted(overrides.keys() - (inspect.signature(cls).parameters.keys() - {"weights"})):
            raise SailUsageError(f"from_pretrained cannot override {unknown[0]}: PixelSAIL has no such setting")
        make: Any = cls
        model = make(**(model_folder.read_config(folder) | overrides), weights=str(folder))
        model.configure_model()
        opened: Self = model.eval()
        return opened

    def save_pretrained(
        self,
        folder: str | Path,
        card: str = "",
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = "5GB",
        metrics: Metrics | None = None,
        data: Data | None = None,
        licence: str | None = None,
    ) -> Path:
        """Writes config.yaml, weights, tokenizer.json and README.md; teachers and their projections stay out.

        Args:
            folder: Made if missing; a model that is there is replaced.
            card: Text of the README; made from the model and the arguments below if empty.
            dtype: Type of the stored weights; None keeps theirs.
            max_shard_size: Largest weight file, such as `500MB`, or in bytes; larger models are stored in several.
            metrics: Metrics for the card, by row: `{"RefCOCO val": {"protocol": "official", "ciou": 0.71}}`.
            data: Training data for the card: names, or names with their licences.
            licence: Licence of the weights, for the card.

        Raises:
            SailError: A file has the folder's name.
            SailUsageError: The size cannot be read, or no card can be made of the arguments.
        """
        self.configure_model()
        about = About(metrics, data, licence, self.teacher_names)
        return model_folder.save_folder(self.bundle, Path(folder), self.adapter, about, card, dtype, max_shard_size)

    def push_to_hub(self, repo_id: str, private: bool = True, token: str | None = None, **saving: Any) -> str:
        """Saves the model to a repository of the Hugging Face Hub, `owner/name`, and returns its address.

        Args:
            repo_id: Made if missing.
            private: Whether a repository that is made is private; one that exists stays as it is.
            token: Token of the account; None takes that of `hf auth login`.
            saving: Arguments of `save_pretrained`, such as `dtype` or `licence`.

        Raises:
            SailError: There is no network, no login or no right to write, or the name is not valid.
        """
        with tempfile.TemporaryDirectory() as folder:
            return hub.push(self.save_pretrained(folder, **saving), repo_id, private, token)

    def save_adapter(self, folder: str | Path) -> Path:
        """Writes only what was trained: the adapters in PEFT's format, and the other trained tensors.

        Raises:
            SailUsageError: The model has no adapter.
        """
        self.configure_model()
        if self.adapter is None:
            raise SailUsageError("this model has no adapter to save; it is made with one: PixelSAIL(adapter=LoRA())")
        return lora.save(self.bundle, self.adapter, Path(folder))

    def load_adapter(self, folder: str | Path) -> Self:
        """Loads an adapter that `save_adapter` wrote into this model, which must be the one on which it was trained.

        Raises:
            SailError: A file is missing or damaged, or names, shapes or settings differ; the model is then as before.
        """
        stored = lora.read(Path(folder))
        self.configure_model()
        self._set_adapter(lora.load(self.bundle, self.adapter, stored))
        return self

    def merge_adapter(self) -> Self:
        """Merges the adapters into the weights and removes them; the model's answers do not change.

        Raises:
            SailUsageError: The model has no adapter.
        """
        self.configure_model()
        if self.adapter is None:
            raise SailUsageError("this model has no adapter to merge")
        self.adapter.remove(self.bundle.model.backbone, merge=True)
        self._set_adapter(None)
        return self

    def _set_adapter(self, adapter: LoRA | None) -> None:
        self.adapter = adapter
        self.hparams["adapter"] = adapter and adapter.spec()
