"""One tiny model for all tests of inference."""

from __future__ import annotations

import pytest
from inference_harness import tiny_model

from sail_lightning.module import PixelSAIL


@pytest.fixture(scope="session")
def tiny() -> PixelSAIL:
    """Not to be changed by a test."""
    return tiny_model()
