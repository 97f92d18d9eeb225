"""Loads the weights of a local Hugging Face folder (Qwen2, Qwen3, Llama, or SOLO and SAIL style) into a `SailDecoder`.

Every tensor of the folder must be a weight of the decoder, and every weight must be in the folder, with the exceptions
that are listed here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CONFIG_MAPPING

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.backbones.core import IGNORED_CONFIG_KEYS
from sail_lightning.weights.state_dict import state_dict_diff

logger = logging.getLogger(__name__)

DERIVED = ("rotary_emb.inv_freq",)
"""Tensors of old folders that are computed, not learned; they are ignored."""
PROMPT_WEIGHTS = ("vp_embed.weight",)
"""Tensors of a fine-tuned Pixel-SAIL that belong to its prompt encoder; they are left out, which is logged."""
NEW = ("vis_embed.",)
"""Weights that a folder of a text-only decoder lacks; they start fresh, which is logged."""
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys that every decoder's config.json has."""


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the keys of a folder's config.json that describe a decoder.

    A `model_type` that the library does not know, such as those of SOLO and SAIL, is taken as qwen2: the names of all
    tensors must agree, so no other kind is loaded as one.

    Raises:
        SailError: the file is missing, is no JSON object, or does not describe a decoder.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SailError(f"{folder} has no config.json: it is no Hugging Face folder") from None
    except OSError as error:
        raise SailError(f"{path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise SailError(f"{path} does not describe a decoder: it is no JSON object")
    if lacking := [key for key in SIZES if not isinstance(content.get(key), int)]:
        raise SailError(f"{path} does not describe a decoder: it has no {lacking[0]}")
    kind = content.get("model_type", "qwen2")
    if kind not in CONFIG_MAPPING:
        logger.info("%s: model_type %r is not known; it is taken as qwen2", path, kind)
        content["model_type"] = "qwen2"
    rope = content.get("rope_parameters") or content.get("rope_scaling")
    sections = rope.get("mrope_section") if isinstance(rope, dict) else None
    if sections and (len(sections) != 3 or sections[0] != 0 or sections[1] != sections[2]):
        logger.warning("%s: images were read with rotary sections %s; here they are halves", path, sections)
    return {key: value for key, value in content.items() if key not in IGNORED_CONFIG_KEYS}


def load_decoder(backbone: Any, folder: Path, dims: Dims) -> set[str]:
    """Fills a built `SailDecoder`; returns the names that were read.

    Added tokens (`dims.num_added_tokens`) start at the mean of the others. Rows beyond the tokenizer's vocabulary are
    padding of the folder's table, and dropped.

    Raises:
        SailError: names or shapes differ, or the tokenizer is not the folder's.
    """
    weights = backbone.state_dict(keep_vars=True)
    own = {name: tensor for name, tensor in weights.items() if name.startswith(("model.", "lm_head.", *NEW))}
    found = _read(folder, sees=any(name.startswith(NEW) for name in own))
    _check_tokenizer(folder, dims)
    if backbone.lm_head.weight is backbone.model.embed_tokens.weight:
        head = found.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head, found.get("model.embed_tokens.weight", torch.empty(0))):
            raise SailError(f"{folder}: config.json says tie_word_embeddings, but lm_head differs; set it to false")
        del own["lm_head.weight"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in found and found[name].ndim == 2:
            found[name] = fit_vocabulary(found[name], dims, f"{folder}: {name}")
    fresh = {name for name in own if name.startswith(NEW)} - found.keys()
    if fresh:
        logger.info("%s has no patch embedding; it starts fresh", folder)
    wanted = {name: tensor for name, tensor in own.items() if name not in fresh}
    if faults := state_dict_diff(wanted, found):
        raise SailError(f"the weights of {folder} do not fit its config: {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return set(found)


def _read(folder: Path, sees: bool) -> dict[str, Tensor]:
    """Reads a folder's tensors by our names, without those that are left out by design.

    `sees` is whether the decoder has a patch embedding.
    """
    from sail_lightning.weights.reading import read_tensors  # only where there is something to read

    left_out = {DERIVED: "", PROMPT_WEIGHTS: "it belongs to a prompt encoder"}
    if not sees:
        left_out[NEW] = "images pass an encoder here"
    found = {}
    for name, tensor in read_tensors(folder).tensors.items():
        own = _own_name(name)
        reason = next((why for parts, why in left_out.items() if any(part in own for part in parts)), None)
        if reason is None:
            found[own] = tensor
        elif reason:
            logger.info("%s: %s is left out: %s", folder, name, reason)
    return found


def _check_tokenizer(folder: Path, dims: Dims) -> None:
    """Checks that the tokenizer is the folder's, or one that adds to it: rows belong to tokens by index only.

    Raises:
        SailError: the tokenizer knows fewer tokens.
    """
    path, known = folder / "tokenizer.json", dims.vocab_size - dims.num_added_tokens
    if not path.is_file():
        return
    try:
        count = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as error:  # the library raises nothing narrower
        raise SailError(f"{path} cannot be read ({' '.join(str(error).split())}); copy it again") from None
    if known < count:
        raise SailError(f"the tokenizer knows {known} tokens, and {folder} {count}; use the folder as the tokenizer")
    if known > count:
        more = known - count
        logger.warning("the tokenizer knows %d tokens that %s lacks: they get spare rows of its tables", more, folder)


def fit_vocabulary(table: Tensor, dims: Dims, what: str) -> Tensor:
    """Fits a table (V', D) to (dims.vocab_size, D): the rows of known tokens, then added tokens at their mean.

    Raises:
        SailError: the table has fewer rows than the tokenizer has known tokens.
    """
    known = dims.vocab_size - dims.num_added_tokens
    if len(table) < known:
        raise SailError(f"{what} has {len(table)} rows, the tokenizer {known} tokens; use the folder as the tokenizer")
    rows = table[:known]
    if dims.num_added_tokens == 0:
        return rows
    mean = rows.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([rows, mean.expand(dims.num_added_tokens, -1)])


def _own_name(name: str) -> str:
    """Returns our name of a tensor: folders of a whole model have the prefix `model.`, those of a bare decoder none."""
    if name == "lm_head.weight" or name.startswith("vis_embed."):
        return name
    bare = name.removeprefix("model.")
    return bare if bare.startswith("vis_embed.") else f"model.{bare}"
