"""Teachers from timm: frozen, in their own normalisation, from local weights only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers import TimmTeacher

IMAGES = torch.arange(2 * 3 * 40 * 56).remainder(251).to(torch.uint8).view(2, 3, 40, 56)


def built(model: str = "test_convnext", **settings: object) -> TimmTeacher:
    teacher = TimmTeacher(model, **settings)  # type: ignore[arg-type]
    dims = Dims(hidden_size=8, patch_size=16)
    assert teacher.build(dims) == dims, "a teacher publishes nothing to the student"
    return teacher


class Recorder(nn.Module):
    """Stands in for a network: keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        self.pixels = pixels
        return [pixels]


@pytest.mark.parametrize("model", ["test_convnext", "test_vit", "resnet10t"])
def test_features_have_the_published_channels(model: str) -> None:
    teacher = built(model, resize=64)
    features = teacher(IMAGES)
    assert features.shape[:2] == (2, teacher.channels)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_a_network_that_puts_channels_last_is_turned() -> None:
    teacher = built("swin_tiny_patch4_window7_224", resize=64)
    assert teacher.channels == 768
    assert teacher(IMAGES[:1]).shape == (1, 768, 2, 2)


def test_layers_are_chosen_from_the_end_or_the_start() -> None:
    sizes = {layer: tuple(built(layer=layer, resize=64)(IMAGES).shape[1:]) for layer in (0, -2, -1)}
    assert sizes == {0: (24, 16, 16), -2: (48, 4, 4), -1: (64, 2, 2)}


def test_images_are_resized_to_the_models_own_input_size_or_the_one_given() -> None:
    for resize, side in ((None, 160), (96, 96)):
        teacher = built(resize=resize)
        recorder = teacher.network = Recorder()
        teacher(IMAGES)
        assert recorder.pixels.shape == (2, 3, side, side)


def test_pixels_are_normalised_as_the_model_was_trained() -> None:
    teacher = built("vit_tiny_patch16_224", resize=32)
    recorder = teacher.network = Recorder()
    teacher(torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    # Its mean and deviation are 0.5 each, unlike those of ImageNet.
    expected = torch.tensor([-1.0, 1.0, -0.6]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(recorder.pixels, expected)


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode() -> None:
    teacher = built("resnet10t", resize=64)
    statistics = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    teacher.train()
    features = teacher(IMAGES)
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in teacher.named_buffers())


def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    teacher = built(resize=64)
    torch.testing.assert_close(teacher(IMAGES)[1:], teacher(IMAGES[1:]), atol=1e-5, rtol=1e-5)


def test_a_model_in_bfloat16_takes_the_same_images() -> None:
    teacher = built(resize=64).bfloat16()
    assert teacher(IMAGES).dtype == torch.bfloat16


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("model", ["test_convnext", "test_vit"])
def test_weights_come_from_a_local_file(model: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source: Any = timm.create_model(model).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    teacher = built(model, weights=str(path))
    features = teacher(IMAGES)
    recorder = teacher.network = Recorder()
    teacher(IMAGES)
    expected = source.forward_intermediates(recorder.pixels, intermediates_only=True, norm=False)[-1]
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_without_weights_it_says_that_it_is_random_and_repeats_by_seed(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = built(resize=64)(IMAGES)
    assert "test_convnext has no weights file: it is random, with seed 0" in caplog.text
    assert torch.equal(torch.get_rng_state(), before), "the run's own random numbers do not depend on teachers"
    assert torch.equal(built(resize=64)(IMAGES), first)
    assert not torch.equal(built(resize=64, seed=1)(IMAGES), first)


def test_an_unknown_model_is_answered_with_close_names() -> None:
    with pytest.raises(SailUsageError, match=r"no model 'resnt18'; close are resnet18"):
        built("resnt18")


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(SailUsageError, match="test_convnext gives no features of layer 9"):
        built(layer=9)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"test_convnext: no weights file .*missing\.pth"):
        built(weights=str(tmp_path / "missing.pth"))


def test_a_file_without_some_of_the_weights_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_convnext").state_dict()
    part = {name: tensor for name, tensor in state.items() if not name.startswith("stages.3.")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(SailError, match=r"part\.safetensors lacks \d+ of \d+ weights, such as stages_3.*this model\?"):
        built(weights=str(tmp_path / "part.safetensors"))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(SailError, match=r"test_convnext: .*other\.safetensors (lacks|cannot be loaded)"):
        built(weights=str(tmp_path / "other.safetensors"))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_text("not weights")
    with pytest.raises(SailError, match=r"broken\.pth cannot be loaded"):
        built(weights=str(tmp_path / "broken.pth"))
