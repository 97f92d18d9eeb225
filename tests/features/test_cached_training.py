"""Training with a cache is training with the teacher itself, within the error that features.json states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import teacher_folders
import torch
from tiny_sail import packed, picture, records, tiny

from sail_lightning.data.sources import LaboratorySource
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.features.extract import extract, settings_for
from sail_lightning.features.images import locate_images
from sail_lightning.features.measure import measure
from sail_lightning.features.store import FeatureStore, FeatureWriter, Summary
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.teachers import CachedTeacher, TimmTeacher
from sail_lightning.sample import Sample, Turn

COUNT, STEPS = 6, 4
SOURCE = LaboratorySource(samples=COUNT, seed=5)


def live(tap: Any = "mask") -> TimmTeacher:
    return TimmTeacher("test_convnext", resize=64, layer=0, student_features=tap)


def encoder() -> Encoder:
    return tiny(max_side=64).encoder


def filled(folder: Path, teacher: Teacher, stored_as: str, stride: int | None = None) -> Summary:
    teacher.build(Dims())
    wanted, _ = locate_images(SOURCE, COUNT, "laboratory", lambda *_: None)
    with FeatureWriter(folder, settings_for(teacher, encoder(), stored_as, stride)) as writer:
        extract(SOURCE, encoder(), teacher, writer, wanted)
    return writer.written


def trained(teacher: Teacher) -> tuple[list[float], PixelSAIL]:
    """Distillation losses of a few steps on images of the source, alone and together."""
    model = tiny(teachers={"expert": teacher}, max_side=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(STEPS):
        sums, _ = model.losses(packed(model, [SOURCE[number % COUNT] for number in range(step, step + 3)]))
        optimizer.zero_grad()
        torch.stack(list(sums.values())).sum().backward()
        optimizer.step()
        losses.append(sums["expert"].item() / 3)
    return losses, model


@pytest.mark.parametrize("stored_as", ["float16", "int8"])
@pytest.mark.parametrize("tap", ["vision", "mask"])
def test_losses_are_those_of_the_live_teacher_within_the_stated_error(stored_as: str, tap: Any, tmp_path: Path) -> None:
    summary = filled(tmp_path / "f", live(tap), stored_as)
    ours, _ = trained(CachedTeacher(str(tmp_path / "f")))
    theirs, _ = trained(live(tap))
    # The loss is a mean square: its root moves by no more than the largest error of a feature. Later steps start from
    # weights that differ a little, by a part of the loss's own gradient.
    roots = np.abs(np.sqrt(ours) - np.sqrt(theirs))
    assert roots[0] <= summary.error.largest
    assert (roots <= 2 * summary.error.largest).all()
    assert ours == pytest.approx(theirs, rel=10 * summary.error.relative)


def test_a_cache_at_the_students_stride_teaches_the_same_in_less_room(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole", live("vision"), "float16")
    strided = filled(tmp_path / "strided", live("vision"), "float16", stride=8)
    assert strided.bytes < 0.5 * whole.bytes
    ours, _ = trained(CachedTeacher(str(tmp_path / "strided")))
    assert ours == pytest.approx(trained(live("vision"))[0], rel=1e-3)


def test_a_cache_knows_which_features_it_teaches_unless_told(tmp_path: Path) -> None:
    filled(tmp_path / "f", live("mask"), "float16")
    for given, tap in ((None, "mask"), ("vision", "vision")):
        teacher = CachedTeacher(str(tmp_path / "f"), given)  # type: ignore[arg-type]
        teacher.build(Dims())
        assert (teacher.student_features, teacher.channels) == (tap, 24)


def test_a_cache_is_in_no_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path / "f", live(), "int8")
    model = tiny(teachers={"expert": CachedTeacher(str(tmp_path / "f"))}, max_side=64)
    assert [name for name in model.state_dict() if "expert" in name] == ["distill.expert.weight", "distill.expert.bias"]


def test_an_image_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    teacher_folders.cache(tmp_path / "f", [picture(24, 40, 9).transpose(2, 0, 1)])
    model = tiny(teachers={"expert": CachedTeacher(str(tmp_path / "f"))})
    with pytest.raises(SailError) as caught:
        model.losses(packed(model, records()[:1]))
    assert str(caught.value) == (
        f"records 0: CachedTeacher: an image of 40 x 24 pixels is not among the 1 in {tmp_path / 'f'}, seen with "
        "patches of 8 and a longest side of 48 pixels; run sail-lightning features again, with this config"
    )


def test_records_of_images_that_are_not_there_are_named_and_no_others(tmp_path: Path) -> None:
    shown = [picture(24, 40, seed) for seed in range(8)]
    teacher_folders.cache(tmp_path / "f", [shown[number].transpose(2, 0, 1) for number in (1, 3)])
    model = tiny(teachers={"expert": CachedTeacher(str(tmp_path / "f"), tasks=["refer"])})
    pairs = [(shown[0], shown[1]), shown[2], *[(one,) for one in shown[3:]]]
    asked = [Sample(one, (Turn("what?", "a shape.", "refer"),), source="set", id=str(n)) for n, one in enumerate(pairs)]
    rested = Sample(picture(24, 40, 9), (Turn("what?", "a shape.", "chat"),), source="set", id="rested")
    with pytest.raises(SailError, match=r"^set 0, set 1, set 3, set 4 and 2 more: CachedTeacher: an image"):
        model.losses(packed(model, [rested, *asked]))
    nameless = Sample(shown[0], (Turn("what?", "a shape.", "refer"),))
    with pytest.raises(SailError, match="^CachedTeacher: an image"):
        model.losses(packed(model, [nameless]))


def test_another_size_of_the_student_is_another_image(tmp_path: Path) -> None:
    filled(tmp_path / "f", live(), "float16")
    model = tiny(teachers={"expert": CachedTeacher(str(tmp_path / "f"))}, max_side=48)
    with pytest.raises(SailError, match="of 48 x 48 pixels is not among the 6 in .* a longest side of 64 pixels"):
        model.losses(packed(model, [SOURCE[0]]))


def test_faults_of_a_cache_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"none has no features\.json"):
        CachedTeacher(str(tmp_path / "none")).build(Dims())
    with pytest.raises(SailUsageError, match="CachedTeacher: every_n_steps must be 1 or more"):
        CachedTeacher("f", every_n_steps=0)


def test_live_and_cached_teachers_are_measured_on_the_same_images(tmp_path: Path) -> None:
    expert = live()
    summary = filled(tmp_path / "f", expert, "int8")
    cached = CachedTeacher(str(tmp_path / "f"))
    cached.build(Dims())
    pixels = [np.ascontiguousarray(SOURCE[number].image.transpose(2, 0, 1)) for number in range(COUNT)]  # type: ignore
    found = measure(expert, cached, pixels, summary.bytes_per_image, repeats=1)
    assert found.live > 0 and found.cached > 0
    assert found.largest_difference == pytest.approx(summary.error.largest, rel=1e-3)
    assert found.bytes_per_image == summary.bytes / len(FeatureStore(tmp_path / "f"))
    assert f"{found.speedup:.1f} times faster" in found.to_text()


def test_a_cache_on_the_students_grid_is_compared_there(tmp_path: Path) -> None:
    expert = live()
    summary = filled(tmp_path / "f", expert, "float16", stride=16)
    cached = CachedTeacher(str(tmp_path / "f"))
    cached.build(Dims())
    pixels = [np.ascontiguousarray(SOURCE[number].image.transpose(2, 0, 1)) for number in range(COUNT)]  # type: ignore
    assert cached(torch.from_numpy(pixels[0])[None]).shape != expert(torch.from_numpy(pixels[0])[None]).shape
    found = measure(expert, cached, pixels, summary.bytes_per_image, repeats=1)
    assert 0 < found.largest_difference == pytest.approx(summary.error.largest, rel=1e-3)
