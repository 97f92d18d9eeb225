"""Losses are normalised over the whole accumulation window and all ranks, whatever each batch holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.connectors.data_connector import warning_cache
from tiny_sail import blob, packed, picture, records, text_records, tiny
from torch import Tensor
from torch.utils.data import DataLoader

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources.base import Source
from sail_lightning.data.stream import AccumulationWindows
from sail_lightning.encoding.batch import Counts, PackedBatch
from sail_lightning.errors import SailUsageError
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.teachers import TimmTeacher
from sail_lightning.sample import Sample, Turn

Weights = dict[str, Tensor]


def groups() -> list[list[Sample]]:
    """Four micro-batches of very unequal words, masks and images; one has words alone."""
    first, _, third, fourth = records()
    long = Sample(
        picture(16, 24),
        (Turn("describe the picture.", "a large blue square and a small red circle and a green cross."),),
    )
    many = Sample(
        picture(24, 16),
        (Turn("find all circles.", "it is [SEG] and [SEG] and [SEG].", "refer", (0, 1, 2)),),
        tuple(blob(24, 16, seed) for seed in range(3)),
    )
    return [[first, third], text_records(), [long, fourth], [many]]


def model(**changes: Any) -> PixelSAIL:
    """Plain gradient descent with rate 1, so that a step is the gradient; a teacher, so that images count too."""
    teacher = TimmTeacher("test_convnext", resize=32, weight=0.5, student_features="mask")
    return tiny(teachers={"expert": teacher}, optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0), **changes)


class Fixed(L.LightningDataModule):
    """Given groups of samples as batches, dealt to ranks in turn, in windows."""

    def __init__(self, batches: list[list[Sample]], window: int) -> None:
        super().__init__()
        self.batches, self.window = batches, window

    def train_dataloader(self) -> AccumulationWindows:
        trainer = self.trainer
        assert trainer is not None
        own = self.batches[trainer.global_rank :: trainer.world_size]
        packs = [packed(trainer.lightning_module, samples) for samples in own]  # type: ignore[arg-type]
        return AccumulationWindows(DataLoader(packs, batch_size=None), self.window)  # type: ignore[arg-type, type-var]


def one_step(
    net: PixelSAIL,
    batches: list[list[Sample]],
    accumulate: int = 1,
    data: type[Fixed] = Fixed,
    **settings: Any,
) -> Weights:
    """What one optimiser step moved each weight by: minus the gradient."""
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(net, datamodule=data(batches, accumulate))
    return {name: parameter.detach() - before[name] for name, parameter in net.named_parameters()}


def error(ours: Weights, wanted: Weights) -> float:
    """Largest relative difference of any weight's step, in the 2-norm."""
    assert ours.keys() == wanted.keys()
    return max(((ours[n] - wanted[n]).norm() / wanted[n].norm().clamp(min=1e-3)).item() for n in wanted)


@pytest.fixture(scope="module")
def whole() -> Weights:
    """The step of one batch that holds all samples."""
    return one_step(model(), [[sample for group in groups() for sample in group]])


def test_four_unequal_micro_batches_give_the_gradient_of_one_batch(whole: Weights) -> None:
    assert min(step.norm() for step in whole.values()) > 0
    assert error(one_step(model(), groups(), accumulate=4), whole) < 1e-4


def test_means_of_each_micro_batch_alone_give_another_gradient(whole: Weights) -> None:
    assert error(one_step(model(loss_normalization="microbatch"), groups(), accumulate=4), whole) > 0.1


def test_micro_batch_means_are_averaged_over_the_window() -> None:
    parts = [one_step(model(loss_normalization="microbatch"), [group]) for group in groups()]
    mean = {name: sum((part[name] for part in parts), torch.zeros(())) / 4 for name in parts[0]}
    assert error(one_step(model(loss_normalization="microbatch"), groups(), accumulate=4), mean) < 1e-4


def test_two_processes_give_the_gradient_of_one(whole: Weights) -> None:
    ours = one_step(model(), groups(), accumulate=2, strategy="ddp_fork", devices=2)
    assert error(ours, whole) < 1e-4


def test_mixed_precision_takes_about_the_same_step(whole: Weights) -> None:
    ours = one_step(model(), groups(), accumulate=4, precision="bf16-mixed")
    flat, wanted = (torch.cat([steps[name].flatten() for name in whole]) for steps in (ours, whole))
    assert (flat - wanted).norm() < 0.05 * wanted.norm()


def test_a_window_carries_the_counts_of_all_its_batches() -> None:
    net = tiny()
    batches = [packed(net, group) for group in groups()]
    counts = [batch.counts for batch in batches]
    windowed = list(AccumulationWindows([*batches, batches[0]], 4))
    total = Counts(*(sum(getattr(c, name) for c in counts) for name in ("tokens", "masks", "images")))
    assert [batch.accumulation_counts for batch in windowed] == [total] * 4 + [counts[0]]
    assert total.masks == 7
    assert [replace(batch, accumulation_counts=None) for batch in windowed[:4]] == batches


def test_a_resumed_window_is_made_of_what_is_left_of_it() -> None:
    net = tiny()
    batches = [packed(net, group) for group in groups()]
    windows = AccumulationWindows(batches, 3, begun=2)
    seen = list(windows)
    assert seen[0].accumulation_counts == batches[0].counts
    assert seen[1].accumulation_counts == batches[1].counts + batches[2].counts + batches[3].counts
    assert [batch.accumulation_counts for batch in windows][3] == batches[3].counts, (
        "the next pass begins with a whole window"
    )


def test_an_epoch_that_is_cut_short_cuts_its_last_window() -> None:
    net = tiny()
    batches = [packed(net, group) for group in groups()]
    counts = [batch.counts for batch in batches]
    for begun in (0, 1):
        windows = AccumulationWindows(batches[begun:], 2, begun, limit=3)
        first = [counts[0] + counts[1]] * 2 if not begun else [counts[1]]
        assert [batch.accumulation_counts for batch in windows] == [*first, counts[2]]


def test_an_epoch_that_became_shorter_than_what_was_trained_on_is_a_new_one() -> None:
    net = tiny()
    batches = [packed(net, group) for group in groups()]
    windows = list(AccumulationWindows(batches, 2, begun=5, limit=3))
    assert (
        windows[0].accumulation_counts == windows[1].accumulation_counts == batches[0].counts + batches[1].counts
        and len(windows) == 3
    )


def test_every_step_of_short_epochs_is_divided_by_what_it_was_made_of() -> None:
    seen = Losses()
    fit(data_module(), seen, accumulate=2, max_steps=4, limit_train_batches=3, val_check_interval=3)
    assert len(seen.batches) == 6
    for start in (0, 3):
        pair, rest = seen.batches[start : start + 2], seen.batches[start + 2]
        assert [batch.accumulation_counts for batch in pair] == [pair[0].counts + pair[1].counts] * 2
        assert rest.accumulation_counts == rest.counts


def test_batches_that_know_no_window_are_averaged() -> None:
    class Bare(Fixed):
        def train_dataloader(self) -> Any:
            return super().train_dataloader().batches

    parts = [one_step(model(), [group]) for group in groups()]
    mean = {name: sum((part[name] for part in parts), torch.zeros(())) / 4 for name in parts[0]}
    assert error(one_step(model(), groups(), accumulate=4, data=Bare), mean) < 1e-4


def test_without_a_number_of_steps_there_is_no_training() -> None:
    for settings in ({"max_epochs": 5}, {"max_time": "00:01:00:00"}, {"max_epochs": -1}):
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)  # type: ignore[arg-type]
        with pytest.raises(SailUsageError, match="training data has no end; give the trainer max_steps"):
            trainer.fit(model(), datamodule=SailDataModule(train=Records(), token_budget=60))


class Records(Source):
    """The records of this file, over and over."""

    def __getitem__(self, index: int) -> Sample:
        return [sample for group in groups() for sample in group][index]

    @property
    def length(self) -> int:
        return sum(len(group) for group in groups())


class Losses(L.Callback):
    """Keeps what each training batch was divided by."""

    def __init__(self) -> None:
        self.batches: list[PackedBatch] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: PackedBatch, index: int) -> None:
        self.batches.append(batch)


def consecutive(batches: list[PackedBatch], size: int) -> Iterator[list[PackedBatch]]:
    return (batches[start : start + size] for start in range(0, len(batches), size))


def fit(data: SailDataModule, *callbacks: L.Callback, accumulate: int = 2, **settings: Any) -> PixelSAIL:
    """Two steps of two batches each, and a validation after them."""
    net = model()
    settings = {"max_steps": 2, "val_check_interval": 4} | settings
    trainer = L.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(net, datamodule=data)
    return net


def data_module() -> SailDataModule:
    return SailDataModule(train=Records(), val=Records(), token_budget=60, eval_batch_size=3)


def test_the_data_module_fills_windows_and_lightning_has_nothing_to_warn_about() -> None:
    seen = Losses()
    warning_cache.clear()  # it says everything once a process
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(data_module(), seen)
    assert len(seen.batches) == 4
    for window in consecutive(seen.batches, 2):
        assert [batch.accumulation_counts for batch in window] == [window[0].counts + window[1].counts] * 2
    assert [str(w.message) for w in caught if "overridden" in str(w.message)] == []


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_training_and_validation_run_in_half_precision(precision: str) -> None:
    before = model().state_dict()
    after = fit(data_module(), precision=precision).state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value.float(), before[name]) for name, value in after.items())


def test_a_deterministic_trainer_takes_the_same_step() -> None:
    batches = [[*records(), *text_records()]]
    wanted = one_step(model(), batches)
    seen: list[bool] = []
    try:
        for _ in range(2):
            net = model()
            net.model.backbone.register_forward_pre_hook(
                lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
            )
            step = one_step(net, batches, deterministic=True)
            assert [name for name, moved in step.items() if not torch.equal(moved, wanted[name])] == []
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen and all(seen)
