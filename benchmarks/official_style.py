"""The baseline: the same model and weights, run in the style of the official code.

Written from the published facts about that code, not copied from it: samples padded to the longest, one dense additive
mask (B, 1, L, L) and keys and values repeated for all heads; logits of every token over the whole vocabulary; hidden
states of every layer kept; each image upsampled alone at full width, with channels first, whether or not anything is
masked in it; questions answered one at a time, each reading its image anew. What the official code does on top and
what says nothing about the design is left out, in the baseline's favour: its re-tokenising of placeholder strings, and
stop words decoded at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from sail_lightning.compat.transformers import cache_keyword
from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.model.losses import MaskLoss, resize
from sail_lightning.model.model import SailModel
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.settings.renames import renamed


class DenseAttention:
    """Scaled dot-product attention under an additive mask (B, 1, S, L), keys and values repeated for all heads."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
        mask = self.mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)


def dense_mask(samples: Sequence[EncodedSample], length: int, device: torch.device) -> Tensor:
    """(B, 1, length, length) float32, 0 where a token may look and the lowest number elsewhere."""
    allowed = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(samples), 1, 1)
    for row, item in zip(allowed, samples, strict=True):
        start = 0
        for span in item.sequence.spans:
            if span.kind == "image":
                row[start : start + span.length, start : start + span.length] = True
            start += span.length
        row[:, len(item) :] = False  # padding; its own rows see what came before, and stay finite
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None].to(device)


def embed(model: SailModel, samples: Sequence[EncodedSample], device: torch.device) -> tuple[Tensor, Tensor]:
    """Padded embeddings (B, L, D) and positions (3, B, L)."""
    batch = pack(samples).to(device)
    lengths = [len(item) for item in samples]
    rows = torch.nn.utils.rnn.pad_sequence(list(model.embed(batch).split(lengths)), batch_first=True)
    places = torch.nn.utils.rnn.pad_sequence([p.T for p in batch.positions.split(lengths, dim=1)], batch_first=True)
    return rows, places.permute(2, 0, 1)


def run_decoder(model: SailModel, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: Any = None) -> Any:
    """The decoder's output with the hidden states of every layer, as the official code asks for them."""
    core: Any = model.backbone
    return core.model(
        inputs_embeds=embeddings,
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
        sail_attend=DenseAttention(mask),
        **{cache_keyword(type(core.model)): cache},
    )


def mask_keys(model: SailModel, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """One image's vision tokens (rows*columns, D) to mask keys (channels, h, w), with channels first."""
    upsampler = model.upsampler
    assert isinstance(upsampler, DeconvUpsampler), "the official code has one upsampler"
    features = upsampler.pre_projector(tokens).unflatten(0, grid).permute(2, 0, 1)[None].contiguous()
    for block in upsampler.blocks:
        parts: Any = block
        features = F.gelu(F.conv_transpose2d(features, parts.deconv.weight, parts.deconv.bias, stride=2))
        features = parts.pointwise(parts.depthwise(features))
        features = parts.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
    return model.mask_head.feature_projector(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)[0]


def losses(
    model: SailModel, samples: Sequence[EncodedSample], batch: PackedBatch, mask_loss: MaskLoss
) -> dict[str, Tensor]:
    """Loss sums by name, as `PixelSAIL.losses` gives them. `batch` is the same samples packed, for its targets."""
    device = batch.ids.device
    embeddings, positions = embed(model, samples, device)
    length = embeddings.shape[1]
    output = run_decoder(model, embeddings, positions, dense_mask(samples, length, device))
    hidden = output.hidden_states[-1]
    logits = model.backbone.logits(hidden).float()  # of every token, padding included
    labels = torch.full((len(samples), length), -100, dtype=torch.int64)
    for row, item in enumerate(samples):
        labels[row, item.sequence.target_rows + 1] = torch.from_numpy(item.sequence.target_ids)
    shifted, wanted = logits[:, :-1].contiguous(), labels[:, 1:].contiguous().to(device)
    language = F.cross_entropy(shifted.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
    mask_logits: list[Tensor] = []
    for row, item in enumerate(samples):
        tokens = hidden[row, torch.from_numpy(item.sequence.patch_rows).to(device)]
        keys = mask_keys(model, tokens, item.sequence.grids[0])
        queries = model.mask_head.queries(hidden[row, torch.from_numpy(item.seg_rows).to(device)])
        mask_logits.append(torch.einsum("nc,chw->nhw", queries, keys))
    masks = mask_loss(mask_logits, batch.masks)
    return {"language": language, "mask": masks.bce, "dice": masks.dice}


def all_logits_loss(model: SailModel, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Cross-entropy from the logits of every row of `hidden` (T, D)."""
    labels = torch.full((len(hidden),), -100, dtype=torch.int64, device=hidden.device)
    labels[batch.target_rows + 1] = batch.target_ids
    logits = model.backbone.logits(hidden).float()
    return F.cross_entropy(logits[:-1].contiguous(), labels[1:], ignore_index=-100, reduction="sum")


@torch.inference_mode()
def prefill(model: SailModel, item: EncodedSample) -> tuple[Any, Tensor]:
    """Reads the image, copies the cache as the official code does, and reads the question: cache, hidden states."""
    device = next(model.parameters()).device
    embeddings, positions = embed(model, [item], device)
    mask = dense_mask([item], len(item), device)
    cache = DynamicCache()
    prefix = item.sequence.prefix
    first = run_decoder(model, embeddings[:, :prefix], positions[..., :prefix], mask[:, :, :prefix, :prefix], cache)
    model.backbone.logits(first.hidden_states[-1]).float()  # of all of it; nothing reads them
    cache = copy.deepcopy(cache)
    rest = run_decoder(model, embeddings[:, prefix:], positions[..., prefix:], mask[:, :, prefix:], cache)
    return cache, torch.cat([first.hidden_states[-1], rest.hidden_states[-1]], 1)[0]


@torch.inference_mode()
def generate(model: SailModel, samples: Sequence[EncodedSample], new_tokens: int) -> list[tuple[list[int], Tensor]]:
    """Greedy answers of exactly `new_tokens` ids after the begun answer, and mask logits (n, h, w), one by one."""
    answers = []
    for item in samples:
        cache, hidden = prefill(model, item)
        kept = []  # hidden states of every layer at every step
        state = hidden[-1:]
        ids: list[int] = []
        place = item.sequence.next_position
        for step in range(new_tokens):
            ids.append(int(model.backbone.logits(state).float().argmax(-1)))
            if step == new_tokens - 1:
                break  # the last token is not read
            embedded = model.backbone.embed_tokens(torch.tensor([[ids[-1]]], device=state.device))
            position = torch.full((3, 1, 1), place + step, device=state.device)
            mask = state.new_zeros(1, 1, 1, len(item) + step + 1)
            kept.append(run_decoder(model, embedded, position, mask, cache).hidden_states)
            state = kept[-1][-1][0]
        tokens = hidden[torch.from_numpy(item.sequence.patch_rows).to(hidden.device)]
        keys = mask_keys(model, tokens, item.sequence.grids[0])
        queries = model.mask_head.queries(hidden[torch.from_numpy(item.seg_rows).to(hidden.device)])
        answers.append((ids, torch.einsum("nc,chw->nhw", queries, keys)))
    return answers


def at_image_size(logits: Tensor, item: EncodedSample) -> np.ndarray:
    """Mask logits (n, h, w) to masks (n, H, W) bool."""
    assert item.image_size is not None
    return (resize(logits.float(), item.image_size) > 0).cpu().numpy()


__getattr__ = renamed(__name__, {"at_picture_size": "at_image_size"})
