"""`sail-lightning convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sail_lightning.cli.command import command
from sail_lightning.errors import SailUsageError


@command(section="configs, plugins, checkpoints")
def convert(
    source: str,
    target: Path,
    *,
    to: Literal["folder", "official"] = "folder",
    base: Path | None = None,
    special_tokens: list[str] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Converts a checkpoint to a model folder, or to the official format.

    SOURCE is one of: an official checkpoint (.pth, .safetensors, a sharded or DeepSpeed folder); a folder of state
    dict, config.json and tokenizer; a Lightning checkpoint (.ckpt, or a folder of FSDP or DeepSpeed); a model folder or
    its name. Nothing in it is executed. Optimiser states are ignored; any other tensor that does not fit is named and
    refused.

    Examples:
        sail-lightning convert iter_10000.pth my-model --base pretrained/Qwen2.5-0.5B
        sail-lightning convert runs/lab/version_0/checkpoints/last.ckpt my-model --dtype bfloat16
        sail-lightning convert my-model pixel_sail.pth --to official

    Args:
        source: The checkpoint or model to convert.
        target: Folder to write; with --to official also a .pth or .safetensors file.
        to: A model folder, or the official format.
        base: Folder with config.json and tokenizer of an official checkpoint.
        special_tokens: Tokens that training added, in order.
        dtype: Type of the stored weights; unchanged if left out.
        max_shard_size: Largest weight file.
    """
    if target.exists() and Path(source).exists() and target.resolve() == Path(source).resolve():
        raise SailUsageError(f"SOURCE and TARGET are both {target}; name another folder to write to")
    if to == "official" and dtype:
        raise SailUsageError("--dtype belongs to model folders; the official format keeps the weights as they are")

    import torch  # after --help: it takes seconds

    from sail_lightning import registry
    from sail_lightning.conversion.convert import open_model, save_official

    registry.discover()
    model = open_model(source, base, special_tokens or None)
    if to == "official":
        written = save_official(model, target)
    else:
        stored = getattr(torch, dtype) if dtype else None
        written = model.save_pretrained(target, dtype=stored, max_shard_size=max_shard_size)
    count = sum(parameter.numel() for parameter in model.model.parameters())
    print(f"{written}: {count / 1e6:,.1f} million parameters, {len(model.tokens)} tokens")
