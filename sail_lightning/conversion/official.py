"""Converts official Pixel-SAIL checkpoints to our models and back: names, sizes and the token table.

Both families are read: SOLO and SAIL style (one set of weights, 2-D positions) and EVEv2 style (weights by modality).
The official names and what they hold are in `docs/parity.md`. Sizes are read from the tensors where they show there;
what does not (heads, rotary base, ties) comes from a `config.json` with Hugging Face's words.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import MAX_SIDE
from sail_lightning.interfaces import Plugin
from sail_lightning.module import PixelSAIL
from sail_lightning.pretrained.lora import merged_state
from sail_lightning.sequence.chat_template import PHRASE_END, PHRASE_START, SEG, prompt_token
from sail_lightning.sequence.tokenizer import open_tokenizer
from sail_lightning.weights.state_dict import load_strict, truncate_list

logger = logging.getLogger(__name__)

PREFIXES = {
    "backbone.model.": "single_transformer.model.",
    "backbone.lm_head.": "single_transformer.lm_head.",
    "backbone.vis_embed.": "single_transformer.model.vis_embed.",
    "backbone.patch_embedding.": "single_transformer.model.vision_tower.patch_embedding.",
    "backbone.class_embedding": "single_transformer.model.vision_tower.class_embedding",
    "backbone.split_embedding": "single_transformer.model.vision_tower.split_embedding",
    "prompt_encoder.proj.": "single_transformer.model.vp_embed.",
    "mask_head.seg_projector.": "seg_token_projector.",
    "mask_head.feature_projector.": "image_feature_projector.",
}
"""Prefixes of our names, and the official ones; the upsampler gives its own names."""

IGNORED = {
    r".*rotary_emb\.inv_freq": "computed from the config",
    r"single_transformer\.vp_embed\.weight": "EVE's, which the official code makes and never uses",
    r"(mask2former|sam2|radio)_distill_linear\..*": "leads to a teacher; of use in training only",
}
"""Tensors of official checkpoints that are left out, each with the reason."""

EMBEDDING, HEAD = "single_transformer.model.embed_tokens.weight", "single_transformer.lm_head.weight"
TOKENIZERS = ("tokenizer_base.json", "tokenizer.json")
OFFICIAL_FILE = "official_state_dict.safetensors"


@dataclass(frozen=True)
class OfficialSource:
    """An official checkpoint: its tensors by official name, config, and tokenizer with the tokens of training."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerFast
    name: str


def open_source(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    special_tokens: Sequence[str] | None = None,
) -> OfficialSource:
    """Returns an official checkpoint; its tokenizer gets the tokens that training added, in the order of their ids.

    Raises:
        SailError: The tensors are not an official checkpoint, or its vocabulary is not that of the tokenizer.
    """
    rows = len(_tensor(tensors, EMBEDDING, name))
    known = len(tokenizer)
    added = list(added_tokens(config, known, rows) if special_tokens is None else special_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": added}, replace_extra_special_tokens=False)
    return OfficialSource(tensors, config, tokenizer, name)


# -- reading ----------------------------------------------------------------------------------------------------------


def find_state_dict(folder: Path) -> Path | None:
    """Returns the state dict in a folder of state dict, config and tokenizer; None if there is none.

    Raises:
        SailUsageError: The folder holds several state dicts.
    """
    found = sorted(folder.glob("*state_dict*.safetensors"))
    main = [path for path in found if not path.name.startswith("eve")]
    if len(main or found) > 1:
        raise SailUsageError(f"{folder} holds {', '.join(path.name for path in found)}; name one of these files")
    return next(iter(main or found), None)


def read_config(folder: Path, state_dict: Path | None = None) -> dict[str, Any]:
    """Returns the config that belongs to a state dict: `eve_config.json` beside `eve_*`, else `config.json`.

    Raises:
        SailError: The config is missing or not a JSON object.
    """
    names = ["config.json", "eve_config.json"]
    if state_dict is not None and state_dict.name.startswith("eve"):
        names.reverse()
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SailError(f"{folder} has no config.json, which says how many heads the decoder has") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise SailError(f"{path} is no config: it holds no names")
    return content


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Returns the tokenizer beside a config.

    Raises:
        SailError: The folder has no tokenizer.
    """
    for name in TOKENIZERS:
        if (folder / name).is_file():
            beside_config = name == "tokenizer.json" and (folder / "tokenizer_config.json").is_file()
            return open_tokenizer(str(folder if beside_config else folder / name))
    if (folder / "tokenizer_config.json").is_file():
        return open_tokenizer(str(folder))
    raise SailError(f"{folder} has no tokenizer.json (or tokenizer_base.json); copy it from the base model")


def added_tokens(config: Mapping[str, Any], known: int, rows: int) -> tuple[str, ...]:
    """Returns the tokens that training added to a tokenizer of `known` words, in the order of their ids.

    They are read from the config (`special_tokens`, or `token_ids`), or else follow the official rule for a table of
    `rows` rows: the segmentation-only models added `<p> </p> [SEG]`, the others `[SEG] <p> </p> <Prompt0..N-1>
    <NO_Prompt>`.

    Raises:
        SailError: The ids have gaps, or no official model has that number of rows.
    """
    if isinstance(config.get("special_tokens"), list):
        return tuple(config["special_tokens"])
    if isinstance(config.get("token_ids"), dict):
        later = sorted((id, token) for token, id in config["token_ids"].items() if id >= known)
        if [id for id, _ in later] != list(range(known, known + len(later))):
            raise SailError(f"token_ids do not go on from the {known} words of the tokenizer; is it the right one?")
        return tuple(token for _, token in later)
    more = rows - known
    if more == 0:
        return ()
    if more == 3:
        return (PHRASE_START, PHRASE_END, SEG)
    if more > 4:
        return (SEG, PHRASE_START, PHRASE_END, *map(prompt_token, range(more - 4)), "<NO_Prompt>")
    raise SailError(
        f"the checkpoint has {rows} words and the tokenizer {known}; name the tokens between with --special-tokens"
    )


# -- official to ours -------------------------------------------------------------------------------------------------


def to_model(source: OfficialSource) -> PixelSAIL:
    """Returns a model with the weights of an official checkpoint.

    It behaves as the official one: mask features at the official stride, prompts covering patches by the official
    rules, the last of overlapping prompts on top.

    Raises:
        SailError: Tensors are missing, unexpected or of other shapes, or sizes do not agree.
    """
    tensors, left_out = _wanted(source.tensors)
    for name, reason in left_out.items():
        logger.info("%s: %s is left out (%s)", source.name, name, reason)
    config = dict(source.config)
    eve = any(".vision_tower." in name for name in tensors)
    table = _tensor(tensors, EMBEDDING, source.name)
    rows = len(table)
    tied = bool(config.get("tie_word_embeddings", False))
    head = tensors.get(HEAD)
    if head is not None and tied:
        tied = torch.equal(head, table)
        config["tie_word_embeddings"] = tied
        if not tied:
            logger.warning("%s: config.json ties the language head, but it differs; it is kept apart", source.name)
    if tied:
        tensors.pop(HEAD, None)
    known_words = source.tokenizer.get_vocab()
    prompts = next(count for count in itertools.count() if prompt_token(count) not in known_words)
    prompts = min(prompts, int(config.get("visual_prompt_nums", prompts)))
    registry.discover()
    backbone, patch_size = _eve(tensors, config) if eve else _sail(tensors, config)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        source.tokenizer.backend_tokenizer.save(str(path))
        model = PixelSAIL(
            backbone=backbone,
            upsampler=_upsampler(tensors, patch_size, source.name),
            prompt_encoder=_prompt_encoder(tensors, prompts, eve),
            tokenizer=str(path),
            mask_channels=len(_tensor(tensors, "image_feature_projector.2.weight", source.name)),
            max_new_tokens=512,
            max_side=int(config.get("max_size", 1600)) if eve else MAX_SIDE,
        )
    words = len(model.tokens)
    if model.tokens.added:
        raise SailError(
            f"{source.name}: the tokenizer lacks {truncate_list(list(model.tokens.added))}; is it the right one?"
        )
    if rows < words:
        raise SailError(f"{source.name} has {rows} words, the tokenizer {words}; is it the right one?")
    if rows > words:
        logger.warning("%s: %d rows of no word are dropped", source.name, rows - words)
        for name in (EMBEDDING, HEAD):
            if name in tensors:
                tensors[name] = tensors[name][:words]
    model.configure_model()
    names = official_names(model)
    load_strict(
        {names[key]: value for key, value in model.model.state_dict().items() if key in names}, tensors, source.name
    )
    return model.eval()


def official_names(model: PixelSAIL) -> dict[str, str]:
    """Returns the official names by our tensors' names; a tied language head has none.

    Raises:
        SailUsageError: The model has parts that the official code does not know.
    """
    network = model.model
    backbone = network.backbone
    tied = getattr(backbone, "lm_head", None) is not None and (
        backbone.lm_head.weight is backbone.model.embed_tokens.weight  # type: ignore[union-attr]
    )
    layout, official = backbone.image_layout, type(backbone).image_layout
    if (layout.bidirectional, layout.grid_positions) != (official.bidirectional, official.grid_positions):
        raise SailUsageError("the official code reads images wholly and by rows and columns, which this model does not")
    upsampler = getattr(network.upsampler, "official_names", None)
    if upsampler is None:
        raise SailUsageError(f"the official code has no {type(network.upsampler).__name__}; only DeconvUpsampler")
    known = {f"upsampler.{key}": name for key, name in upsampler().items()}
    names = {}
    for key in merged_state(model.model, model.adapter):
        if tied and key == "backbone.lm_head.weight":
            continue
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if key not in known and prefix is None:
            raise SailUsageError(f"the official code has no place for {key}")
        names[key] = known.get(key) or PREFIXES[prefix] + key[len(prefix) :]  # type: ignore[index, arg-type]
    return names


def _wanted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors that are used, and the names of the others with the reason."""
    kept, left_out = {}, {}
    for name, tensor in tensors.items():
        reason = next((why for pattern, why in IGNORED.items() if re.fullmatch(pattern, name)), None)
        if reason is None:
            kept[name] = tensor
        else:
            left_out[name] = reason
    return kept, left_out


def _tensor(tensors: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    if name not in tensors:
        raise SailError(f"{source} has no {name}: it is no checkpoint of Pixel-SAIL")
    return tensors[name]


def _sail(tensors: Mapping[str, Tensor], config: dict[str, Any]) -> tuple[Any, int]:
    """Returns the backbone of SOLO and SAIL style, and its patch size."""
    pixels = _tensor(tensors, "single_transformer.model.vis_embed.weight", "the checkpoint").shape[1]
    patch_size = math.isqrt(pixels // 3)
    if 3 * patch_size**2 != pixels:
        raise SailError(f"vis_embed reads {pixels} values, which is no square patch of three colours")
    kinds = ("qwen2", "qwen3")
    decoder = _decoder_words(config) | {
        "model_type": config["model_type"] if config.get("model_type") in kinds else "qwen2"
    }
    return _plugin(
        "SailQwen", config=decoder, patch_size=patch_size, class_token=bool(config.get("add_cls"))
    ), patch_size


def _eve(tensors: Mapping[str, Tensor], config: dict[str, Any]) -> tuple[Any, int]:
    """Returns the backbone of EVEv2 style, and its patch size."""
    tower = "single_transformer.model.vision_tower.patch_embedding"
    first, second = (_tensor(tensors, f"{tower}.{place}.weight", "the checkpoint") for place in (0, 2))
    words = _decoder_words(config)
    backbone = _plugin(
        "EVEv2",
        hidden_size=words["hidden_size"],
        intermediate_size=words["intermediate_size"],
        num_layers=words["num_hidden_layers"],
        num_heads=words["num_attention_heads"],
        num_key_value_heads=words["num_key_value_heads"],
        rope_theta=words.get("rope_theta") or words.get("rope_parameters", {}).get("rope_theta", 10000.0),
        rms_norm_eps=words.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=words.get("tie_word_embeddings", False),
        patch_stride=first.shape[-1],
        dense_stride=second.shape[-1],
        mm_hidden_size=len(first),
    )
    return backbone, first.shape[-1] * second.shape[-1]


DECODER_WORDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings", "rope_theta", "rope_parameters", "rms_norm_eps", "hidden_act"),
    *("tie_word_embeddings", "attention_dropout", "initializer_range"),
)
"""Config keys of Hugging Face that a decoder is made from."""


def _decoder_words(config: Mapping[str, Any]) -> dict[str, Any]:
    words = {key: config[key] for key in DECODER_WORDS if config.get(key) is not None}
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    if lacking := [key for key in needed if key not in words]:
        raise SailError(f"config.json does not say {', '.join(lacking)}")
    return words


def _upsampler(tensors: Mapping[str, Tensor], patch_size: int, source: str) -> Any:
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"upsample_blocks\.(\d+)\.", name))}
    if not blocks or patch_size % 2 ** len(blocks):
        raise SailError(f"{source}: {len(blocks)} upsampling blocks do not fit patches of {patch_size} pixels")
    channels = _tensor(tensors, "upsample_blocks.0.0.weight", source).shape[0]
    return _plugin("DeconvUpsampler", stride=patch_size // 2 ** len(blocks), channels=channels)


def _prompt_encoder(tensors: Mapping[str, Tensor], prompts: int, eve: bool) -> Any:
    if eve:
        return _plugin(
            "PromptInjection", num_prompts=prompts, projection=False, overlap="last", rasterization="nearest_torch"
        )
    if "single_transformer.model.vp_embed.weight" not in tensors:
        return _plugin("NoPrompts", num_prompts=prompts)
    return _plugin("PromptInjection", num_prompts=prompts, overlap="last", rasterization="nearest_pil")


def _plugin(name: str, **arguments: Any) -> Plugin:
    found = registry.find(name, registry.SOCKETS)
    if found is None:
        raise SailUsageError(f"no plugin named {name}")
    plugin: Plugin = found[1](**arguments)
    return plugin


# -- ours to official -------------------------------------------------------------------------------------------------


def to_official(model: PixelSAIL) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the official state dict, and a config that reads it back.

    Raises:
        SailUsageError: The model has parts that the official code does not know.
    """
    model.configure_model()
    names, state = official_names(model), merged_state(model.model, model.adapter)
    tensors = {official: state[own].detach().cpu().contiguous() for own, official in names.items()}
    backbone: Any = model.model.backbone
    words = backbone.model.config.to_dict()
    config = {key: words[key] for key in DECODER_WORDS if words.get(key) is not None}
    config["rope_theta"] = words["rope_parameters"]["rope_theta"]
    config.pop("rope_parameters", None)
    if config["tie_word_embeddings"]:  # the official code stores both
        tensors[HEAD] = tensors[EMBEDDING].clone()
    config |= {
        "model_type": words["model_type"],
        "vocab_size": len(model.tokens),
        "vision_patch_size": model.model.dims.patch_size,
        "seg_hidden_states": model.model.mask_channels,
        "visual_prompt_nums": model.model.prompt_encoder.num_prompts,
        "special_tokens": [],  # the tokenizer beside it has them all
        "token_ids": model.tokens.ids,
    }
    if backbone.resize_mode == "area":
        config["max_size"] = model.max_side
    return tensors, config
