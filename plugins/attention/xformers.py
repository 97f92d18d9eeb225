"""Prefix attention on CUDA: two variable-length calls of xformers' memory-efficient attention per layer."""

from __future__ import annotations

import copy
import ctypes
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Attention, Dims
from sail_lightning.plugins.attention.sdpa import repeat_heads
from sail_lightning.registry import register
from sail_lightning.sequence.attention_plan import AttentionPlan

INSTALL_HINT = "pip install 'sail-lightning[cuda]', or choose `attention: SDPAAttention`"


@register
class XFormersAttention(Attention):
    """Runs the plan's calls one by one: image spans without a mask, text spans causal from the bottom right.

    Nothing dense is made or padded, and memory is linear in the number of tokens. Half precision runs on the flash
    kernels, float32 on the slower cutlass kernels.

    Under `torch.use_deterministic_algorithms(True)` everything runs on the cutlass kernels, because the flash kernels
    cannot train then. There is no argument for it: torch's switch keeps the backward kernel from splitting the keys of
    a query into parts that are added up in any order.
    """

    def build(self, dims: Dims) -> Dims:
        """Checks that xformers runs on the GPU, if there is one; raises SailError if it does not."""
        if torch.cuda.is_available():
            check_cuda()
        return dims

    def prepare(self, plan: AttentionPlan, device: torch.device) -> None:
        """Makes the masks of a plan; raises SailError where xformers is missing."""
        _prepared(plan, device)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Computes `Attention.forward`; query and key are cast to the dtype of value, which is also the output's.

        Raises:
            SailError: xformers is missing, or has no kernel for this device.
        """
        ops, biases = _prepared(plan, value.device)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if not plan.calls:
            return query
        deterministic = torch.are_deterministic_algorithms_enabled()
        needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        # No backward kernel supports grouped heads; without gradients the flash kernel does, which saves the copy.
        grouped = not needs_grad and not deterministic and value.dtype in (torch.float16, torch.bfloat16)
        op = ops.MemoryEfficientAttentionCutlassOp if deterministic else None
        outputs: list[Tensor] = []
        for call, bias in zip(plan.calls, biases, strict=True):
            queries = _rows(query, call.query_rows, deterministic)
            keys, values = (_rows(tensor, call.key_rows, deterministic) for tensor in (key, value))
            if grouped:
                groups = key.shape[1]
                heads = query.shape[1] // groups
                queries = queries.unflatten(1, (groups, heads))
                keys = keys[:, :, None].expand(-1, -1, heads, -1)
                values = values[:, :, None].expand(-1, -1, heads, -1)
            else:
                keys, values = repeat_heads(keys, query.shape[1]), repeat_heads(values, query.shape[1])
            try:
                output = ops.memory_efficient_attention(
                    queries[None], keys[None], values[None], attn_bias=bias, scale=scale, op=op
                )
            except NotImplementedError as error:
                kind = f"{value.dtype} tensors on {value.device.type} with heads of {value.shape[-1]}"
                raise SailError(
                    f"XFormersAttention has no kernel for {kind}; choose `attention: SDPAAttention`"
                ) from error
            outputs.append(output[0].reshape(-1, *query.shape[1:]))
        return _rows(torch.cat(outputs) if len(outputs) > 1 else outputs[0], plan.inverse, deterministic)


@functools.cache
def load_xformers() -> Any:
    """Imports `xformers.ops` on first use, so that the package works without xformers.

    The stock wheel links CUDA 12's runtime. Next to a torch built for another CUDA it finds none and refuses every CUDA
    call, although the kernels it would run are torch's own; so that runtime is loaded first.
    """
    _preload_cuda12_runtime()
    try:
        return importlib.import_module("xformers.ops")
    except ImportError as error:
        raise SailError(f"XFormersAttention cannot import xformers ({error}): {INSTALL_HINT}") from error


def check_cuda() -> None:
    """Checks that xformers runs on the GPUs of this machine; raises SailError if it does not."""
    load_xformers()
    library = importlib.import_module("xformers._cpp_lib")
    if not library._built_with_cuda:
        raise SailError(f"xformers cannot load its CUDA library (it needs libcudart.so.12): {INSTALL_HINT}")


def _preload_cuda12_runtime() -> None:
    if torch.version.cuda is None or torch.version.cuda.startswith("12."):
        return
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or ()) if package else ():
        library = Path(folder) / "cuda_runtime" / "lib" / "libcudart.so.12"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return


def _prepared(plan: AttentionPlan, device: torch.device) -> tuple[Any, list[Any]]:
    """Returns `xformers.ops` and the masks of the plan's calls, made once per plan and device; they hold lengths only.

    Their default device is a GPU if there is one, so they are never made in data workers.
    """
    name = ("xformers", device)
    if name not in plan.cache:
        ops = load_xformers()
        masks = importlib.import_module("xformers.ops.fmha.attn_bias")
        biases = [
            (masks.BlockDiagonalCausalFromBottomRightMask if call.causal else masks.BlockDiagonalMask).from_seqlens(
                list(call.query_lengths), list(call.key_lengths), device=device
            )
            for call in plan.calls
        ]
        for bias in biases:
            if bias.k_seqinfo is bias.q_seqinfo:  # a compiler would make another program for a shared object
                bias.k_seqinfo = copy.deepcopy(bias.q_seqinfo)
        plan.cache[name] = (ops, biases)
    kept: tuple[Any, list[Any]] = plan.cache[name]
    return kept


def _rows(tensor: Tensor, rows: Tensor | None, deterministic: bool) -> Tensor:
    if rows is None:
        return tensor
    # In the backward pass a key of several spans gets a sum: indexing adds in a fixed order, index_select in any.
    return tensor[rows] if deterministic else tensor.index_select(0, rows)
