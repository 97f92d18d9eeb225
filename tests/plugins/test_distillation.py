"""Distillation in a training step: when and about what a teacher teaches, how far features are, and that it helps."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import teacher_folders
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_sail import BACKBONE, packed, picture, records, text_records, tiny
from torch import Tensor

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.model.losses import CosineDistillation, MSEDistillation
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.teachers import StudentTeacher, TimmTeacher
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Sample, Turn


class Expert(Teacher):
    """Averages pixels; remembers how often it was asked, about which images, and in what surroundings."""

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
    each, _ = gradient(model_at(0, Expert(student_features=tap)), records())
    third = [gradient(model_at(step, Expert(student_features=tap, every_n_steps=3)), records())[0] for step in range(6)]
    assert [loss.item() for loss in third] == pytest.approx([3 * each.item(), 0, 0, 3 * each.item(), 0, 0])
    assert sum(third).item() == pytest.approx(6 * each.item()), "the same over six steps"


def test_e47_a_teacher_that_rests_is_not_asked_and_its_projection_has_gradients_of_zero() -> None:
    teacher = Expert(student_features="mask", every_n_steps=2)
    model = model_at(1, teacher)
    _, grads = gradient(model, records())
    assert teacher.seen == []
    own = [grads[f"distill.expert.{name}"] for name in ("weight", "bias")]
    assert all(grad is not None and not grad.any() for grad in own)


def test_images_without_masks_are_not_upsampled_for_a_teacher_that_rests() -> None:
    described = [record for record in records() if record.image is not None and not record.masks]
    asked = []
    for step in (0, 1):
        model = model_at(step, Expert(student_features="mask", every_n_steps=2))
        model.model.upsampler.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
        model.losses(packed(model, described))
    assert asked == [len(described), 0]


def test_all_batches_of_a_window_are_taught_or_none() -> None:
    model = model_at(4, Expert(every_n_steps=2))
    for samples in (records(), records()[2:]):
        assert model.losses(packed(model, samples))[0]["expert"] > 0


def test_a_teacher_that_rests_shows_no_loss_and_one_that_does_not_shows_that_of_every_step() -> None:
    shown: list[dict[str, Tensor]] = []
    for every, step in ((1, 0), (2, 0), (2, 1)):
        model = model_at(step, Expert(every_n_steps=every))
        model.log_dict = lambda values, **_: shown.append(values)  # type: ignore[method-assign]
        model.training_step(packed(model, records()), 0)
    assert shown[0]["train/expert"] == pytest.approx(shown[1]["train/expert"])
    assert "train/expert" not in shown[2]


# -- about some tasks -------------------------------------------------------------------------------------------------


def test_a_teacher_of_some_tasks_sees_the_images_of_their_samples_alone() -> None:
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


def test_images_that_are_not_taught_still_count_so_that_the_others_weigh_as_before() -> None:
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
    for changes in ({}, {"teachers": None}):
        again = PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt", **changes)
        ours, theirs = model.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert not list(again.distill.parameters())


@pytest.mark.parametrize("name", ["language", "mask", "dice", "loss"])
def test_a_teacher_may_not_take_the_name_of_another_loss(name: str) -> None:
    with pytest.raises(SailUsageError, match=f"no teacher may be called {name}, as a loss of the model's own is"):
        tiny(teachers={name: Expert()})
    tiny(teachers={name: None})


@pytest.mark.parametrize("name", ["", "sam.2", "values", "teachers"])
def test_a_teachers_name_must_be_one_that_a_module_can_have(name: str) -> None:
    with pytest.raises(SailUsageError, match=f"no teacher may be called '{name}'; choose another name"):
        tiny(teachers={name: Expert()})


# -- teachers are made where training begins --------------------------------------------------------------------------


def trainer(steps: int = 2, **settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    bare: dict[str, Any] = {"enable_checkpointing": False, "use_distributed_sampler": False, "limit_val_batches": 0}
    return L.Trainer(accelerator="cpu", max_steps=steps, **(quiet | bare | settings))


def data(**asked: Any) -> SailDataModule:
    source = LaboratorySource("val", samples=2)
    return SailDataModule(LaboratorySource(), source, source, token_budget=300, **asked)


def student(folder: Path) -> PixelSAIL:
    """As the command line makes it: nothing is built."""
    parts = (SailQwen(**BACKBONE), DeconvUpsampler(), PromptInjection(num_prompts=4))
    teachers: dict[str, Teacher | None] = {"expert": StudentTeacher(str(folder))}
    return PixelSAIL(*parts, teachers, mask_channels=12, max_side=48, max_new_tokens=6)


Taught = tuple[Path, Path, dict[str, Tensor]]


@pytest.fixture
def taught(tmp_path: Path) -> Taught:
    """A checkpoint of a model that a stored one taught, the folder of that, and the projection."""
    folder = tiny().save_pretrained(tmp_path / "expert")
    model, runner = student(folder), trainer()
    runner.fit(model, data())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt", folder, {name: value.clone() for name, value in model.distill.state_dict().items()}


class Beginning(L.Callback):
    """Keeps the projections that training begins with."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.projections = {name: value.clone() for name, value in pl_module.distill.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_answering_needs_no_teacher(verb: str, taught: Taught, tmp_path: Path) -> None:
    ckpt, folder, _ = taught
    shutil.rmtree(folder)
    Image.fromarray(picture(24, 40)).save(tmp_path / "picture.png")
    model = student(folder)
    asked = data(images=str(tmp_path / "picture.png"), text="find the circle.")
    getattr(trainer(limit_val_batches=1), verb)(model, datamodule=asked, ckpt_path=ckpt, weights_only=True)
    stored = torch.load(ckpt, weights_only=True)["state_dict"]
    left_out = {"distill.expert.weight", "distill.expert.bias"}
    assert left_out < stored.keys()
    assert equal(model.state_dict(), {name: value for name, value in stored.items() if name not in left_out})


def test_training_goes_on_with_its_projections_and_not_without_the_teacher(taught: Taught) -> None:
    ckpt, folder, projections = taught
    beginning = Beginning()
    trainer(3, callbacks=[beginning]).fit(student(folder), data(), ckpt_path=ckpt, weights_only=True)
    assert equal(beginning.projections, projections)
    shutil.rmtree(folder)
    with pytest.raises(SailError, match=f"^no model folder {folder}"):
        trainer(3).fit(student(folder), data(), ckpt_path=ckpt, weights_only=True)


def test_a_model_that_was_loaded_trains_on_with_the_projections_of_its_checkpoint(taught: Taught) -> None:
    ckpt, _, projections = taught
    beginning = Beginning()
    model = PixelSAIL.load_from_checkpoint(ckpt)
    trainer(limit_val_batches=1).validate(model, datamodule=data(), verbose=False)
    assert not list(model.distill.parameters())
    trainer(1, callbacks=[beginning]).fit(model, data())
    assert equal(beginning.projections, projections)


def test_a_projection_to_another_teacher_does_not_fit(taught: Taught) -> None:
    model = PixelSAIL.load_from_checkpoint(taught[0], teachers={"expert": Expert()})
    with pytest.raises(SailError, match=r"projection to teacher expert .* does not fit: .*weight 12 x 12 instead of 3"):
        model.configure_teachers()


@pytest.mark.parametrize("name", ["model.mask_head.extra", "distillery.weight"])
def test_nothing_but_projections_is_left_out_of_a_checkpoint(name: str, taught: Taught) -> None:
    stored = torch.load(taught[0], weights_only=True)
    stored["state_dict"][name] = torch.zeros(1)
    torch.save(stored, taught[0])
    with pytest.raises(RuntimeError, match=rf"Unexpected key\(s\) in state_dict: \"{name}\""):
        PixelSAIL.load_from_checkpoint(taught[0])


def test_weights_are_loaded_as_strategies_do_that_ask_no_hook_of_ours(taught: Taught) -> None:
    ckpt, folder, projections = taught
    model = student(folder)
    model.configure_model()
    model.load_state_dict(torch.load(ckpt, weights_only=True)["state_dict"], strict=True)
    model.configure_teachers()
    assert equal(dict(model.distill.state_dict()), projections)


def test_a_model_that_was_loaded_is_saved_again_with_its_projections(taught: Taught, tmp_path: Path) -> None:
    ckpt, _, projections = taught
    model, runner = PixelSAIL.load_from_checkpoint(ckpt), trainer(limit_val_batches=1)
    runner.validate(model, datamodule=data(), verbose=False)
    runner.save_checkpoint(tmp_path / "again.ckpt")
    again = PixelSAIL.load_from_checkpoint(tmp_path / "again.ckpt")
    again.configure_teachers()
    assert equal(dict(again.distill.state_dict()), projections)


def test_teachers_are_made_where_the_model_is() -> None:
    parts = (SailQwen(**BACKBONE), DeconvUpsampler(), PromptInjection(num_prompts=4))
    model = PixelSAIL(*parts, {"expert": TimmTeacher("test_convnext", resize=64, layer=0)})
    model.configure_model()
    model.to("meta")
    model.configure_teachers()
    made = [*model.distill.parameters(), *model.distill.teachers["expert"].parameters()]
    assert {parameter.device.type for parameter in made} == {"meta"}


def test_a_loop_of_ones_own_is_told_to_make_the_teachers_first() -> None:
    parts = (SailQwen(**BACKBONE), DeconvUpsampler(), PromptInjection(num_prompts=4))
    model = PixelSAIL(*parts, {"expert": Expert()})
    batch = packed(model, records())
    with pytest.raises(SailUsageError, match=r"the teachers are not made yet; call configure_teachers\(\)"):
        model.losses(batch)
    model.configure_teachers()
    projection = model.distill["expert"]
    model.configure_teachers()
    assert model.distill["expert"] is projection, "made once"
    assert model.losses(batch)[0]["expert"] > 0


# -- a stored model as a teacher --------------------------------------------------------------------------------------

WITHOUT_LIGHTNING = """
import pickle, sys, torch
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers import StudentTeacher
teacher = StudentTeacher("sail-tiny", sys.argv[1])
teacher.build(Dims())
images = torch.arange(2 * 3 * 32 * 48).remainder(251).to(torch.uint8).view(2, 3, 32, 48)
torch.save(pickle.loads(pickle.dumps(teacher))(images), sys.argv[2])
print(sorted({"lightning", "pytorch_lightning", "sail_lightning.module"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("tap", ["vision", "mask"])
def test_a_stored_model_teaches_without_lightning_what_it_sees(tap: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITHOUT_LIGHTNING, tap, str(tmp_path / "features.pt")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    model = PixelSAIL.from_pretrained("sail-tiny")
    asked = [Sample(one.permute(1, 2, 0).numpy(), (Turn("where?", "nowhere."),)) for one in teacher_folders.PICTURES]
    with torch.no_grad():
        output = model.model(packed(model, asked), {tap})
    (group,) = output.vision if tap == "vision" else output.mask
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), group.maps, atol=1e-5, rtol=1e-5)


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


def test_cosine_is_the_mean_angle_per_image_on_the_students_grid() -> None:
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
def test_thirty_steps_on_fixed_images_bring_a_beginner_nearer_to_the_packaged_model(loss: Any) -> None:
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
