"""Does a decoder compute the same under our attention and rotary positions? Checked for kinds without tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from sail_lightning.compat.transformers import attention_of, read_embeddings
from sail_lightning.errors import SailUsageError

TESTED = frozenset({"llama", "qwen2", "qwen3"})
"""Values of `model_type` that the tests cover, and that are not checked."""

TOKENS = 12
"""Number of tokens that the check reads."""


def check_unchanged(core: Any, head: nn.Module) -> None:
    """Compares a decoder's logits for a few tokens, computed by the library and by us.

    Some kinds scale or cap their logits, have more weights than Llama, or pass more arguments to attention.

    Raises:
        SailUsageError: the decoder fails under our attention, or its logits differ.
    """
    config = core.config
    if config.model_type in TESTED or any(parameter.is_meta for parameter in core.parameters()):
        return
    training = core.training
    core.eval()
    try:
        with torch.no_grad():
            wanted, found = _original_logits(core, head), _our_logits(core, head)
    except Exception as error:  # any class: the library does not say which it raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SailUsageError(
            f"a {config.model_type} decoder cannot be the core: it is built differently from Llama ({reason})"
        ) from error
    finally:
        core.train(training)
    difference = float((found - wanted).abs().max())
    allowed = 1e-4 if wanted.dtype in (torch.float32, torch.float64) else 0.05
    if not difference <= allowed * float(wanted.abs().max()):
        raise SailUsageError(
            f"a {config.model_type} decoder cannot be the core: text alone would be read differently "
            f"(logits differ by {difference:.2g})"
        )


def _tokens(core: Any) -> Tensor:
    table = core.embed_tokens.weight
    return torch.arange(TOKENS, device=table.device)[None] % len(table)


def _our_logits(core: Any, head: nn.Module) -> Tensor:
    tokens = _tokens(core)
    positions = torch.arange(TOKENS, device=tokens.device).expand(3, 1, -1)
    calls = 0

    def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        nonlocal calls
        calls += 1
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out.transpose(1, 2)

    embeddings = core.embed_tokens(tokens)
    hidden = read_embeddings(core, embeddings, positions, sail_attend=causal)
    if calls < len(core.layers):
        raise ValueError(f"{calls} of {len(core.layers)} layers use our attention")
    return head(hidden).float()


def _original_logits(core: Any, head: nn.Module) -> Tensor:
    """Returns the logits of the library's own language model around the same weights."""
    config, ours = core.config, core.rotary_emb
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        with attention_of(config, "eager"):
            with torch.device("meta"):
                whole = kind(config)
            name = whole.base_model_prefix
            rotary = type(getattr(whole, name).rotary_emb)
            known = {f"{name}.{key}" for key, _ in core.named_parameters()} | {"lm_head.weight"}
            if beside := sorted({key for key, _ in whole.named_parameters()} - known):
                raise ValueError(f"it has {beside[0]}, which is not supported")
            with torch.device(head.weight.device):  # type: ignore[arg-type]
                core.rotary_emb = rotary(config)
            setattr(whole, name, core)
            whole.lm_head = head
            return whole(input_ids=_tokens(core), use_cache=False).logits.float()
    finally:
        core.rotary_emb = ours
