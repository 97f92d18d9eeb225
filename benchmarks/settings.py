"""Settings of a run of the bench: its device, the sizes of its model, and the amount of work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Size = tuple[int, int]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a `SailQwen` with the paper's upsampler; `preset` (`0.5b`, `3b`) stands for all but the vocabulary."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    key_heads: int = 2
    mlp: int = 1408
    vocabulary: int = 32_000
    preset: str | None = None

    def backbone_args(self) -> dict[str, Any]:
        """Returns the arguments of `SailQwen`."""
        if self.preset:
            return {"size": self.preset}
        return {
            "size": "0.5b",
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "tie_word_embeddings": False,  # an untrained model would say one word for ever
        }


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    Args:
        device: `cpu` or `cuda`.
        dtype: Type of weights and activations in both forms, `float32` or `bfloat16`. Losses are computed in float32
            either way.
        threads: Number of CPU threads.
        sizes: Sizes of the model.
        single: Size (height, width) in pixels of the image in cases with one image.
        mixed: Sizes (height, width) in pixels of the images in cases with several.
        words: Number of supervised tokens in each training sample.
        questions: Number of questions on each image, where several are asked.
        new_tokens: Number of tokens in each answer.
        budget: Number of tokens in a packed batch of the throughput cases.
        compile: Whether the throughput cases compile the layers.
        checkpointing: Whether the throughput cases recompute the layers in the backward pass.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2
    sizes: ModelSizes = field(default_factory=ModelSizes)
    single: tuple[Size, ...] = ((512, 512),)
    mixed: tuple[Size, ...] = ((256, 256), (384, 256), (512, 384), (512, 512))
    words: int = 64
    questions: int = 8
    new_tokens: int = 32
    budget: int = 16_384
    compile: bool = False
    checkpointing: bool = False

    @property
    def type(self) -> torch.dtype:
        """The dtype as torch's."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Makes settings from the result of `to_dict`, through JSON or not."""
        images = {name: tuple((h, w) for h, w in values[name]) for name in ("single", "mixed")}
        return cls(**values | images | {"sizes": ModelSizes(**values["sizes"])})
