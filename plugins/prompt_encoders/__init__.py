"""Prompt encoders: how does a region (a visual prompt) enter the sequence?"""

from sail_lightning.plugins.prompt_encoders.coordinates import CoordinatePrompts
from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.plugins.prompt_encoders.no_prompts import NoPrompts
from sail_lightning.plugins.prompt_encoders.norm_matched import NormMatchedPrompts
from sail_lightning.plugins.prompt_encoders.region_pooling import RegionPooling
from sail_lightning.settings.renames import renamed

__all__ = ["CoordinatePrompts", "NoPrompts", "NormMatchedPrompts", "PromptInjection", "RegionPooling"]

__getattr__ = renamed(__name__, {"LoudPrompts": "NormMatchedPrompts"})
