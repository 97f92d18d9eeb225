"""Attention: which kernel computes prefix attention?"""

from __future__ import annotations

from typing import Literal

from sail_lightning.interfaces import Attention
from sail_lightning.plugins.attention.auto import AutoAttention
from sail_lightning.plugins.attention.flex import FlexAttention
from sail_lightning.plugins.attention.sdpa import SDPAAttention
from sail_lightning.plugins.attention.xformers import XFormersAttention

__all__ = ["AutoAttention", "FlexAttention", "SDPAAttention", "XFormersAttention", "resolve"]


def resolve(attention: Attention | Literal["auto"]) -> Attention:
    """Returns the kernel for a backbone's argument; `auto` is `AutoAttention`, the best that runs on the device."""
    return AutoAttention() if isinstance(attention, str) else attention
