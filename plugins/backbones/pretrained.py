"""Weights of a local Hugging Face folder (Qwen2, Qwen3, Llama, or SOLO and SAIL style) into a `SailDecoder`.

Every tensor of the folder has a place, and every weight of the decoder is in the folder, but for what is listed here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Dims

if TYPE_CHECKING:
    from sail_lightning.plugins.backbones.decoder import SailDecoder

logger = logging.getLogger(__name__)

DERIVED = ("rotary_emb.inv_freq",)
"""Tensors of old folders that are computed, not learned; ignored."""
OF_PROMPTS = ("vp_embed.weight",)
"""Of a fine-tuned Pixel-SAIL: the prompt encoder's, not the decoder's; left out, and logged."""
NEW = ("vis_embed.",)
"""Weights that a folder of a text-only decoder lacks; they start fresh, and that is logged."""


def load_decoder(backbone: SailDecoder, folder: Path, dims: Dims) -> set[str]:
    """Fills a built backbone; returns the names that were read.

    New words (`dims.new_words`) start at the mean of the known ones. Rows beyond the tokenizer's words are padding of
    the folder's table, and dropped.

    Raises:
        SailError: names or shapes that differ, or fewer rows than the tokenizer has words.
    """
    from sail_lightning.conversion.reading import read_tensors  # only where there is something to read

    found = {_own_name(name): tensor for name, tensor in read_tensors(folder).tensors.items()}
    for name in [name for name in found if name.endswith((*DERIVED, *OF_PROMPTS))]:
        if name.endswith(OF_PROMPTS):
            logger.info("%s: %s belongs to a prompt encoder, and is left out", folder, name)
        del found[name]
    own = dict(backbone.named_parameters(remove_duplicate=False))
    tied = backbone.lm_head.weight is backbone.model.embed_tokens.weight
    if tied and "lm_head.weight" in found:
        if not torch.equal(found["lm_head.weight"], found.get("model.embed_tokens.weight", torch.empty(0))):
            raise SailError(f"{folder}: config.json says tie_word_embeddings, but lm_head differs; set it to false")
        del found["lm_head.weight"]
    needed = {name for name in own if not name.startswith(NEW) and not (tied and name == "lm_head.weight")}
    faults = []
    if missing := sorted(needed - found.keys()):
        faults.append(f"missing {_some(missing)}")
    if unexpected := sorted(found.keys() - own.keys()):
        faults.append(f"unexpected {_some(unexpected)}")
    tables = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in found]
    for name in tables:
        if found[name].ndim == 2:
            found[name] = fit_vocabulary(found[name], dims, f"{folder}: {name}")
    if shapes := sorted(n for n in own.keys() & found.keys() if own[n].shape != found[n].shape):
        sizes = [f"{n} {tuple(found[n].shape)} instead of {tuple(own[n].shape)}" for n in shapes]
        faults.append(f"other shapes: {_some(sizes)}")
    if faults:
        raise SailError(f"the weights of {folder} do not fit its config: {'; '.join(faults)}")
    fresh = sorted(own.keys() - found.keys() - {"lm_head.weight"})
    if fresh:
        logger.info("%s has no patch embedding; it starts fresh", folder)
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return set(found)


def fit_vocabulary(table: Tensor, dims: Dims, what: str) -> Tensor:
    """A table (V', D) of another vocabulary as (dims.vocab_size, D): known rows, then new words at their mean.

    Raises:
        SailError: fewer rows than the tokenizer has known words.
    """
    known = dims.vocab_size - dims.new_words
    if len(table) < known:
        raise SailError(f"{what} has {len(table)} rows, the tokenizer {known} words; name the folder as the tokenizer")
    rows = table[:known]
    if dims.new_words == 0:
        return rows
    mean = rows.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([rows, mean.expand(dims.new_words, -1)])


def _own_name(name: str) -> str:
    """Folders of a whole model say `model.` before the decoder's tensors, those of a bare decoder nothing."""
    if name == "lm_head.weight" or name.startswith("vis_embed."):
        return name
    bare = name.removeprefix("model.")
    return bare if bare.startswith("vis_embed.") else f"model.{bare}"


def _some(names: list[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
