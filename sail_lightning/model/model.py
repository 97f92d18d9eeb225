"""The single transformer with its heads, in pure torch: embed, put prompts in, read, and answer only what is needed.

patches, words -> one sequence -> transformer -> hidden states
    rows that predict a supervised word      -> vocabulary logits, or the language loss
    vision tokens of pictures with a [SEG]   -> upsampler -> mask features
    [SEG] states                             -> mask queries;  mask logits = queries . features
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.interfaces import Backbone, Dims, KeyValueCache, PromptEncoder, Upsampler
from sail_lightning.model import contract
from sail_lightning.model.losses import LanguageLoss
from sail_lightning.sequence.attention_plan import AttentionPlan

FEATURES = "(B, feature_channels, h*k, w*k)"
"""Shape of mask features; k = patch size / feature stride."""


@dataclass(frozen=True)
class FeatureGroup:
    """Feature maps (B, C, h, w) of pictures with one grid, and which pictures of the batch they are."""

    images: tuple[int, ...]
    maps: Tensor


@dataclass(frozen=True)
class ModelOutput:
    """What one packed forward pass gives.

    `hidden` (T, D) after the final norm; at the supervised rows, `logits` (S, V) or, where a language loss was given,
    its sum `language`, a scalar, and never both; `mask_logits`, per picture that owns a
    `[SEG]`, (n, h, w) (one empty group where none does); `vision` and `mask` features of the pictures that were asked
    for.
    """

    hidden: Tensor
    logits: Tensor | None
    mask_logits: tuple[Tensor, ...]
    vision: tuple[FeatureGroup, ...]
    mask: tuple[FeatureGroup, ...]
    language: Tensor | None = None


class MaskHead(nn.Module):
    """Two small projections into one space: `[SEG]` states to queries, upsampled features to keys.

    Official names: `seg_token_projector`, `image_feature_projector` (Linear, ReLU, Linear each).
    """

    def __init__(self, hidden_size: int, feature_channels: int, channels: int) -> None:
        super().__init__()
        self.seg_projector = nn.Sequential(
            nn.Linear(hidden_size, feature_channels), nn.ReLU(), nn.Linear(feature_channels, channels)
        )
        self.feature_projector = nn.Sequential(
            nn.Linear(feature_channels, feature_channels), nn.ReLU(), nn.Linear(feature_channels, channels)
        )

    def queries(self, states: Tensor) -> Tensor:
        """`[SEG]` states (n, D) to mask queries (n, channels)."""
        return self.seg_projector(states)

    def keys(self, features: Tensor) -> Tensor:
        """Upsampled features (B, C, h, w) to (B, channels, h, w): the mask features that teachers see."""
        return self.feature_projector(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def logits(self, queries: Tensor, features: Tensor) -> Tensor:
        """Queries (B, n, channels) and upsampled features (B, C, h, w) to mask logits (B, n, h, w): queries . keys.

        There are far fewer queries than pixels, so the last layer of the keys is folded into the queries:
        q . (W x + b) = (q W) . x + q . b.
        """
        first, activation, last = self.feature_projector
        assert isinstance(last, nn.Linear)
        pixels = activation(first(features.permute(0, 2, 3, 1).flatten(1, 2)))
        offsets = queries @ last.bias
        return torch.baddbmm(offsets[..., None], queries @ last.weight, pixels.mT).unflatten(2, features.shape[2:])


class SailModel(nn.Module):
    """Composes the sockets. Weights exist after `build`.

    Args:
        backbone: the single transformer.
        upsampler: vision tokens to mask features.
        prompt_encoder: how regions enter.
        mask_channels: size of mask queries and keys (256 in the paper).
    """

    def __init__(
        self, backbone: Backbone, upsampler: Upsampler, prompt_encoder: PromptEncoder, mask_channels: int = 256
    ) -> None:
        super().__init__()
        self.backbone, self.upsampler, self.prompt_encoder = backbone, upsampler, prompt_encoder
        self.mask_channels = mask_channels
        self.dims = Dims()

    def build(self, vocab_size: int, num_added_tokens: int = 0) -> Dims:
        """Makes all weights, in order; returns what the plugins published. `num_added_tokens`: see `Dims`.

        Raises:
            SailError: a plugin does not publish its sizes, or changes those of others; and what plugins raise.
        """
        dims = Dims(vocab_size=vocab_size, num_added_tokens=num_added_tokens)
        for plugin in (self.backbone, self.upsampler, self.prompt_encoder):
            dims = contract.build(plugin, dims)
        self.mask_head = MaskHead(dims.hidden_size, dims.feature_channels, self.mask_channels)
        self.dims = dims
        return dims

    def embed(self, batch: PackedBatch) -> Tensor:
        """Words, patches and regions as one row of embeddings (T, D)."""
        embeddings = self._embed_tokens(batch.ids)
        patches = self.backbone.embed_patches(batch.patches, batch.grids)
        shape = (len(batch.patches), self.dims.hidden_size)
        patches = contract.expect(patches, self.backbone, "embed_patches", shape, "(N, D)")
        embeddings = embeddings.index_add(0, batch.patch_rows, patches.to(embeddings.dtype))
        embedded = self.prompt_encoder(embeddings, batch.regions, self._embed_tokens(batch.regions.token_ids))
        return contract.expect(embedded, self.prompt_encoder, "forward", embeddings.shape, "(T, D)", embeddings)

    def _embed_tokens(self, ids: Tensor) -> Tensor:
        embeddings = self.backbone.embed_tokens(ids)
        return contract.expect(embeddings, self.backbone, "embed_tokens", (len(ids), self.dims.hidden_size), "(T, D)")

    def read(
        self,
        embeddings: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        vision: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (T, D) of packed embeddings, as `Backbone.forward`."""
        hidden = self.backbone(embeddings, positions, plan, vision, cache)
        return contract.expect(hidden, self.backbone, "forward", embeddings.shape, "(T, D)", embeddings)

    @property
    def head(self) -> contract.Head:
        """The language head: hidden states (..., D) to logits (..., vocab_size)."""
        return contract.Head(self.backbone, self.dims.vocab_size)

    def forward(
        self, batch: PackedBatch, taps: Collection[str] = (), language_loss: LanguageLoss | None = None
    ) -> ModelOutput:
        """Reads a batch. `taps` are the student features that teachers want of every picture: `vision`, `mask`.

        The language loss is computed in here, so that wrappers (FSDP, DDP, compilation) see the language head at work.
        """
        hidden = self.read(self.embed(batch), batch.positions, batch.plan, batch.vision)
        tokens = self.vision_tokens(hidden, batch)
        everything = range(len(batch.grids))
        patches = self.raw_patches(batch)
        mask = self.mask_features(tokens, batch.grids, everything, hidden, patches) if "mask" in taps else ()
        supervised = hidden.index_select(0, batch.target_rows)
        logits = language = None
        if language_loss is None:
            logits = self.head(supervised)
        else:
            language = language_loss(supervised, self.head, batch.target_ids, batch.target_weights)
        return ModelOutput(
            hidden=hidden,
            logits=logits,
            mask_logits=self.mask_logits(hidden, batch, mask),
            vision=group_maps(tokens, batch.grids, everything) if "vision" in taps else (),
            mask=mask,
            language=language,
        )

    def vision_tokens(self, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, ...]:
        """The states (rows*columns, D) of each picture's vision tokens."""
        lengths = [rows * columns for rows, columns in batch.grids]
        return hidden.index_select(0, batch.patch_rows).split(lengths) if lengths else ()

    def raw_patches(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """The patches (rows*columns, 3*P*P) uint8 of each picture, for an upsampler that looks at them; else none."""
        if not self.upsampler.guided or not batch.grids:
            return ()
        return batch.patches.split([rows * columns for rows, columns in batch.grids])

    def upsample(self, group: FeatureGroup, patches: Sequence[Tensor]) -> Tensor:
        """Features (B, C, h*k, w*k) of a group of pictures; `patches` are those of all pictures of the batch."""
        if not self.upsampler.guided:
            features = self.upsampler(group.maps)
        else:
            side = self.dims.patch_size
            rows, columns = group.maps.shape[2:]
            shown = [patches[image] for image in group.images]
            like = group.maps.new_zeros(0, rows * columns, 3 * side * side, dtype=torch.uint8)
            pictures = put_together(torch.stack(shown) if shown else like, (rows, columns))
            features = self.upsampler(group.maps, pictures)
        shape = self._features_shape(group.maps)
        return contract.expect(features, self.upsampler, "forward", shape, FEATURES, group.maps)

    def _features_shape(self, maps: Tensor) -> tuple[int, int, int, int]:
        """Shape of the mask features of vision tokens (B, D, h, w)."""
        ratio = self.dims.patch_size // self.dims.feature_stride
        return len(maps), self.dims.feature_channels, maps.shape[2] * ratio, maps.shape[3] * ratio

    def mask_features(
        self,
        tokens: Sequence[Tensor],
        grids: Sequence[tuple[int, int]],
        images: Collection[int],
        like: Tensor,
        patches: Sequence[Tensor] = (),
    ) -> tuple[FeatureGroup, ...]:
        """Mask features (B, mask_channels, h, w) of the pictures named in `images`.

        Of no picture: zero rows that keep every weight in the graph, with the type and device of `like` (..., D).
        `patches` of every picture are read by a guided upsampler only.
        """
        groups = group_maps(tokens, grids, images) or (_no_maps(like),)
        return tuple(FeatureGroup(group.images, self.mask_head.keys(self.upsample(group, patches))) for group in groups)

    def mask_logits(self, hidden: Tensor, batch: PackedBatch, mask: Sequence[FeatureGroup] = ()) -> tuple[Tensor, ...]:
        """Mask logits (n, h, w) of each picture that owns a `[SEG]`, from hidden states (T, D).

        Only these pictures are upsampled, unless `mask` features of all pictures are there already. Where none owns
        one: one empty group of masks that keeps every weight in the graph.
        """
        queries = self.mask_head.queries(hidden.index_select(0, batch.seg_rows))
        if mask:
            if not batch.seg_image:
                return (torch.einsum("nc,chw->nhw", queries, mask[0].maps.sum(0)),)
            keys = {image: maps for group in mask for image, maps in zip(group.images, group.maps, strict=True)}
            split = zip(batch.seg_image, queries.split(list(batch.seg_counts)), strict=True)
            return tuple(torch.einsum("nc,chw->nhw", own, keys[image]) for image, own in split)
        if not batch.seg_image:
            features = self.upsample(_no_maps(hidden), ()).sum(0, keepdim=True)
            return (self.mask_head.logits(queries[None], features)[0],)
        own = dict(zip(batch.seg_image, queries.split(list(batch.seg_counts)), strict=True))
        found = self.read_masks(self.vision_tokens(hidden, batch), batch.grids, own, self.raw_patches(batch))
        return tuple(found[image] for image in batch.seg_image)

    def read_masks(
        self,
        tokens: Sequence[Tensor],
        grids: Sequence[tuple[int, int]],
        queries: Mapping[int, Tensor],
        patches: Sequence[Tensor] = (),
    ) -> dict[int, Tensor]:
        """Mask logits (n, h, w) of the pictures that `queries` (n, channels) are given for, and of no other.

        `patches` of every picture are read by a guided upsampler only.
        """
        found: dict[int, Tensor] = {}
        for group in group_maps(tokens, grids, queries.keys()):
            own = [queries[image] for image in group.images]
            padded = nn.utils.rnn.pad_sequence(own, batch_first=True)
            reader = functools.partial(self.mask_head.logits, padded)
            if self.upsampler.guided or type(self.upsampler).read is Upsampler.read:
                logits = reader(self.upsample(group, patches))
            else:
                checked = contract.reader(self.upsampler, self.dims.feature_channels, reader)
                logits = self.upsampler.read(group.maps, checked)
                rows, columns = self._features_shape(group.maps)[2:]
                shape = (*padded.shape[:2], rows, columns)
                contract.expect(logits, self.upsampler, "read", shape, "(B, n, h*k, w*k)")
            for image, masks, rows in zip(group.images, logits, own, strict=True):
                found[image] = masks[: len(rows)]
        return found


def put_together(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (B, rows*columns, 3*P*P) of pictures of one grid, to these pictures (B, 3, rows*P, columns*P)."""
    side = math.isqrt(patches.shape[-1] // 3)
    cells = patches.unflatten(2, (3, side, side)).unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
    return cells.flatten(4, 5).flatten(2, 3)


def _no_maps(like: Tensor) -> FeatureGroup:
    return FeatureGroup((), like.new_zeros(0, like.shape[-1], 1, 1))


def group_maps(
    tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]], images: Collection[int]
) -> tuple[FeatureGroup, ...]:
    """Vision tokens (rows*columns, D) per picture as maps (B, D, rows, columns), pictures of one grid together."""
    by_grid: dict[tuple[int, int], list[int]] = {}
    for image in images:
        by_grid.setdefault(grids[image], []).append(image)
    return tuple(
        FeatureGroup(tuple(members), torch.stack([tokens[i] for i in members]).unflatten(1, grid).permute(0, 3, 1, 2))
        for grid, members in by_grid.items()
    )
