"""A model of a few thousand weights that chatters: untrained, but its answers vary in length and hold `[SEG]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sail_lightning.interfaces import Attention, Backbone, PromptEncoder
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sequence.attention_plan import AttentionPlan

WORDS = ("a", "red", "circle", ".", "<p>", "</p>")


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_key_value_heads": 2,
}
"""Of the model's decoder; `chatter` knows the first."""


def tiny_model(
    prompt_encoder: PromptEncoder | None = None, backbone: Backbone | None = None, **settings: Any
) -> PixelSAIL:
    """Built, in eval mode; float32."""
    torch.manual_seed(0)
    backbone = backbone or SailQwen(**SIZES)
    arguments: dict[str, Any] = {"mask_channels": 16, "max_new_tokens": 8} | settings
    model = PixelSAIL(backbone, DeconvUpsampler(), prompt_encoder or PromptInjection(num_prompts=4), **arguments)
    model.configure_model()
    for name, weight in model.model.named_parameters():  # masks of an untrained model are all on or all off
        if name.startswith(("upsampler", "mask_head")):
            torch.nn.init.normal_(weight, std=0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def exact_model(**settings: Any) -> PixelSAIL:
    """In float64, where another order of additions turns no word and no pixel."""
    return tiny_model(**settings).double()


def picture(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ids_of(model: PixelSAIL, *words: str) -> list[int]:
    """Ids of words that are tokens."""
    found = model.tokens.tokenizer.convert_tokens_to_ids(list(words))
    assert model.tokens.tokenizer.unk_token_id not in found
    return found


@contextmanager
def patched_logits(model: PixelSAIL, logits: Any) -> Iterator[None]:
    backbone = model.model.backbone
    backbone.logits = logits
    try:
        yield
    finally:
        del backbone.logits


@contextmanager
def chatter(model: PixelSAIL) -> Iterator[None]:
    """The model may say only `WORDS`, `[SEG]` and the end; a small change of what it has read changes what it says."""
    allowed = torch.tensor([*ids_of(model, *WORDS), model.tokens.seg, model.tokens.end], device=model.device)
    mix = torch.randn(32, len(allowed), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mix = mix.to(model.device)

    def logits(hidden: Tensor) -> Tensor:
        out = hidden.new_full((*hidden.shape[:-1], len(model.tokens)), -torch.inf)
        out.index_copy_(-1, allowed, torch.sin(10 * hidden.double() @ mix).to(hidden.dtype))
        out[..., model.tokens.seg] += 0.2  # so that answers with several masks are not rare
        return out

    with patched_logits(model, logits):
        yield


@contextmanager
def script(model: PixelSAIL, *ids: int) -> Iterator[None]:
    """The model says these ids, one a step, and then the end, whatever it reads."""
    said = iter(ids)
    size = len(model.tokens)

    def logits(hidden: Tensor) -> Tensor:
        token = torch.tensor(next(said, model.tokens.end))
        return torch.nn.functional.one_hot(token, size).to(hidden.dtype).expand(*hidden.shape[:-1], size)

    with patched_logits(model, logits):
        yield


class DenseAttention(Attention):
    """Attention as it is defined: one dense mask over the whole sequence."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.einsum("qhe,khe->hqk", query, key) * scale
        weights = scores.masked_fill(~plan.dense_mask(), -torch.inf).softmax(-1)
        return torch.einsum("hqk,khe->qhe", weights, value)
