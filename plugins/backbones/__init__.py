"""Backbones: which single transformer reads patches and words?"""

from sail_lightning.plugins.backbones.decoder import SailDecoder
from sail_lightning.plugins.backbones.encoder import EncoderBackbone
from sail_lightning.plugins.backbones.eve import EVEv2
from sail_lightning.plugins.backbones.sail_qwen import SailQwen

__all__ = ["EVEv2", "EncoderBackbone", "SailDecoder", "SailQwen"]
