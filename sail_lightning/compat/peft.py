"""PEFT, imported where it is needed, and the class that its adapter layers derive from."""

from __future__ import annotations

from typing import Any

from torch import nn

from sail_lightning.errors import SailError


def library() -> Any:
    """The module `peft`; importing it takes seconds, and not everyone has it.

    Raises:
        SailError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise SailError("LoRA needs peft, which is not installed: pip install 'sail-lightning[peft]'") from None
    return peft


def adapter_layer() -> type[nn.Module]:
    """The base class of PEFT's adapter layers, which have `merge()` and `get_base_layer()`.

    Raises:
        SailError: peft is not installed.
    """
    kind: type[nn.Module] = library().tuners.tuners_utils.BaseTunerLayer
    return kind
