"""The five sockets, and the types that pass through them.

A plugin is one class in one file. It lives in two phases: `__init__` stores settings and costs nothing; `build(dims)`
makes weights. `PixelSAIL` builds the plugins in order (backbone, upsampler, prompt encoder, and teachers where training
begins); each receives what the earlier ones published and returns it with its own part filled in.

Letters in shapes: T packed tokens of a batch, N image patches of a batch, D hidden size, P patch size in pixels,
H query heads, G key/value heads, E head size, B batch, L length, C channels, (h, w) a feature grid.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sail_lightning.errors import SailError
from sail_lightning.registry import build_arguments, socket
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.sequence.chat_template import SOLO_CHAT, ChatTemplate
from sail_lightning.sequence.layout import ImageLayout
from sail_lightning.settings.ranges import before_init, check_arguments
from sail_lightning.settings.signatures import arguments_of


@dataclass(frozen=True)
class Dims:
    """Sizes that plugins agree on. Zero means: not published yet.

    `vocab_size` comes from the tokenizer, and how many of its last words are `new_words`, which no pretrained decoder
    knows; `hidden_size` and `patch_size` (pixels per vision token) from the backbone;
    `feature_channels` and `feature_stride` (pixels per mask feature) from the upsampler.
    """

    vocab_size: int = 0
    new_words: int = 0
    hidden_size: int = 0
    patch_size: int = 0
    feature_channels: int = 0
    feature_stride: int = 0


class Plugin(nn.Module, ABC):
    """What all plugins share: two phases, and the memory of how they were configured (`init_args`).

    Arguments are held to the ranges and choices in their types (`settings.ranges`), from Python and from YAML alike.
    One that stands for a plugin may be given as an mmengine config, `dict(type="SDPAAttention")`: so plugins inside
    plugins are also made by an mmengine registry of another scope, which makes the outermost one only.
    """

    init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

        def record(self: Plugin, init: Callable[..., None], bound: inspect.BoundArguments) -> dict[str, Any] | None:
            varkw = inspect.getfullargspec(init).varkw or ""
            bound.apply_defaults()
            given = dict(list(bound.arguments.items())[1:])
            handed_on = given.pop(varkw, {})  # `**kwargs` for a parent: recorded one by one
            made = build_arguments(cls, given | handed_on)
            own = {name: made[name] for name in given}
            check_arguments(self, init, own | ({varkw: {name: made[name] for name in handed_on}} if varkw else {}))
            if "init_args" not in self.__dict__:  # the outermost of a chain: what the caller gave
                defaults = {name: one.default for name, one in arguments_of(cls).items() if not one.required}
                object.__setattr__(self, "init_args", defaults | made)
            return made if any(made[name] is not value for name, value in (given | handed_on).items()) else None

        before_init(cls, record, _check_initialised)

    @abstractmethod
    def build(self, dims: Dims) -> Dims:
        """Makes the weights; returns `dims` with what this plugin publishes."""

    def stored_args(self) -> dict[str, Any]:
        """Arguments that make this plugin again where the files it was made from are gone. Asked after `build`."""
        return getattr(self, "init_args", {})


def _check_initialised(plugin: Plugin) -> None:
    if "_parameters" not in plugin.__dict__:
        raise SailError(
            f"{type(plugin).__name__}.__init__ must begin with `super().__init__()`, which it does not call"
        )


def to_spec(value: Any, stored: bool = False) -> Any:
    """A plugin, or a container of them, as `class_path` and `init_args`, the form that YAML and checkpoints hold.

    `stored`: of built plugins, with the arguments that a stored model needs (`Plugin.stored_args`).
    """
    if isinstance(value, Plugin):
        given = value.stored_args() if stored else getattr(value, "init_args", {})
        init_args = {key: to_spec(item, stored) for key, item in given.items()}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": init_args}
    if isinstance(value, dict):
        return {key: to_spec(item, stored) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_spec(item, stored) for item in value]
    return value


@socket(where="model.backbone.attention")
class Attention(Plugin):
    """Which kernel computes prefix attention?

    An attention plugin has no weights; `build` checks that the kernel runs here.
    """

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Packed attention: query (T, H, E), key and value (T, G, E) of one dtype, to (T, H, E)."""

    def prepare(self, plan: AttentionPlan, device: torch.device) -> None:
        """Makes what the kernel derives from a plan, such as masks, and keeps it in `plan.cache`.

        A backbone calls it once per pass, before its layers: they may be compiled, and such things are made outside.
        """

    def build(self, dims: Dims) -> Dims:
        return dims


@dataclass(frozen=True)
class CacheView:
    """Who looks where, for `count` new tokens that look at the rows of a cache from `first` on.

    The tokens are laid out in a grid (rows, width), row by row, at `places` (count,) int64; None where they fill it.
    `mask` (rows, width, length) bool says which of a row's first `length` slots each place sees.
    """

    count: int
    first: int
    places: Tensor | None
    mask: Tensor


class KeyValueCache(ABC):
    """Keys and values of the tokens read so far: what a backbone needs of a cache. Kept by `generation`."""

    @abstractmethod
    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Stores a layer's keys and values of T new tokens, (1, G, T, E) each; returns what attention looks at.

        In `Backbone.forward` these are the same, in `Backbone.decode` all rows, (R, G, capacity, E) each.
        """

    @abstractmethod
    def views(self) -> Sequence[CacheView]:
        """How the T new tokens of `Backbone.decode` look at the rows, in order."""


@socket
class Backbone(Plugin):
    """Which single transformer? Reads patches and words as one sequence.

    `build` publishes `hidden_size` and `patch_size`; `vocab_size` is given. Hidden states are those after the final
    norm, which both the language head and the mask head read. How its sequence is laid out is a property of the class.
    """

    chat: ClassVar[ChatTemplate] = SOLO_CHAT
    """The words around questions and answers."""
    picture: ClassVar[ImageLayout] = ImageLayout()
    """What stands around and among a picture's patches; ids below zero are learned vectors of the backbone."""
    resize: ClassVar[Literal["longest", "area"]] = "longest"
    """How pictures are resized: the longest side to at most `max_side`, or the area to about `max_side` squared."""

    @abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (T,) int64 to embeddings (T, D)."""

    @abstractmethod
    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Raw patches (N, 3*P*P) uint8, channel first (C, row, column), to embeddings (N, D).

        `grids` are the (rows, columns) of the pictures that they make up, in order.
        """

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        vision: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Packed embeddings (T, D) and positions (3, T) to hidden states (T, D).

        `vision` (T,) bool is True at vision tokens, for weights that differ by modality. Each layer hands its keys and
        values to the `cache`, if there is one.
        """

    @abstractmethod
    def decode(self, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """Words (T, D) at positions (3, T) that go on from what the cache holds, to hidden states (T, D).

        Who looks where is said by the cache's views. On CUDA it runs inside a graph: nothing may wait for the device.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to vocabulary logits (..., vocab_size)."""


@socket
class Upsampler(Plugin):
    """How do vision tokens become mask features? Publishes `feature_channels` and `feature_stride`."""

    guided: ClassVar[bool] = False
    """Whether it looks at the pictures too: `forward` then takes a second argument, `pictures` (B, 3, h*P, w*P) uint8,
    RGB, as the model sees them, and the model never calls `read`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Vision tokens (B, D, h, w) to mask features (B, feature_channels, h*k, w*k), k = patch / feature stride.

        B may be zero: gradients are then zero, not missing.
        """

    def read(self, features: Tensor, reader: Callable[[Tensor], Tensor]) -> Tensor:
        """What a reader makes of the mask features of vision tokens (B, D, h, w): the same as `reader(self(features))`.

        A reader sees each pixel for itself, (B, feature_channels, h', w') to (B, n, h', w'), so an upsampler may give
        it one part of the picture after the other, and never hold the whole.
        """
        return reader(self(features))


@dataclass(frozen=True)
class Regions:
    """The visual prompts of a packed batch, as index tensors (int64) and boxes.

    Region r, of R, carries the token `token_ids[r]` (`<PromptK>`). It covers the patches at the packed rows
    `patch_rows[i]` where `patch_region[i] == r` (K pairs; overlapping regions give several pairs a row), and is
    mentioned by the text tokens at `mention_rows[j]` where `mention_region[j] == r`. Its pixels lie in the box
    `boxes[r]`, (R, 4) float32: x0, y0, x1, y1 in shares of the picture's width and height.
    """

    token_ids: Tensor
    patch_rows: Tensor
    patch_region: Tensor
    mention_rows: Tensor
    mention_region: Tensor
    boxes: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Regions:
        """The same on another device."""
        return Regions(*(getattr(self, name).to(*args, **kwargs) for name in self.__dataclass_fields__))


@socket(where="model.prompt_encoder")
class PromptEncoder(Plugin):
    """How does a region enter the sequence?"""

    num_prompts: int = 15
    """How many tokens `<Prompt0>`, `<Prompt1>`, ... there are."""
    overlap: Literal["sum", "last"] = "sum"
    """A patch under several regions belongs to all of them, or to the last one only (official)."""
    coverage: Literal["cover", "nearest", "nearest_floor"] = "cover"
    """Which patches a region covers; see `vision.patch_coverage`."""

    @abstractmethod
    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Packed embeddings (T, D), patches already in, to the same with regions put in.

        `region_tokens` (R, D) are the embeddings of the regions' `<PromptK>` tokens.
        """


@socket(where="model.teachers.NAME")
class Teacher(Plugin):
    """Which expert is distilled, into which features?

    A teacher is seen in training only: it is kept outside the module tree, without gradients, in no checkpoint, and in
    its own dtype whatever the student computes in. The projection from the student's features to its `channels` is
    trained and owned by the model.
    """

    tap: Literal["vision", "mask"] = "vision"
    """The student features it teaches: `vision` tokens (h, w, D), or upsampled `mask` features."""
    weight: float = 1.0
    """Of its loss."""
    channels: int = 0
    """Of its features; known after `build`."""
    every: int = 1
    """It teaches in every so many optimiser steps, there with as many times its weight: on average the same loss."""
    tasks: Sequence[str] | None = None
    """It teaches pictures that are asked about by one of these tasks (`Turn.task`); None: all. Others count as pictures
    whose loss is zero, so that what a picture weighs does not depend on what else is in the batch."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w)."""
