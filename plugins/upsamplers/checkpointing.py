"""Activation checkpointing of maps: matrix products are kept for the backward pass, cheap operations recomputed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sail_lightning.settings.renames import renamed

PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default})


def _policy(_: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Returns `function(*tensors)`, with the same gradients in less memory; without gradients it is only called."""
    if not torch.is_grad_enabled():
        return function(*tensors)
    kind = tensors[0].device.type
    mixed = torch.is_autocast_enabled(kind)

    def run(*tensors: Tensor) -> Tensor:
        # A weight in autocast's cache would not be cast again, and the recomputation would differ.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=mixed, cache_enabled=False):
            return function(*tensors)

    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    result: Tensor = checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return result


__getattr__ = renamed(__name__, {"lean": "checkpoint_activations"})
