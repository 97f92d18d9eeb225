"""Where samples come from: one file per annotation format."""

from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.laboratory import LaboratorySource

__all__ = ["LaboratorySource", "Source"]
