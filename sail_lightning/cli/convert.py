"""`sail-lightning convert`: checkpoints to model folders, and back to the official format."""

from __future__ import annotations

from pathlib import Path

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailUsageError

DTYPES = ("float32", "bfloat16", "float16")
EXAMPLES = """\
SRC is one of: an official checkpoint (.pth, .safetensors, a sharded or DeepSpeed folder); a folder of state dict,
config.json and tokenizer; a Lightning checkpoint (.ckpt, or a folder of FSDP or DeepSpeed); a model folder or its name.
Nothing in it is executed. Optimiser states are ignored; any other tensor without a place is named, and refused.

examples:
  sail-lightning convert iter_10000.pth my-model --base pretrained/Qwen2.5-0.5B
  sail-lightning convert runs/lab/version_0/checkpoints/last.ckpt my-model --dtype bfloat16
  sail-lightning convert my-model pixel_sail.pth --to official"""


def run(args: list[str]) -> int:
    """Converts; returns the exit code."""
    parser = Parser(
        prog="sail-lightning convert",
        description="A checkpoint to a model folder, or to the official format.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST", help="a folder; with --to official also a .pth or .safetensors file")
    parser.add_argument("--to", choices=("folder", "official"), default="folder", help="folder (default) or official")
    parser.add_argument("--base", metavar="FOLDER", help="config.json and tokenizer of an official checkpoint")
    parser.add_argument("--special-tokens", metavar="LIST", help="tokens that training added, in order, with commas")
    parser.add_argument("--dtype", choices=DTYPES, help="of the stored weights (as they are)")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="of a weight file (5GB)")
    parser.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    given = parser.parse_args(args)
    source, target = Path(given.source), Path(given.target)
    if target.exists() and source.exists() and target.resolve() == source.resolve():
        raise SailUsageError(f"SRC and DST are both {target}; name another folder to write to")
    if given.to == "official" and given.dtype:
        raise SailUsageError("--dtype belongs to model folders; the official format keeps the weights as they are")

    import torch  # after --help: it takes seconds

    from sail_lightning import registry
    from sail_lightning.conversion.convert import open_model, save_official

    registry.discover(comma_list(given.plugins))
    tokens = comma_list([given.special_tokens]) if given.special_tokens else None
    model = open_model(given.source, Path(given.base) if given.base else None, tokens)
    if given.to == "official":
        written = save_official(model, target)
    else:
        dtype = getattr(torch, given.dtype) if given.dtype else None
        written = model.save_pretrained(target, dtype=dtype, max_shard_size=given.max_shard_size)
    count = sum(parameter.numel() for parameter in model.model.parameters())
    print(f"{written}: {count / 1e6:,.1f} million parameters, {len(model.tokens)} tokens")
    return 0
