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
from sail_lightning.settings.renames import RASTERIZATIONS, RenamedAttribute, adopt_old_names
from sail_lightning.settings.signatures import arguments_of


@dataclass(frozen=True)
class Dims:
    """Sizes that plugins agree on. Zero means: not published yet.

    `vocab_size` comes from the tokenizer; its last `num_added_tokens` tokens are ours, and no pretrained decoder knows
    them. `hidden_size` and `patch_size` (pixels per vision token) come from the backbone, `feature_channels` and
    `feature_stride` (pixels per mask feature) from the upsampler.
    """

    new_words = RenamedAttribute("num_added_tokens")

    vocab_size: int = 0
    num_added_tokens: int = 0
    hidden_size: int = 0
    patch_size: int = 0
    feature_channels: int = 0
    feature_stride: int = 0


class Plugin(nn.Module, ABC):
    """The base of all plugins: it has two phases, and remembers the arguments it was made with (`init_args`).

    Arguments are held to the ranges and choices in their types (`settings.ranges`), from Python and from YAML alike.
    An argument that stands for a plugin may be given as an mmengine config, `dict(type="SDPAAttention")`; this makes
    nested plugins for an mmengine registry of another scope too, which makes the outermost plugin only.
    """

    init_args: dict[str, Any]
    stored_args = RenamedAttribute("export_init_args")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_names(cls)

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
        """Makes the weights; returns `dims` with the sizes that this plugin publishes."""

    def export_init_args(self) -> dict[str, Any]:
        """Returns arguments that make this plugin again without the files it was made from. Called after `build`."""
        return getattr(self, "init_args", {})


def _check_initialised(plugin: Plugin) -> None:
    if "_parameters" not in plugin.__dict__:
        raise SailError(
            f"{type(plugin).__name__}.__init__ must begin with `super().__init__()`, which it does not call"
        )


def to_spec(value: Any, stored: bool = False) -> Any:
    """Returns plugins as `class_path` and `init_args`, the form that YAML and checkpoints hold.

    Args:
        value: A plugin, or a mapping or list that may hold some; any other value is returned as it is.
        stored: Whether plugins are built, and described by what a stored model needs (`Plugin.export_init_args`).
    """
    if isinstance(value, Plugin):
        given = value.export_init_args() if stored else getattr(value, "init_args", {})
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

        A backbone calls it once per pass, before its layers, which may be compiled: the plan's tensors are made
        outside of them.
        """

    def build(self, dims: Dims) -> Dims:
        return dims


@dataclass(frozen=True)
class CacheView:
    """Which cache slots `count` new tokens attend to, in the rows of a cache from `first` on.

    The tokens are laid out in a grid (rows, width), row by row, at the cells `scatter_index` (count,) int64; None where
    they fill it. `mask` (rows, width, length) bool is True where a cell attends to a slot of its row's first `length`.
    """

    count: int
    first: int
    scatter_index: Tensor | None
    mask: Tensor


class KeyValueCache(ABC):
    """Keys and values of the tokens before: the part of `generation`'s cache that a backbone uses."""

    @abstractmethod
    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Stores a layer's keys and values of T new tokens, (1, G, T, E) each; returns those to attend to.

        They are the same tensors in `Backbone.forward`, and all rows of the cache, (R, G, capacity, E) each, in
        `Backbone.decode`.
        """

    @abstractmethod
    def views(self) -> Sequence[CacheView]:
        """Returns which slots the T new tokens of `Backbone.decode` attend to, in order."""


@socket
class Backbone(Plugin):
    """Which single transformer? Reads patches and text tokens as one sequence.

    `build` publishes `hidden_size` and `patch_size`; `vocab_size` is given. Hidden states are those after the final
    norm, which both the language head and the mask head read. The layout of the sequence is a property of the class.
    """

    chat: ClassVar[ChatTemplate] = SOLO_CHAT
    """The chat template: the tokens around questions and answers."""
    image_layout: ClassVar[ImageLayout] = ImageLayout()
    """The tokens around and among an image's patches; ids below zero are learned vectors of the backbone."""
    picture = RenamedAttribute("image_layout")
    resize_mode: ClassVar[Literal["longest", "area"]] = "longest"
    """How images are resized: the longest side to at most `max_side`, or the area to about `max_side` squared."""
    resize = RenamedAttribute("resize_mode")

    @abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Maps token ids (T,) int64 to embeddings (T, D)."""

    @abstractmethod
    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Maps raw patches (N, 3*P*P) uint8, channel first (C, row, column), to embeddings (N, D).

        `grids` are the (rows, columns) of the images that the patches belong to, in order.
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
        """Maps packed embeddings (T, D) and positions (3, T) to hidden states (T, D).

        `vision` (T,) bool is True at vision tokens, for weights that differ by modality. Each layer stores its keys and
        values in the `cache`, if there is one.
        """

    @abstractmethod
    def decode(self, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """Maps embeddings (T, D) at positions (3, T), which continue what the cache holds, to hidden states (T, D).

        The cache's views say what each token attends to. On CUDA this runs inside a graph, so nothing may wait for the
        device.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states (..., D) to vocabulary logits (..., vocab_size)."""


@socket
class Upsampler(Plugin):
    """How do vision tokens become mask features? Publishes `feature_channels` and `feature_stride`."""

    guided: ClassVar[bool] = False
    """Whether it reads the images too: `forward` then takes a second argument, `images` (B, 3, h*P, w*P) uint8, RGB, as
    the model sees them, and the model never calls `apply_head`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Maps vision tokens (B, D, h, w) to mask features (B, feature_channels, h*k, w*k), k = patch / feature stride.

        B may be zero: gradients are then zero, not missing.
        """

    def apply_head(self, features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies a head to the mask features of vision tokens (B, D, h, w); the result equals `head(self(features))`.

        A head works on each pixel alone, (B, feature_channels, h', w') to (B, n, h', w'). So an upsampler may override
        this to apply it to one tile of the mask features after the other, and never hold all of them.
        """
        return head(self(features))

    read = RenamedAttribute("apply_head")


@dataclass(frozen=True)
class Regions:
    """The visual prompts of a packed batch, as index tensors (int64) and boxes.

    Region r, of R, carries the token `token_ids[r]` (`<PromptK>`). It covers the patches at the packed rows
    `patch_rows[i]` where `patch_region[i] == r` (K pairs; overlapping regions give several pairs a row), and is
    mentioned by the text tokens at `mention_rows[j]` where `mention_region[j] == r`. Its pixels lie in the box
    `boxes[r]`, (R, 4) float32: x0, y0, x1, y1 as fractions of the image's width and height.
    """

    token_ids: Tensor
    patch_rows: Tensor
    patch_region: Tensor
    mention_rows: Tensor
    mention_region: Tensor
    boxes: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Regions:
        """Returns a copy on another device."""
        return Regions(*(getattr(self, name).to(*args, **kwargs) for name in self.__dataclass_fields__))


@socket(where="model.prompt_encoder")
class PromptEncoder(Plugin):
    """How does a region enter the sequence?"""

    num_prompts: int = 15
    """The number of tokens `<Prompt0>`, `<Prompt1>`, ..."""
    overlap: Literal["sum", "last"] = "sum"
    """Whether a patch under several regions belongs to all of them, or to the last one only (official)."""
    rasterization: Literal["any", "nearest_pil", "nearest_torch"] = "any"
    """The rule for which patches a region covers: see `image.preprocessing.patch_coverage`."""
    coverage = RenamedAttribute("rasterization", RASTERIZATIONS)

    @abstractmethod
    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Adds the regions to packed embeddings (T, D) that hold text and patches; returns embeddings (T, D).

        `region_tokens` (R, D) are the embeddings of the regions' `<PromptK>` tokens.
        """


@socket(where="model.teachers.NAME")
class Teacher(Plugin):
    """Which expert is distilled, into which features?

    A teacher takes part in training only: it is kept outside the module tree, without gradients, in no checkpoint, and
    in its own dtype whatever the student computes in. The projection from the student's features to its `channels` is
    trained and owned by the model.
    """

    student_features: Literal["vision", "mask"] = "vision"
    """The student features that it teaches: `vision` tokens (h, w, D), or upsampled `mask` features."""
    tap = RenamedAttribute("student_features")
    weight: float = 1.0
    """Loss weight."""
    channels: int = 0
    """The number of channels of its features, known after `build`."""
    every_n_steps: int = 1
    """It teaches in every n-th optimiser step, with n times its weight: the same loss on average."""
    every = RenamedAttribute("every_n_steps")
    tasks: Sequence[str] | None = None
    """It teaches images with a question of one of these tasks (`Turn.task`); None is all. Other images count, with a
    loss of zero, so that the weight of an image does not depend on the rest of the batch."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w)."""
