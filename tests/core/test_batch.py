"""A training batch is pinned where it goes to CUDA: every tensor of it, by the loader, before it is sealed."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_sail import packed, records, tiny
from torch import Tensor

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.batch import OpaqueBatch, PackedBatch
from sail_lightning.sample import Sample
from sail_lightning.sequence.attention_plan import AttentionPlan


class Pinned(Tensor):
    """Stands for page-locked memory."""


@pytest.fixture
def pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an accelerator, as far as loaders can tell."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self.detach().clone().as_subclass(Pinned))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))


def tensors(batch: PackedBatch) -> dict[str, Tensor]:
    """All tensors of a batch by name, but those of the plan, which is made anew on the device."""
    parts: dict[str, Any] = {item.name: getattr(batch, item.name) for item in fields(batch)}
    parts |= {f"regions.{item.name}": getattr(batch.regions, item.name) for item in fields(batch.regions)}
    parts |= {f"masks.{index}": mask for index, mask in enumerate(batch.masks)}
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}


def test_a_pinned_batch_is_the_same_batch_in_page_locked_memory(pinning: None) -> None:
    batch = packed(tiny(), records())
    pinned = batch.pin_memory()
    before, after = tensors(batch), tensors(pinned)
    assert {"ids", "patches", "regions.patch_rows", "masks.0"} <= before.keys() == after.keys()
    assert [name for name, tensor in after.items() if type(tensor) is not Pinned] == []
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert isinstance(pinned.plan, AttentionPlan) and pinned.plan is batch.plan
    assert (pinned.grids, pinned.samples, pinned.cursor) == (batch.grids, batch.samples, batch.cursor)


class Records(Source):
    """The records, over and over."""

    @property
    def length(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        return records()[index]


@pytest.mark.parametrize(("device", "kind"), [("cuda", Pinned), ("cpu", Tensor)])
def test_training_batches_are_pinned_before_they_are_sealed_where_training_is_on_cuda(
    device: str, kind: type[Tensor], pinning: None
) -> None:
    data = SailDataModule(train=Records(), token_budget=120)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=tiny(),
        global_rank=0,
        world_size=1,
        accumulate_grad_batches=2,
        limit_train_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    sealed = next(iter(data.train_dataloader()))
    assert isinstance(sealed, OpaqueBatch)
    batch = sealed.content
    assert {type(tensor) for tensor in tensors(batch).values()} == {kind}
    assert batch.accumulation_counts is not None
