"""The single transformer with its heads, in pure torch: one sequence in, and only the outputs that are needed.

    patches, tokens -> one sequence -> transformer -> hidden states
        rows that predict a supervised token     -> vocabulary logits, or the language loss
        vision tokens of images with a [SEG]     -> upsampler -> mask features -> mask keys
        [SEG] states                             -> mask queries

Mask logits have one definition, `mask_logits(queries, keys)`, and are computed in the cheapest of three ways:

- by the definition, where the keys exist anyway because a teacher sees them, or where no image owns a `[SEG]`;
- by `MaskHead.logits`, which never makes the keys;
- by `Upsampler.apply_head`, where an upsampler overrides it: it applies `MaskHead.logits` to one tile of the mask
  features after the other and never holds all of them.

Both fast ways equal the definition; `tests/core/test_mask_head.py` compares values and gradients.
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
from sail_lightning.settings.renames import renamed

FEATURES = "(B, feature_channels, h*k, w*k)"
"""The shape of mask features, where k = patch size / feature stride."""

__getattr__ = renamed(__name__, {"put_together": "unpatchify"})


@dataclass(frozen=True)
class FeatureGroup:
    """Feature maps (B, C, h, w) of images with one grid, and the indices of these images in the batch."""

    images: tuple[int, ...]
    maps: Tensor


@dataclass(frozen=True)
class ModelOutput:
    """The outputs of one packed forward pass.

    `hidden` (T, D) are the states after the final norm. At the supervised rows there are either `logits` (S, V) or,
    where a language loss was given, its sum `language`, a scalar. `mask_logits` are (n, h, w) per image that owns a
    `[SEG]`, and one empty group where none does. `vision` and `mask` are the features that teachers see.
    """

    hidden: Tensor
    logits: Tensor | None
    mask_logits: tuple[Tensor, ...]
    vision: tuple[FeatureGroup, ...]
    mask: tuple[FeatureGroup, ...]
    language: Tensor | None = None


class MaskHead(nn.Module):
    """Two small projections into one space: `[SEG]` states to queries, upsampled features to keys.

    The official names are `seg_token_projector` and `image_feature_projector` (Linear, ReLU, Linear each).

    Args:
        hidden_size: Size of the `[SEG]` states.
        feature_channels: Channels of the upsampled features.
        channels: Size of queries and keys.
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
        """Queries (B, n, channels) and upsampled features (B, C, h, w) to mask logits (B, n, h, w).

        The result equals `mask_logits(queries[b], self.keys(features)[b])` for each image b. There are far fewer
        queries than pixels, so the last layer of the keys is folded into the queries:
        q . (W x + b) = (q W) . x + q . b.
        """
        first, activation, last = self.feature_projector
        assert isinstance(last, nn.Linear)
        pixels = activation(first(features.permute(0, 2, 3, 1).flatten(1, 2)))
        offsets = queries @ last.bias
        return torch.baddbmm(offsets[..., None], queries @ last.weight, pixels.mT).unflatten(2, features.shape[2:])


def mask_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """The definition of mask logits: queries (n, channels) and keys (channels, h, w) to their products (n, h, w)."""
    return torch.einsum("nc,chw->nhw", queries, keys)


class SailModel(nn.Module):
    """Composes the plugins. Weights exist after `build`.

    Args:
        backbone: The single transformer.
        upsampler: Turns vision tokens into mask features.
        prompt_encoder: Puts the regions of visual prompts into the sequence.
        mask_channels: Size of mask queries and keys (256 in the paper).
    """

    def __init__(
        self, backbone: Backbone, upsampler: Upsampler, prompt_encoder: PromptEncoder, mask_channels: int = 256
    ) -> None:
        super().__init__()
        self.backbone, self.upsampler, self.prompt_encoder = backbone, upsampler, prompt_encoder
        self.mask_channels = mask_channels
        self.dims = Dims()

    def build(self, vocab_size: int, num_added_tokens: int = 0) -> Dims:
        """Makes all weights, in order; returns the sizes that the plugins published.

        Args:
            vocab_size: Number of tokens of the tokenizer.
            num_added_tokens: How many of these, at the end, were added to the tokenizer of a pretrained decoder.

        Raises:
            SailError: A plugin does not publish its sizes, or changes those of others. Plugins may raise others.
        """
        dims = Dims(vocab_size=vocab_size, num_added_tokens=num_added_tokens)
        for plugin in (self.backbone, self.upsampler, self.prompt_encoder):
            dims = contract.build(plugin, dims)
        self.mask_head = MaskHead(dims.hidden_size, dims.feature_channels, self.mask_channels)
        self.dims = dims
        return dims

    def embed(self, batch: PackedBatch) -> Tensor:
        """Embeds the tokens, patches and regions of a batch as one row (T, D)."""
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
        """Calls `Backbone.forward` on packed embeddings (T, D) and checks the states (T, D) that it returns."""
        hidden = self.backbone(embeddings, positions, plan, vision, cache)
        return contract.expect(hidden, self.backbone, "forward", embeddings.shape, "(T, D)", embeddings)

    @property
    def head(self) -> contract.LanguageHead:
        """The language head: hidden states (..., D) to logits (..., vocab_size)."""
        return contract.LanguageHead(self.backbone, self.dims.vocab_size)

    def forward(
        self, batch: PackedBatch, taps: Collection[str] = (), language_loss: LanguageLoss | None = None
    ) -> ModelOutput:
        """Runs the model on a packed batch.

        Args:
            batch: The batch, on the device of the weights.
            taps: The student features that teachers see of every image: `vision`, `mask`, both or none.
            language_loss: Computed in here instead of the logits, so that wrappers (FSDP, DDP, compilation) see the use
                of the language head.
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
        """The states (rows*columns, D) of the vision tokens of each image."""
        lengths = [rows * columns for rows, columns in batch.grids]
        return hidden.index_select(0, batch.patch_rows).split(lengths) if lengths else ()

    def raw_patches(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        """The patches (rows*columns, 3*P*P) uint8 of each image for a guided upsampler; nothing for any other."""
        if not self.upsampler.guided or not batch.grids:
            return ()
        return batch.patches.split([rows * columns for rows, columns in batch.grids])

    def upsample(self, group: FeatureGroup, patches: Sequence[Tensor]) -> Tensor:
        """The features (B, C, h*k, w*k) of a group of images; `patches` are those of all images of the batch."""
        if not self.upsampler.guided:
            features = self.upsampler(group.maps)
        else:
            side = self.dims.patch_size
            rows, columns = group.maps.shape[2:]
            shown = [patches[image] for image in group.images]
            none = group.maps.new_zeros(0, rows * columns, 3 * side * side, dtype=torch.uint8)
            images = unpatchify(torch.stack(shown) if shown else none, (rows, columns))
            features = self.upsampler(group.maps, images)
        shape = self._features_shape(group.maps)
        return contract.expect(features, self.upsampler, "forward", shape, FEATURES, group.maps)

    def _features_shape(self, maps: Tensor) -> tuple[int, int, int, int]:
        """The shape of the mask features of vision tokens (B, D, h, w)."""
        ratio = self.dims.patch_size // self.dims.feature_stride
        return len(maps), self.dims.feature_channels, maps.shape[2] * ratio, maps.shape[3] * ratio

    def mask_features(
        self,
        tokens: Sequence[Tensor],
        grids: Sequence[tuple[int, int]],
        images: Collection[int],
        reference: Tensor,
        patches: Sequence[Tensor] = (),
    ) -> tuple[FeatureGroup, ...]:
        """Makes the mask keys (B, mask_channels, h, w) of some images, which are the mask features that teachers see.

        Args:
            tokens: Vision tokens (rows*columns, D) of every image of the batch.
            grids: The (rows, columns) of every image.
            images: Indices of the images. Without any, the keys have zero rows, which keep every weight in the graph.
            reference: A tensor (..., D) whose dtype and device keys of zero rows have.
            patches: Raw patches of every image, for a guided upsampler.
        """
        groups = group_maps(tokens, grids, images) or (_empty_group(reference),)
        return tuple(FeatureGroup(group.images, self.mask_head.keys(self.upsample(group, patches))) for group in groups)

    def mask_logits(self, hidden: Tensor, batch: PackedBatch, mask: Sequence[FeatureGroup] = ()) -> tuple[Tensor, ...]:
        """Mask logits (n, h, w) of each image that owns a `[SEG]`, in the order of `batch.seg_image`.

        Where none owns one, there is one empty group of logits, which keeps every weight in the graph.

        Args:
            hidden: Hidden states (T, D) of the batch.
            batch: The batch.
            mask: Keys of all images, if they exist already; else only images that own a `[SEG]` are upsampled.
        """
        queries = self.mask_head.queries(hidden.index_select(0, batch.seg_rows))
        if not batch.seg_image:
            mask = mask or self.mask_features((), (), (), hidden)
            return (mask_logits(queries, mask[0].maps.sum(0)),)
        own = dict(zip(batch.seg_image, queries.split(list(batch.seg_counts)), strict=True))
        if mask:
            keys = {image: maps for group in mask for image, maps in zip(group.images, group.maps, strict=True)}
            found = {image: mask_logits(own[image], keys[image]) for image in own}
        else:
            found = self.predict_masks(self.vision_tokens(hidden, batch), batch.grids, own, self.raw_patches(batch))
        return tuple(found[image] for image in batch.seg_image)

    def predict_masks(
        self,
        tokens: Sequence[Tensor],
        grids: Sequence[tuple[int, int]],
        queries: Mapping[int, Tensor],
        patches: Sequence[Tensor] = (),
    ) -> dict[int, Tensor]:
        """Mask logits (n, h, w) of the images that have queries, and of no other. The keys are never made.

        Args:
            tokens: Vision tokens (rows*columns, D) of every image.
            grids: The (rows, columns) of every image.
            queries: Queries (n, mask_channels) by the index of their image.
            patches: Raw patches of every image, for a guided upsampler.
        """
        found: dict[int, Tensor] = {}
        for group in group_maps(tokens, grids, queries.keys()):
            own = [queries[image] for image in group.images]
            logits = self._group_logits(group, nn.utils.rnn.pad_sequence(own, batch_first=True), patches)
            for image, masks, rows in zip(group.images, logits, own, strict=True):
                found[image] = masks[: len(rows)]
        return found

    def _group_logits(self, group: FeatureGroup, queries: Tensor, patches: Sequence[Tensor]) -> Tensor:
        """Mask logits (B, n, h*k, w*k) of images with one grid and their queries (B, n, mask_channels)."""
        head = functools.partial(self.mask_head.logits, queries)
        if self.upsampler.guided or type(self.upsampler).apply_head is Upsampler.apply_head:
            return head(self.upsample(group, patches))
        checked = contract.checked_head(self.upsampler, self.dims.feature_channels, head)
        logits = self.upsampler.apply_head(group.maps, checked)
        shape = (*queries.shape[:2], *self._features_shape(group.maps)[2:])
        return contract.expect(logits, self.upsampler, "apply_head", shape, "(B, n, h*k, w*k)")


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (B, rows*columns, 3*P*P) of images of one grid to these images (B, 3, rows*P, columns*P)."""
    side = math.isqrt(patches.shape[-1] // 3)
    cells = patches.unflatten(2, (3, side, side)).unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
    return cells.flatten(4, 5).flatten(2, 3)


def _empty_group(reference: Tensor) -> FeatureGroup:
    """Vision tokens (0, D, 1, 1) of no image, with the dtype and device of a tensor (..., D)."""
    return FeatureGroup((), reference.new_zeros(0, reference.shape[-1], 1, 1))


def group_maps(
    tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]], images: Collection[int]
) -> tuple[FeatureGroup, ...]:
    """Vision tokens (rows*columns, D) per image as maps (B, D, rows, columns), images of one grid together."""
    by_grid: dict[tuple[int, int], list[int]] = {}
    for image in images:
        by_grid.setdefault(grids[image], []).append(image)
    return tuple(
        FeatureGroup(tuple(members), torch.stack([tokens[i] for i in members]).unflatten(1, grid).permute(0, 3, 1, 2))
        for grid, members in by_grid.items()
    )
