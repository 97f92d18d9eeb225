"""Pixel-SAIL as a modular plugin system on Lightning: one transformer that answers in words and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sail_lightning.settings import renames

__version__ = "0.1.0"
__all__ = ["Box", "LoRA", "Mask", "PixelSAIL", "Point", "Prediction", "Sample", "Scribble", "Turn", "__version__"]

if TYPE_CHECKING:
    from sail_lightning.generation.prediction import Prediction
    from sail_lightning.module import PixelSAIL
    from sail_lightning.pretrained.lora import LoRA
    from sail_lightning.sample import Box, Mask, Point, Sample, Scribble, Turn

renames.install()
_HOMES = {
    "LoRA": "sail_lightning.pretrained.lora",
    "PixelSAIL": "sail_lightning.module",
    "Prediction": "sail_lightning.generation.prediction",
    **{name: "sail_lightning.sample" for name in ("Box", "Mask", "Point", "Sample", "Scribble", "Turn")},
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: Lightning alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sail_lightning' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
