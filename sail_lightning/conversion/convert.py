"""Opens a model from any kind of checkpoint, and saves it as an official checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from sail_lightning import registry
from sail_lightning.conversion import official
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.module import PixelSAIL
from sail_lightning.pretrained import model_folder
from sail_lightning.weights.reading import Checkpoint, read_tensors


def open_model(source: str | Path, base: Path | None = None, special_tokens: Sequence[str] | None = None) -> PixelSAIL:
    """Returns the model of a model folder, a Lightning checkpoint (plain, FSDP, DeepSpeed) or an official checkpoint.

    Args:
        source: File, folder, or the name of a packaged model.
        base: For an official checkpoint, the folder with its config.json and tokenizer; None is that of the source.
        special_tokens: For an official checkpoint, the tokens that training added, in order; None reads them from
            the config, or uses the official rule.

    Raises:
        SailError: The checkpoint cannot be read, or names, shapes or vocabularies do not agree.
    """
    registry.discover()
    if model_folder.is_folder(source):
        return PixelSAIL.from_pretrained(source)
    path = Path(source)
    if not path.exists():
        raise SailError(f"no checkpoint {path}")
    state_dict = official.find_state_dict(path) if path.is_dir() else path
    found = read_tensors(state_dict or path)
    if found.hyper_parameters:
        return _from_lightning(found)
    if official.EMBEDDING not in found.tensors:
        raise SailError(
            f"{path} is no checkpoint of Pixel-SAIL; a plain decoder is a start for training: "
            "--model.backbone=SailDecoder --model.backbone.pretrained=FOLDER"
        )
    home = base or (path if path.is_dir() else path.parent)
    if not any((home / name).is_file() for name in ("config.json", "eve_config.json")):
        raise SailUsageError(f"{home} has no config.json; name the base model's folder with --base FOLDER")
    config = official.read_config(home, state_dict)
    tokenizer = official.read_tokenizer(home)
    return official.to_model(official.open_source(found.tensors, config, tokenizer, str(path), special_tokens))


def _from_lightning(found: Checkpoint) -> PixelSAIL:
    try:
        model = PixelSAIL.from_checkpoint_content(
            {"state_dict": found.tensors, "hyper_parameters": found.hyper_parameters}
        )
    except RuntimeError as error:  # torch names the keys, over many lines
        raise SailError(f"{found.source} does not fit its own settings: {' '.join(str(error).split())}") from None
    return model.eval()


def save_official(model: PixelSAIL, target: Path) -> Path:
    """Writes an official checkpoint: to a `.pth` or `.safetensors` file, or else to a folder with config and tokenizer.

    Raises:
        SailUsageError: The model has parts that the official code does not know.
    """
    tensors, config = official.to_official(model)
    if target.suffix in (".pth", ".safetensors"):
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.tmp")
        if target.suffix == ".pth":
            torch.save({"state_dict": tensors}, unfinished)
        else:
            save_file(tensors, unfinished, metadata={"format": "pt"})
        return unfinished.replace(target)
    if target.exists() and not target.is_dir():
        raise SailError(f"{target} is a file; name a folder, or a .pth or .safetensors file")
    target.mkdir(parents=True, exist_ok=True)
    save_official(model, target / official.OFFICIAL_FILE)
    model.tokens.tokenizer.backend_tokenizer.save(str(target / official.TOKENIZERS[0]))
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return target
