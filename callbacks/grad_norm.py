"""`GradNorm`: logs the norm of the gradient."""

from __future__ import annotations

import lightning as L
import torch
from torch.optim import Optimizer

from sail_lightning.registry import register


@register
class GradNorm(L.Callback):
    """Logs `train/grad_norm`: the 2-norm of all gradients together, before clipping, at the trainer's log interval."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.global_step + 1) % every:
            return
        grads = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if hasattr(norm, "full_tensor"):  # sharded (FSDP2): this combines the norms of the shards
            norm = norm.full_tensor()
        pl_module.log("train/grad_norm", norm)
