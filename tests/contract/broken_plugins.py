"""Plugins that break one rule each, by the check that finds it. A user could have written any of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tiny_sail import BACKBONE
from torch import Tensor, nn

from sail_lightning.interfaces import Attention, Dims, PromptEncoder, Regions, Teacher, Upsampler
from sail_lightning.plugins.attention import SDPAAttention
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.sequence.attention_plan import AttentionPlan


class Folded(Upsampler):
    """An upsampler that keeps every rule; those below break one."""

    channels = 6

    def build(self, dims: Dims) -> Dims:
        self.fold = nn.ConvTranspose2d(dims.hidden_size, self.channels, 2, stride=2)
        return replace(dims, feature_channels=self.channels, feature_stride=dims.patch_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.fold(features)


class EagerUpsampler(Folded):
    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(2, 2)


class PositionalUpsampler(Folded):
    def __init__(self, *sizes: int) -> None:
        super().__init__()


class SilentUpsampler(Folded):
    def build(self, dims: Dims) -> Dims:
        super().build(dims)
        return None  # type: ignore[return-value]


class SizelessUpsampler(Folded):
    def build(self, dims: Dims) -> Dims:
        super().build(dims)
        return dims


class FloatUpsampler(Folded):
    """Makes its weights in float32, whatever the default is."""

    def build(self, dims: Dims) -> Dims:
        built = super().build(dims)
        self.fold.float()
        return built


class NarrowUpsampler(Folded):
    def forward(self, features: Tensor) -> Tensor:
        return self.fold(features)[:, 1:]


class SmallUpsampler(Folded):
    def forward(self, features: Tensor) -> Tensor:
        return self.fold(features)[..., 1:]


class NormalisedUpsampler(Folded):
    """Reads the first image of the batch, which may not be there."""

    def forward(self, features: Tensor) -> Tensor:
        return self.fold(features) + 0 * features[0].mean()


class OtherwiseUpsampler(Folded):
    def apply_head(self, features: Tensor, head: Any) -> Tensor:
        return 2 * head(self(features))


class IdleUpsampler(Folded):
    def build(self, dims: Dims) -> Dims:
        self.idle = nn.Linear(3, 3)
        return super().build(dims)


class ShortcutUpsampler(Folded):
    """Leaves its weights out where there is no image."""

    def forward(self, features: Tensor) -> Tensor:
        if not len(features):
            height, width = features.shape[2:]
            return features.new_zeros(0, self.channels, 2 * height, 2 * width)
        return super().forward(features)


class SinglePrecisionUpsampler(Folded):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).float()


class RoundedUpsampler(Folded):
    """Its result depends on the precision that autocast chooses."""

    def forward(self, features: Tensor) -> Tensor:
        out = super().forward(features)
        return out * 9 if torch.is_autocast_enabled("cpu") else out


class ForgetfulUpsampler(Folded):
    """Its random table is in no checkpoint."""

    def build(self, dims: Dims) -> Dims:
        built = super().build(dims)
        self.register_buffer("table", torch.randn(self.channels, 1, 1), persistent=False)
        return built

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.table.to(features.dtype)


class WeightedAttention(SDPAAttention):
    def build(self, dims: Dims) -> Dims:
        self.temperature = nn.Parameter(torch.ones(1))
        return dims


class FlatAttention(SDPAAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        return super().forward(query, key, value, plan, scale).flatten(1)


class CausalAttention(Attention):
    """Hides the later patches of an image, which prefix attention shows."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        ratio = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(ratio, 1) for tensor in (key, value))
        mask = plan.dense_mask().tril()
        scores = torch.einsum("qhd,khd->hqk", query.to(value.dtype), key.to(value.dtype)) * scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), value)


class DetachedAttention(SDPAAttention):
    """Exact, but its keys learn nothing."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        return super().forward(query, key.detach(), value, plan, scale)


class SmallQwen(SailQwen):
    """A backbone that keeps every rule; those below break one."""

    def __init__(self) -> None:
        super().__init__(**BACKBONE)


class WideWordsBackbone(SmallQwen):
    def embed_tokens(self, ids: Tensor) -> Tensor:
        return super().embed_tokens(ids).repeat(1, 2)


class LonePatchBackbone(SmallQwen):
    """Averages all patches into one."""

    def embed_patches(self, patches: Tensor, grids: Any) -> Tensor:
        return super().embed_patches(patches, grids)[: len(grids)]


class PatchesOnlyBackbone(SmallQwen):
    """Needs an image in every batch."""

    def embed_patches(self, patches: Tensor, grids: Any) -> Tensor:
        embedded = super().embed_patches(patches, grids)
        return embedded + 0 * embedded[0]


class ShortHeadBackbone(SmallQwen):
    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden)[..., 1:]


class LastStateBackbone(SmallQwen):
    def forward(self, embeddings: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(embeddings, *args, **kwargs)[-1:]


class MixingBackbone(SmallQwen):
    """Adds the mean of the whole row, so that packed samples see each other."""

    def forward(self, embeddings: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden = super().forward(embeddings, *args, **kwargs)
        return hidden + (hidden.mean(0) if len(hidden) > 11 else 0)


class ForgetfulBackbone(SmallQwen):
    """Decodes as if each word were the first."""

    def decode(self, embeddings: Tensor, positions: Tensor, cache: Any) -> Tensor:
        return super().decode(embeddings, torch.zeros_like(positions), cache)


class AppendingPrompts(PromptInjection):
    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        return torch.cat([super().forward(embeddings, regions, region_tokens), region_tokens])


class RestlessPrompts(PromptInjection):
    """Scales every embedding, whether there is a region or not."""

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        return 1.5 * super().forward(embeddings, regions, region_tokens)


class BoldPrompts(PromptEncoder):
    """Changes the sizes of others."""

    def build(self, dims: Dims) -> Dims:
        return replace(dims, hidden_size=2 * dims.hidden_size)

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        return embeddings


class Pooled(Teacher):
    """A teacher that keeps every rule; those below break one."""

    channels = 3

    def build(self, dims: Dims) -> Dims:
        return dims

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 4)


class NamelessTeacher(Pooled):
    """Does not say how many channels it has."""

    channels = 0


class LearningTeacher(Pooled):
    def build(self, dims: Dims) -> Dims:
        self.gain = nn.Parameter(torch.ones(1))
        return dims


class ThinTeacher(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :2]


class FlatTeacher(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(2)


class ByteTeacher(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return images


BROKEN: list[tuple[type[Any], str, tuple[str, ...]]] = [
    (EagerUpsampler, "makes no weights before build", ("EagerUpsampler.__init__", "early.weight")),
    (PositionalUpsampler, "can be made again from its arguments", ("named arguments",)),
    (SilentUpsampler, "publishes its sizes", ("SilentUpsampler.build returned nothing", "feature_channels=...")),
    (SizelessUpsampler, "publishes its sizes", ("feature_channels 0",)),
    (BoldPrompts, "publishes its sizes", ("changed hidden_size from 32 to 64",)),
    (NamelessTeacher, "publishes its sizes", ("channels 0",)),
    (FloatUpsampler, "builds in bfloat16", ("fold.weight (torch.float32)",)),
    (NarrowUpsampler, "gives mask features of the published sizes", ("(2, 5, 6, 10)", "(2, 6, 6, 10) is expected")),
    (SmallUpsampler, "gives mask features of the published sizes", ("(2, 6, 6, 9)", "(2, 6, 6, 10) is expected")),
    (NormalisedUpsampler, "takes no images", ("IndexError", "broken_plugins.py, line")),
    (OtherwiseUpsampler, "reads what it computes", ("OtherwiseUpsampler.apply_head is off by",)),
    (IdleUpsampler, "gives every parameter a gradient", ("model.upsampler.idle.weight",)),
    (ShortcutUpsampler, "gives zero gradients without images", ("model.upsampler.fold.weight", "zero is expected")),
    (SinglePrecisionUpsampler, "computes in bfloat16", ("torch.float32", "torch.bfloat16 is expected")),
    (RoundedUpsampler, "agrees under autocast", ("loss is",)),
    (ForgetfulUpsampler, "comes back from a checkpoint", ("other outputs with the same weights",)),
    (ForgetfulUpsampler, "comes back from a model folder", ("other outputs with the same weights",)),
    (WeightedAttention, "has no weights", ("temperature",)),
    (FlatAttention, "gives the shape of its queries", ("(13, 64)", "(13, 4, 16) is expected")),
    (CausalAttention, "is exact", ("image 6 text 3",)),
    (DetachedAttention, "is exact", ("keys no gradient",)),
    (WideWordsBackbone, "embeds words", ("(5, 64)", "(5, 32) is expected")),
    (LonePatchBackbone, "embeds patches", ("(2, 32)", "(10, 32) is expected")),
    (PatchesOnlyBackbone, "embeds no patches", ("IndexError",)),
    (LastStateBackbone, "reads a packed row", ("(1, 32)", "(11, 32) is expected")),
    (ShortHeadBackbone, "gives logits of the vocabulary", ("(11, 49)", "(11, 50) is expected")),
    (MixingBackbone, "keeps packed samples apart", ("when others are packed with it",)),
    (ForgetfulBackbone, "decodes as it reads", ("ForgetfulBackbone.decode is off by",)),
    (AppendingPrompts, "keeps the shape of the sequence", ("(11, 32)", "(9, 32) is expected")),
    (RestlessPrompts, "leaves a batch without regions alone", ("leave them alone",)),
    (LearningTeacher, "is frozen", ("gain",)),
    (ThinTeacher, "gives features of its channels", ("(2, 2, 8, 12)", "(2, 3, 8, 12) is expected")),
    (FlatTeacher, "gives features of its channels", ("(2, 3, 96)", "(2, 3, h, w) is expected")),
    (ByteTeacher, "gives features of its channels", ("torch.uint8",)),
]
"""Each with the check that finds it, and words of the sentence that says so."""
SOUND = (Folded, Pooled)
"""Those that break nothing, from which others are derived."""
