"""Distillation in a training step: when and about what a teacher teaches, how far features are, and that it helps."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sail import packed, records, text_records, tiny
from torch import Tensor

from sail_lightning.data.sources import LaboratorySource
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.losses import CosineDistillation, MSEDistillation
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.teachers import StudentTeacher


class Expert(Teacher):
    """Averages pixels; remembers how often it was asked, about which pictures, and in what surroundings."""

    def __init__(self, **schedule: Any) -> None:
        super().__init__()
        self.weight = 0.5
        for name, value in schedule.items():
            setattr(self, name, value)
        self.seen: list[Tensor] = []
        self.autocast: list[bool] = []

    def build(self, dims: Dims) -> Dims:
        self.channels = 3
        return dims

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return F.avg_pool2d(images.float() / 255, 8)


def model_at(step: int, teacher: Teacher) -> PixelSAIL:
    """A model in the middle of training, before this optimiser step."""
    model = tiny(teachers={"expert": teacher})
    model._trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=1, world_size=1)  # type: ignore[assignment]
    return model


def gradient(model: PixelSAIL, samples: list[Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
    loss = model.losses(packed(model, samples))[0]["expert"]
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


# -- every so many steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["vision", "mask"])
def test_a_teacher_that_teaches_in_every_third_step_weighs_three_times_as_much_there(tap: str) -> None:
    each, _ = gradient(model_at(0, Expert(tap=tap)), records())
    third = [gradient(model_at(step, Expert(tap=tap, every=3)), records())[0] for step in range(6)]
    assert [loss.item() for loss in third] == pytest.approx([3 * each.item(), 0, 0, 3 * each.item(), 0, 0])
    assert sum(third).item() == pytest.approx(6 * each.item()), "the same over six steps"


def test_e47_a_teacher_that_rests_is_not_asked_and_its_projection_has_gradients_of_zero() -> None:
    teacher = Expert(tap="mask", every=2)
    model = model_at(1, teacher)
    _, grads = gradient(model, records())
    assert teacher.seen == []
    own = [grads[f"distill.expert.{name}"] for name in ("weight", "bias")]
    assert all(grad is not None and not grad.any() for grad in own)


def test_pictures_without_masks_are_not_upsampled_for_a_teacher_that_rests() -> None:
    described = [record for record in records() if record.image is not None and not record.masks]
    asked = []
    for step in (0, 1):
        model = model_at(step, Expert(tap="mask", every=2))
        model.model.upsampler.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
        model.losses(packed(model, described))
    assert asked == [len(described), 0]


def test_all_batches_of_a_window_are_taught_or_none() -> None:
    model = model_at(4, Expert(every=2))
    for samples in (records(), records()[2:]):
        assert model.losses(packed(model, samples))[0]["expert"] > 0


def test_a_teacher_that_rests_shows_no_loss_and_one_that_does_not_shows_that_of_every_step() -> None:
    shown: list[dict[str, Tensor]] = []
    for every, step in ((1, 0), (2, 0), (2, 1)):
        model = model_at(step, Expert(every=every))
        model.log_dict = lambda values, **_: shown.append(values)  # type: ignore[method-assign]
        model.training_step(packed(model, records()), 0)
    assert shown[0]["train/expert"] == pytest.approx(shown[1]["train/expert"])
    assert "train/expert" not in shown[2]


# -- about some tasks -------------------------------------------------------------------------------------------------


def test_a_teacher_of_some_tasks_sees_the_pictures_of_their_samples_alone() -> None:
    pictures = [record for record in records() if record.image is not None]
    tasks = [{turn.task for turn in record.turns} for record in pictures]
    assert tasks == [{"vres", "refer"}, {"chat"}, {"refer"}]
    alone = [gradient(model_at(0, Expert()), [record])[0].item() for record in pictures]
    for wanted, expected in ((["refer"], alone[0] + alone[2]), (["chat"], alone[1]), (["caption"], 0.0)):
        teacher = Expert(tasks=wanted)
        loss, grads = gradient(model_at(0, teacher), records())
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert all(grad is not None for grad in grads.values() if grad is not None)
        assert sum(len(images) for images in teacher.seen) == sum(bool(own & set(wanted)) for own in tasks)


def test_pictures_that_are_not_taught_still_count_so_that_the_others_weigh_as_before() -> None:
    model = model_at(0, Expert(tasks=["chat"]))
    batch = packed(model, records())
    sums, counts = model.losses(batch)
    assert counts["expert"] == "images"
    assert batch.counts.images == 3
    assert sums["expert"] > 0


def test_words_alone_have_a_loss_of_zero() -> None:
    teacher = Expert(tasks=["refer"])
    loss, grads = gradient(model_at(0, teacher), text_records())
    assert loss == 0 and teacher.seen == []
    assert grads["distill.expert.weight"] is not None


def test_a_teacher_computes_in_its_own_dtype_under_autocast() -> None:
    teacher = Expert()
    model = model_at(0, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        model.losses(packed(model, records()))
    assert teacher.autocast and not any(teacher.autocast)


def test_a_checkpoint_is_loaded_without_a_teacher_whose_files_are_gone(tmp_path: Path) -> None:
    expert = tiny().save_pretrained(tmp_path / "expert")
    model = tiny(teachers={"expert": StudentTeacher(str(expert))})
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    shutil.rmtree(expert)
    with pytest.raises(SailError, match="no model folder"):
        PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt")
    again = PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt", teachers=None)
    ours, theirs = model.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not list(again.distill.parameters())


@pytest.mark.parametrize("name", ["language", "mask", "dice", "loss"])
def test_a_teacher_may_not_take_the_name_of_another_loss(name: str) -> None:
    with pytest.raises(SailUsageError, match=f"no teacher may be called {name}, as a loss of the model's own is"):
        tiny(teachers={name: Expert()})
    tiny(teachers={name: None})


# -- how far features are ---------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_cosine_is_blind_to_length_and_two_for_opposites(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(2, 5, 3, 4, generator=generator)
    lengths = 0.1 + torch.rand(2, 1, 3, 4, generator=generator)
    loss = CosineDistillation()
    torch.testing.assert_close(loss(lengths * teacher, teacher), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss(-lengths * teacher, teacher), torch.full((2,), 2.0), atol=1e-5, rtol=0)


def test_cosine_is_the_mean_angle_per_picture_on_the_students_grid() -> None:
    student, teacher = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 3)
    wanted = F.interpolate(teacher, (4, 6), mode="bilinear", align_corners=False)
    product = (student * wanted).sum(1) / (student.norm(dim=1) * wanted.norm(dim=1))
    torch.testing.assert_close(CosineDistillation()(student, teacher), 1 - product.mean((1, 2)))


@pytest.mark.parametrize("loss", [MSEDistillation(), CosineDistillation()])
def test_distillation_of_half_precision_is_computed_in_float32(loss: Any) -> None:
    student, teacher = torch.randn(2, 5, 4, 6).bfloat16(), torch.randn(2, 5, 2, 3).bfloat16()
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float()))


# -- it helps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [MSEDistillation(), CosineDistillation()])
def test_thirty_steps_on_fixed_pictures_bring_a_beginner_nearer_to_the_packaged_model(loss: Any) -> None:
    teachers: dict[str, Any] = {
        "mask_features": StudentTeacher("sail-tiny", "mask"),
        "vision_tokens": StudentTeacher("sail-tiny", "vision"),
    }
    model = tiny(teachers=teachers, max_side=64, distillation_loss=loss)
    source = LaboratorySource(samples=4, seed=3)
    batch = packed(model, [source[number] for number in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        sums, _ = model.losses(batch)
        total = torch.stack([sums[name] for name in teachers]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append([sums[name].item() for name in teachers])
    first, last = np.array(history[0]), np.array(history[-1])
    assert (last < 0.75 * first).all(), history
