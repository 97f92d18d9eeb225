"""Checks of how any plugin is made and built."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sail_lightning.model import contract
from sail_lightning.plugin_check.check import Subject, require


def makes_no_weights_before_build(subject: Subject) -> None:
    """`__init__` only stores settings, so that a config can be printed, and a model planned, without making weights."""
    plugin = subject.make()
    names = [name for name, _ in (*plugin.named_parameters(), *plugin.named_buffers())]
    require(not names, f"{type(plugin).__name__}.__init__ makes {', '.join(names[:3])}; make weights in build")


def can_be_made_again_from_its_arguments(subject: Subject) -> None:
    """Checkpoints and model folders hold a plugin's arguments, from which it is made again."""
    first = subject.make()
    name, arguments = type(first).__name__, getattr(first, "init_args", {})
    before = copy.deepcopy(arguments)
    try:
        second = type(first)(**arguments)
    except TypeError as error:
        require(False, f"{name}(**init_args) fails ({error}); give __init__ named arguments only")
    after = getattr(second, "init_args", {})
    require(repr(after) == repr(before), f"{name}.__init__ changes its arguments from {before} to {after}; copy them")


def publishes_its_sizes(subject: Subject) -> None:
    """`build` returns the sizes that it was given, with its own filled in."""
    contract.build(subject.make(), subject.dims)


def builds_in_bfloat16(subject: Subject) -> None:
    """Under `--trainer.precision=bf16-true` weights are made in bfloat16, because `build` names no dtype of its own."""
    plugin = subject.make()
    with _default_dtype(torch.bfloat16):
        contract.build(plugin, subject.dims)
    others = [
        f"{name} ({tensor.dtype})" for name, tensor in plugin.named_parameters() if tensor.dtype != torch.bfloat16
    ]
    require(not others, f"{type(plugin).__name__}.build makes {', '.join(others[:3])} where the default is bfloat16")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
