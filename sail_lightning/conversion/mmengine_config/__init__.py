"""Converts official mmengine configs of Pixel-SAIL into configs of this package, with a report of every key.

The config file is Python and runs when it is read (`read`); everything after that is plain data.
"""

from __future__ import annotations

from sail_lightning.conversion.mmengine_config.convert import Imported, convert
from sail_lightning.conversion.mmengine_config.reading import OfficialConfig, read

__all__ = ["Imported", "OfficialConfig", "convert", "read"]
