"""xformers' CUDA path on the CPU: its own dispatch, checks and autograd, over emulated flash kernels.

The flash kernels are two custom operators; here they get a plain float32 implementation for CPU tensors, and the
dispatcher is told that they run there. This proves shapes, masks and calculus, not the CUDA kernels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Blocks = Iterator[tuple[slice, slice]]
calls: list[tuple[str, int, bool]] = []
"""What ran: `forward` or `backward`, key heads, causal. Emptied by `emulated`."""
_registered: list[Callable[..., Any]] = []


@contextmanager
def emulated() -> Iterator[list[tuple[str, int, bool]]]:
    """Within, `memory_efficient_attention` takes CPU tensors in float32 and float16; gives the list of `calls`."""
    from xformers.ops.fmha import flash

    if not _registered:
        _registered.append(torch.library.register_kernel("xformers_flash::flash_fwd", "cpu", _forward))
        _registered.append(torch.library.register_kernel("xformers_flash::flash_bwd", "cpu", _backward))
    kernels = (flash.FwOp, flash.BwOp)
    before = [(kernel.SUPPORTED_DEVICES, kernel.SUPPORTED_DTYPES) for kernel in kernels]
    for kernel in kernels:
        kernel.SUPPORTED_DEVICES, kernel.SUPPORTED_DTYPES = {"cuda", "cpu"}, {torch.half, torch.float32}
    calls.clear()
    try:
        yield calls
    finally:
        for kernel, (devices, dtypes) in zip(kernels, before, strict=True):
            kernel.SUPPORTED_DEVICES, kernel.SUPPORTED_DTYPES = devices, dtypes


def available() -> bool:
    """Whether xformers is installed, next to a torch whose flash operators it can define."""
    try:
        from xformers.ops.fmha import flash
    except ImportError:
        return False
    return flash.FwOp.OPERATOR is not None and hasattr(torch.ops.xformers_flash, "flash_fwd")


def _blocks(starts_q: Tensor, starts_k: Tensor) -> Blocks:
    edges_q, edges_k = starts_q.tolist(), starts_k.tolist()
    for index in range(len(edges_q) - 1):
        yield slice(edges_q[index], edges_q[index + 1]), slice(edges_k[index], edges_k[index + 1])


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    used_k: Tensor | None,
    longest_q: int,
    longest_k: int,
    dropout: float,
    scale: float,
    causal: bool,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, groups = query.shape[1], key.shape[1]
    calls.append(("forward", groups, causal))
    output, lse = torch.zeros_like(query), torch.zeros(heads, query.shape[0])
    for q, k in _blocks(starts_q, starts_k):
        keys, values = (tensor[k].float().repeat_interleave(heads // groups, 1) for tensor in (key, value))
        scores = _scores(query[q].float(), keys, scale, causal)
        lse[:, q] = scores.logsumexp(-1)
        output[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(query.dtype)
    return output, lse, torch.zeros(2, dtype=torch.int64)


def _backward(
    shared: bool,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    dropout: float,
    scale: float,
    causal: bool,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    calls.append(("backward", key.shape[1], causal))
    grad_q, grad_k, grad_v = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for q, k in _blocks(starts_q, starts_k):
        queries, keys, values, upstream = query[q].float(), key[k].float(), value[k].float(), grad[q].float()
        probabilities = (_scores(queries, keys, scale, causal) - lse[:, q, None]).exp()
        inner = (upstream * output[q].float()).sum(-1).T[..., None]
        slopes = probabilities * (torch.einsum("qhd,khd->hqk", upstream, values) - inner) * scale
        grad_q[q] = torch.einsum("hqk,khd->qhd", slopes, keys).to(query.dtype)
        grad_k[k] = torch.einsum("hqk,qhd->khd", slopes, queries).to(key.dtype)
        grad_v[k] = torch.einsum("hqk,qhd->khd", probabilities, upstream).to(value.dtype)
    return grad_q, grad_k, grad_v
