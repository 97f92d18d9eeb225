"""Upsamplers: how do vision tokens become mask features?"""

from sail_lightning.plugins.upsamplers.bilinear import BilinearUpsampler
from sail_lightning.plugins.upsamplers.deconv import DeconvUpsampler
from sail_lightning.plugins.upsamplers.guided import GuidedUpsampler
from sail_lightning.plugins.upsamplers.identity import IdentityUpsampler
from sail_lightning.plugins.upsamplers.pixel_shuffle import PixelShuffleUpsampler

__all__ = ["BilinearUpsampler", "DeconvUpsampler", "GuidedUpsampler", "IdentityUpsampler", "PixelShuffleUpsampler"]
