"""The Pixel-SAIL of a few thousand weights, and its samples, under the names that tests use."""

from sail_lightning.plugin_check.tiny import BACKBONE, blob, packed, records, text_records, tiny
from sail_lightning.plugin_check.tiny import noise as picture

__all__ = ["BACKBONE", "blob", "packed", "picture", "records", "text_records", "tiny"]
