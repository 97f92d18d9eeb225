"""How a region (a visual prompt) enters the sequence."""

from sail_lightning.plugins.prompt_encoders.coordinates import CoordinatePrompts
from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.plugins.prompt_encoders.no_prompts import NoPrompts
from sail_lightning.plugins.prompt_encoders.norm_matched import LoudPrompts
from sail_lightning.plugins.prompt_encoders.region_pooling import RegionPooling

__all__ = ["CoordinatePrompts", "LoudPrompts", "NoPrompts", "PromptInjection", "RegionPooling"]
