"""Imports PEFT where it is needed, and names the class from which its adapter layers derive."""

from __future__ import annotations

from typing import Any

from torch import nn

from sail_lightning.errors import SailError


def library() -> Any:
    """Imports and returns the optional module `peft`, which takes seconds.

    Raises:
        SailError: The library is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise SailError("LoRA needs peft, which is not installed: pip install 'sail-lightning[peft]'") from None
    return peft


def adapter_layer() -> type[nn.Module]:
    """Returns the base class of PEFT's adapter layers, which have `merge()` and `get_base_layer()`.

    Raises:
        SailError: The library peft is not installed.
    """
    kind: type[nn.Module] = library().tuners.tuners_utils.BaseTunerLayer
    return kind
