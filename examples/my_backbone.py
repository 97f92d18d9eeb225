"""A Llama decoder of chosen depth as the single transformer: a whole backbone, from the parts of `SailDecoder`."""

from typing import Any

from sail_lightning.plugins.backbones import SailDecoder
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 100.0,
}


@register
class MyBackbone(SailDecoder):
    """A small Llama with patches of 8 x 8 pixels.

    Args:
        num_layers: number of decoder layers.
        kwargs: arguments of `SailDecoder`.
    """

    def __init__(self, num_layers: PositiveInt = 2, **kwargs: Any) -> None:
        super().__init__(config=CONFIG, patch_size=8, num_layers=num_layers, **kwargs)
