"""The synthetic laboratory: endless scenes with exact masks, and questions about them; needs no download."""

from sail_lightning.data.synthetic.laboratory import Laboratory, LaboratorySlice

__all__ = ["Laboratory", "LaboratorySlice"]
