"""Maps in little memory: matrix products are kept for the backward pass, all that is cheap is done again."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default})


def _policy(_: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def lean(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, with the same result and gradients. Without gradients it is just called."""
    if not torch.is_grad_enabled():
        return function(*tensors)
    kind = tensors[0].device.type
    mixed = torch.is_autocast_enabled(kind)

    def run(*tensors: Tensor) -> Tensor:
        # A weight that autocast has kept from elsewhere would not be cast again: the second run would differ.
        with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=mixed, cache_enabled=False):
            return function(*tensors)

    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    result: Tensor = checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return result
