"""Defines a check: a named function that examines a plugin and raises a fault of one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from sail_lightning.interfaces import Attention, Backbone, Dims, Plugin, PromptEncoder, Teacher, Upsampler
from sail_lightning.model import contract
from sail_lightning.module import PixelSAIL
from sail_lightning.plugin_check.tiny import BACKBONE, tiny
from sail_lightning.plugins.backbones import SailQwen

VOCABULARY = 50
"""Size of the vocabulary that a single plugin is built for."""
SLOTS: dict[type[Plugin], str] = {Backbone: "backbone", Upsampler: "upsampler", PromptEncoder: "prompt_encoder"}
"""The argument of `PixelSAIL` that takes a plugin of each of these sockets."""


class Fault(Exception):
    """A fault of a plugin, in one sentence."""


def require(holds: bool, fault: str) -> None:
    """Raises `Fault` with this sentence unless the condition holds."""
    if not holds:
        raise Fault(fault)


@dataclass(frozen=True)
class Subject:
    """A plugin that is checked.

    Args:
        make: Makes the plugin as configured, not built; each call makes another one.
        device: Device on which it is checked, `cpu` or `cuda`.
    """

    make: Callable[[], Plugin]
    device: str = "cpu"

    @property
    def socket(self) -> type[Plugin]:
        """The abstract class of its socket."""
        return contract.socket_of(self.make())

    @property
    def dims(self) -> Dims:
        """The sizes that plugins built earlier have published."""
        socket, dims = self.socket, Dims(vocab_size=VOCABULARY)
        if not issubclass(socket, Backbone | Attention):
            dims = replace(dims, hidden_size=32, patch_size=16)
        if not issubclass(socket, Backbone | Attention | Upsampler):
            dims = replace(dims, feature_channels=12, feature_stride=4)
        return dims

    def built(self) -> tuple[Any, Dims]:
        """Builds the plugin in evaluation mode, always with the same weights; returns it and its sizes."""
        torch.manual_seed(0)
        plugin = self.make()
        dims = contract.build(plugin, self.dims)
        return plugin.to(self.device).eval(), dims

    def model(self, dtype: torch.dtype = torch.float32) -> PixelSAIL:
        """Builds a tiny Pixel-SAIL with the plugin in its socket, teachers included."""
        plugin = self.make()
        if isinstance(plugin, Attention):
            changes: dict[str, Any] = {"backbone": SailQwen(**BACKBONE, attention=plugin)}
        elif isinstance(plugin, Teacher):
            changes = {"teachers": {"expert": plugin, "off": None}}
        else:
            changes = {SLOTS[self.socket]: plugin}
        return tiny(**changes).to(self.device, dtype)


@dataclass(frozen=True)
class Check:
    """A function that raises `Fault`, or lets an error of the plugin through, if the plugin fails it.

    Its name is what is checked, as a sentence about the plugin; its docstring says more.
    """

    function: Callable[[Subject], None]

    @property
    def name(self) -> str:
        """The statement that is checked, such as `gives every parameter a gradient`."""
        return self.function.__name__.replace("_", " ")

    def __call__(self, subject: Subject) -> None:
        self.function(subject)
