"""Chooses the best attention kernel that runs on the device in use."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Attention
from sail_lightning.plugins.attention.sdpa import SDPAAttention
from sail_lightning.plugins.attention.xformers import XFormersAttention, check_cuda
from sail_lightning.registry import register
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

logger = logging.getLogger(__name__)


@register
class AutoAttention(Attention):
    """`XFormersAttention` on CUDA, `SDPAAttention` elsewhere; chosen at the first call on a device, and logged.

    On CUDA a call of 16 tokens is tried first, for training and prediction. If it fails, that is an error: a silent
    fallback would make training slow without notice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._chosen: dict[torch.device, Attention] = {}

    @property
    def chosen(self) -> list[str]:
        """The names of the chosen kernels, one for each device used so far."""
        return [type(kernel).__name__ for kernel in self._chosen.values()]

    def prepare(self, plan: AttentionPlan, device: torch.device) -> None:
        """Chooses the kernel and has it prepare the plan.

        Raises:
            SailError: the device is CUDA, and xformers does not run there.
        """
        self._kernel(device).prepare(plan, device)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Computes `Attention.forward` with the chosen kernel.

        Raises:
            SailError: the device is CUDA, and xformers does not run there.
        """
        output: Tensor = self._kernel(value.device)(query, key, value, plan, scale)
        return output

    def _kernel(self, device: torch.device) -> Attention:
        if device not in self._chosen:
            self._chosen[device] = choose(device)
            logger.info("attention on %s: %s", device, type(self._chosen[device]).__name__)
        return self._chosen[device]


def choose(device: torch.device) -> Attention:
    """Returns the kernel for a device; on CUDA it is tried with `probe` first.

    Raises:
        SailError: the device is CUDA, and xformers does not run there.
    """
    if device.type != "cuda":
        return SDPAAttention()
    kernel = XFormersAttention()
    try:
        check_cuda()
        probe(kernel, device)
    except Exception as error:
        raise SailError(
            f"attention auto means xformers on {device}, but that does not run here ({error}); "
            "to go without, choose `attention: SDPAAttention`"
        ) from error
    return kernel


def probe(kernel: Attention, device: torch.device) -> None:
    """Runs a kernel on 16 tokens, forward and backward. Raises what the kernel raises."""
    # Prediction runs in inference mode, in which `enable_grad` alone records nothing.
    with torch.inference_mode(False), torch.enable_grad():
        plan = AttentionPlan.build([[Span("image", 12), Span("text", 4)]], device)
        tokens = torch.ones(16, 2, 64, dtype=torch.float16, device=device, requires_grad=True)
        kernel(tokens, tokens * 1, tokens * 2, plan, 0.125).sum().backward()
