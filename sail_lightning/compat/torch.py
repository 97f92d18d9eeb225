"""Private names of torch: compiled modules, moving buffers, fused updates, the index of distributed checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = [
    "BatchNorm",
    "Float32Buffers",
    "allow_graphs",
    "checkpoint_index_classes",
    "is_compiled",
    "lerp_",
    "uncompiled",
]


def allow_graphs(count: int) -> None:
    """Lets `torch.compile` make at least `count` graphs of one function; torch's own limit of 8 is soon reached."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, count)


def is_compiled(module: nn.Module) -> bool:
    """Whether `Module.compile` was called on a module."""
    return module._compiled_call_impl is not None


@contextmanager
def uncompiled(modules: Iterable[Any]) -> Iterator[None]:
    """Runs compiled modules uncompiled within this context."""
    kept = [(module, module._compiled_call_impl) for module in modules]
    for module, _ in kept:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, compiled in kept:
            module._compiled_call_impl = compiled


class Float32Buffers(nn.Module):
    """A module whose buffers stay float32 under `.bfloat16()` and the like."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                self.register_buffer(name, buffer.to(moved.device), persistent=False)
        return self


def lerp_(targets: Any, sources: Any, weight: float) -> None:
    """Computes target += weight * (source - target) in place for every pair of two lists of tensors, in one call."""
    torch._foreach_lerp_(targets, sources, weight)


_METADATA = (
    *("ChunkStorageMetadata", "TensorProperties", "TensorStorageMetadata", "BytesStorageMetadata"),
    *("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)


def checkpoint_index_classes() -> dict[str, Any]:
    """Returns the classes that the index of a `torch.distributed.checkpoint` folder contains, by their full names."""
    from torch.distributed.checkpoint import filesystem, metadata  # slow to import, and seldom needed

    classes = {f"{metadata.__name__}.{name}": getattr(metadata, name) for name in _METADATA if hasattr(metadata, name)}
    return classes | {f"{filesystem.__name__}._StorageInfo": filesystem._StorageInfo}
