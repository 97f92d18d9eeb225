"""The contract between the model and its plugins, checked where the model calls a plugin.

Checks compare the shapes and dtypes of tensors, which the host knows: nothing waits for a device, and code that is
compiled, captured in a graph or run on fake tensors is checked as well. `plugin_check` examines the rest, such as
gradients and checkpoints, when a user runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Attention, Backbone, Dims, Plugin, PromptEncoder, Teacher, Upsampler

PUBLISHES: dict[type[Plugin], tuple[str, ...]] = {
    Backbone: ("hidden_size", "patch_size"),
    Attention: (),
    Upsampler: ("feature_channels", "feature_stride"),
    PromptEncoder: (),
    Teacher: (),
}
"""The fields of `Dims` that `build` of a socket's plugins sets; it leaves the others as they are."""
WHOLE = {PromptEncoder: {"num_prompts": 0}, Teacher: {"channels": 1, "every_n_steps": 1}}
"""Attributes that are whole numbers after `build`, and the smallest value of each."""
CHOICES = {Backbone: ("resize_mode",), PromptEncoder: ("overlap", "rasterization"), Teacher: ("student_features",)}
"""Attributes that hold one of the values in the `Literal` that the socket declares for them."""


_SIZES = [field.name for field in fields(Dims)]


def build(plugin: Plugin, dims: Dims) -> Dims:
    """Builds a plugin and checks the sizes that it publishes.

    Raises:
        SailError: The plugin returned no `Dims`, did not publish its sizes, or changed those of others. Its own `build`
            may raise others.
    """
    name, socket = type(plugin).__name__, socket_of(plugin)
    wanted = PUBLISHES[socket]
    built: object = plugin.build(dims)
    if not isinstance(built, Dims):
        form = f"replace(dims, {', '.join(f'{key}=...' for key in wanted)})" if wanted else "dims"
        raise SailError(
            f"{name}.build returned {_kind(built)}, not the sizes of the model; end it with `return {form}`"
        )
    for key in wanted:
        _check_whole(f"{name}.build published {key}", getattr(built, key))
    changed = [key for key in _SIZES if key not in wanted and getattr(built, key) != getattr(dims, key)]
    if changed and not issubclass(socket, Backbone):  # a backbone comes first: no other has published anything
        key = changed[0]
        before, after = getattr(dims, key), getattr(built, key)
        raise SailError(f"{name}.build changed {key} from {before} to {after}, which is another plugin's; leave it")
    if socket is Backbone and built.vocab_size != dims.vocab_size:
        raise SailError(
            f"{name}.build changed vocab_size from {dims.vocab_size} to {built.vocab_size}, which is the tokenizer's; "
            "leave it"
        )
    if socket is Upsampler and built.patch_size % built.feature_stride:
        raise SailError(
            f"{name}.build published feature_stride {built.feature_stride}, which does not divide the patch size "
            f"{built.patch_size}; choose one that does"
        )
    _check_attributes(plugin, socket)
    return built


def socket_of(plugin: Plugin | type[Plugin]) -> type[Plugin]:
    """Returns the abstract class of the socket that a plugin fits."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return next(base for base in PUBLISHES if issubclass(cls, base))


def expect(
    output: Any, plugin: Plugin, method: str, shape: Sequence[int | str], letters: str, reference: Tensor | None = None
) -> Tensor:
    """Returns the output of a plugin's method if it is the tensor that the socket asks for.

    Args:
        output: The output.
        plugin: The plugin.
        method: The name of the method.
        shape: The expected shape.
        letters: The same shape in the letters of `interfaces`, for the message.
        reference: A tensor whose dtype the output must have, unless autocast chooses dtypes. None allows any real
            floating-point dtype.

    Raises:
        SailError: The output is no tensor, or one of another shape or dtype.
    """
    if fault := _fault(output, tuple(shape), letters, reference):
        raise SailError(f"{type(plugin).__name__}.{method} returned {fault}")
    assert isinstance(output, Tensor)
    return output


def features(teacher: Teacher, images: Tensor) -> Tensor:
    """Returns a teacher's features (B, channels, h, w), on any grid, of images (B, 3, height, width) uint8.

    Raises:
        SailError: The teacher returned something else. Its own `forward` may raise others.
    """
    found: Any = teacher(images)
    grid = found.shape[2:] if isinstance(found, Tensor) and found.ndim == 4 and 0 not in found.shape[2:] else ("h", "w")
    shape = (len(images), teacher.channels, *grid)
    return expect(found, teacher, "forward", shape, "(B, channels, h, w)")


def checked_head(upsampler: Upsampler, channels: int, head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns the head for `Upsampler.apply_head`, which checks that it is given features (B, channels, h', w')."""

    def checked(features: Tensor) -> Tensor:
        if features.ndim != 4 or features.shape[1] != channels:
            raise SailError(
                f"{type(upsampler).__name__}.apply_head gave its head features of shape {_sizes(features.shape)}, but "
                f"(B, feature_channels, h, w) with {channels} channels is expected"
            )
        return head(features)

    return checked


class LanguageHead:
    """The language head of a backbone, with its logits checked: hidden states (..., D) to (..., vocab_size).

    Args:
        backbone: The backbone, which computes the logits.
        vocab_size: Number of tokens of the tokenizer.
    """

    def __init__(self, backbone: Backbone, vocab_size: int) -> None:
        self.__self__ = backbone  # named as in a bound method, because fused losses look for the weight there
        self.vocab_size = vocab_size

    def __call__(self, hidden: Tensor) -> Tensor:
        """Computes logits (..., vocab_size) from hidden states (..., D)."""
        backbone = self.__self__
        shape = (*hidden.shape[:-1], self.vocab_size)
        return expect(backbone.logits(hidden), backbone, "logits", shape, "(..., vocab_size)")


def _check_attributes(plugin: Plugin, socket: type[Plugin]) -> None:
    name = type(plugin).__name__
    for key, least in WHOLE.get(socket, {}).items():
        _check_whole(f"{name} has {key}", getattr(plugin, key), least)
    for key in CHOICES.get(socket, ()):
        choices = _choices(get_type_hints(socket)[key])
        if getattr(plugin, key) not in choices:
            raise SailError(f"{name} has {key} {getattr(plugin, key)!r}; it must be one of {', '.join(choices)}")
    if isinstance(plugin, Backbone) and plugin.chat.answer_end not in plugin.chat.stops:
        raise SailError(f"{name}.chat ends an answer with {plugin.chat.answer_end!r}, which is not among its stops")


def _check_whole(what: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SailError(f"{what} {value!r}; it must be a whole number of {least} or more")


def _fault(output: object, shape: tuple[int | str, ...], letters: str, reference: Tensor | None) -> str:
    """Says what is wrong with an output and what is expected instead; empty if nothing is."""
    if not isinstance(output, Tensor):
        return f"{_kind(output)}, but a tensor of shape {letters} = {_sizes(shape)} is expected"
    if output.shape != shape:
        return f"a tensor of shape {_sizes(output.shape)}, but {letters} = {_sizes(shape)} is expected"
    if not output.dtype.is_floating_point:
        return f"a tensor of {output.dtype}, but a floating-point one is expected"
    if reference is not None and output.dtype != reference.dtype and not _autocast(output.device.type):
        return f"a tensor of {output.dtype}, but {reference.dtype} is expected, the dtype of its input"
    return ""


def _choices(hint: Any) -> list[str]:
    """Returns the strings of the `Literal` in a type."""
    return [choice for part in get_args(hint) for choice in ([part] if isinstance(part, str) else _choices(part))]


def _kind(value: object) -> str:
    return "nothing" if value is None else f"an object of type {type(value).__name__}"


def _sizes(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
