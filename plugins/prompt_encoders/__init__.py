"""How a region (a visual prompt) enters the sequence."""

from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.plugins.prompt_encoders.no_prompts import NoPrompts
from sail_lightning.plugins.prompt_encoders.region_pooling import RegionPooling

__all__ = ["NoPrompts", "PromptInjection", "RegionPooling"]
