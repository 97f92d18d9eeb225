"""Optimiser groups, a fast optimiser for small models, and the learning-rate schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sail_lightning.registry import register
from sail_lightning.settings.ranges import (
    BelowOne,
    Checked,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
)


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Returns the trainable parameters in up to three groups with different values of `role`.

    `hidden` holds the matrices inside the network; `outer` kernels, and the matrices at its ends (patch embedding,
    language head); `plain` norms, biases and embedding tables, which never decay (`weight_decay` 0). Parameters are
    grouped by the module that owns them, so wrappers that rename parameters change nothing; a tied table counts as an
    embedding.
    """
    roles: dict[int, tuple[str, nn.Parameter]] = {}
    for name, owner in module.named_modules():
        at_the_ends = name.endswith(("vis_embed", "lm_head"))
        for parameter in owner.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if parameter.ndim < 2 or isinstance(owner, nn.Embedding):
                roles[id(parameter)] = ("plain", parameter)
            elif id(parameter) not in roles:
                role = "hidden" if parameter.ndim == 2 and not at_the_ends else "outer"
                roles[id(parameter)] = (role, parameter)
    groups = {role: [p for r, p in roles.values() if r == role] for role in ("hidden", "outer", "plain")}
    return [
        {"params": parameters, "role": role, **({"weight_decay": 0.0} if role == "plain" else {})}
        for role, parameters in groups.items()
        if parameters
    ]


@register
class MuonAdamW(Checked, Optimizer):
    """Muon for the matrices inside the network, AdamW for all other parameters; both are torch's.

    On the laboratory data it needs 750 steps where AdamW alone needs about 2,000 (CHANGELOG, 0.1.0).

    Args:
        params: Parameters or groups; groups with `role: hidden` (`parameter_groups`) go to Muon.
        lr: Learning rate of Muon, scaled to the size of AdamW's updates (`match_rms_adamw`).
        adamw_lr: Learning rate of AdamW.
        weight_decay: Weight decay of both.
        betas: Betas of AdamW.
        momentum: Momentum of Muon.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: NonNegativeFloat = 3e-3,
        adamw_lr: NonNegativeFloat = 1.5e-3,
        weight_decay: NonNegativeFloat = 0.05,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.98),
        momentum: BelowOne = 0.95,
    ) -> None:
        listed = list(params)
        groups: list[Any] = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
        for group in groups:
            group.setdefault("lr", lr if group.get("role") == "hidden" else adamw_lr)
        super().__init__(groups, {"lr": adamw_lr, "weight_decay": weight_decay})
        hidden = [group for group in self.param_groups if group.get("role") == "hidden"]
        rest = [group for group in self.param_groups if group.get("role") != "hidden"]
        self._inner: list[Optimizer] = []
        if hidden:
            self._inner.append(
                Muon(hidden, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            )
        if rest:
            self._inner.append(AdamW(rest, lr=adamw_lr, betas=betas, weight_decay=weight_decay))
        self._share()

    def _share(self) -> None:
        """Shares this optimiser's groups and state with the inner ones, so schedules and checkpoints see one
        optimiser."""
        self.param_groups = [group for inner in self._inner for group in inner.param_groups]
        for inner in self._inner:
            inner.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step of both optimisers, and returns the loss of the closure, None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self._inner:
            inner.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for inner in self._inner:
            count = len(inner.param_groups)
            start = sum(len(other.param_groups) for other in self._inner[: self._inner.index(inner)])
            inner.param_groups = self.param_groups[start : start + count]
            inner.state = self.state


@register
class WarmupCosine(Checked, LambdaLR):
    """A learning-rate schedule with linear warm-up, then half a cosine down to `final_ratio` of the base rate.

    Args:
        optimizer: Optimiser to schedule.
        total_steps: Optimiser steps of the whole run.
        warmup_ratio: Share of the steps that warm up, 0 to 1 (0.03 in the official recipe).
        final_ratio: Share of the base rate at the end, 0 to 1.
        horizon: Number of steps after which the curve ends, if not with the run; null is the steps of the run.
        minutes: Time limit of the run (`trainer.max_time`), if the run may reach it before its last step: the rate
            follows steps or time, whichever is further, so a slow machine ends its run with a low rate too. The time
            before a resume counts, as for `trainer.max_time`; several processes use the clock of the first.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: NonNegativeInt,
        warmup_ratio: UnitInterval = 0.03,
        final_ratio: UnitInterval = 0.0,
        horizon: PositiveInt | None = None,
        minutes: PositiveFloat | None = None,
    ) -> None:
        warmup = max(1, round(total_steps * warmup_ratio))
        horizon = horizon or total_steps
        self.elapsed = 0.0  # seconds since the first step; a checkpoint stores them, as it does every attribute
        clock: dict[int, float] = {}  # the time at the last step that was asked for

        def factor(step: int) -> float:
            progress = (step - warmup) / max(1, horizon - warmup)
            if minutes is not None and step > 0:  # the clock starts at the first step, not at set-up
                if step not in clock:  # once for all groups of parameters
                    now = time.monotonic()
                    self.elapsed = _of_first_process(self.elapsed + now - next(iter(clock.values()), now))
                    clock.clear()
                    clock[step] = now
                progress = max(progress, self.elapsed / (60 * minutes))
            if step < warmup:
                return (step + 1) / warmup
            return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        super().__init__(optimizer, factor)


def _of_first_process(seconds: float) -> float:
    """Returns the first process's value in all processes, because copies of a model must take the same steps."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return seconds
    shared = [seconds]
    dist.broadcast_object_list(shared, 0)
    return shared[0]
