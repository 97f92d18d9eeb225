"""Teachers from folders of Hugging Face and of Pixel-SAIL: the library's own numbers, strict loading, no network."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import teacher_folders
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_sail import packed, picture, tiny
from torch import Tensor

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.plugins.teachers import Mask2FormerTeacher, RADIOTeacher, SAM2Teacher, StudentTeacher
from sail_lightning.sample import Sample, Turn

EXPERTS: dict[str, type[Any]] = {
    "Mask2FormerTeacher": Mask2FormerTeacher,
    "SAM2Teacher": SAM2Teacher,
    "RADIOTeacher": RADIOTeacher,
}
EXACT, RESAMPLING = 1e-5, 2e-2
"""Relative errors. Where an image is resized, both round to whole levels, and differ by one at few of the pixels."""
SMALL = {"Mask2FormerTeacher": {"resize": 64}}


def built(name: str, folder: Path | str | None = None, **changes: Any) -> Any:
    arguments = {"folder": str(folder or teacher_folders.folder_for(name))} | SMALL.get(name, {}) | changes
    teacher: Teacher = EXPERTS[name](**arguments)
    assert teacher.build(Dims()) == Dims(), "a teacher publishes nothing to the student"
    return teacher


def smooth(height: int, width: int) -> Tensor:
    """An image (1, 3, height, width) uint8 without hard edges, as photographs are."""
    coarse = torch.from_numpy(picture(5, 7)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


# -- the library's own numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "side", "tolerance"),
    [(45, 70, 800, RESAMPLING), (96, 24, 800, RESAMPLING), (64, 96, 64, EXACT)],
)
@torch.no_grad()
def test_mask2former_is_the_librarys_with_its_own_image_processor(
    height: int, width: int, side: int, tolerance: float, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    model, images = teacher_folders.mask2former(tmp_path), smooth(height, width)
    sizes = {} if side == 800 else {"size": {"shortest_edge": side, "longest_edge": round(side * 1333 / 800)}}
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(images[0], return_tensors="pt", **sizes)
    expected = model(**inputs).pixel_decoder_last_hidden_state
    assert relative(built("Mask2FormerTeacher", tmp_path, resize=side)(images), expected) < tolerance


@pytest.mark.parametrize(
    ("height", "width", "tolerance"), [(45, 70, RESAMPLING), (200, 150, RESAMPLING), (128, 128, EXACT)]
)
@torch.no_grad()
def test_sam2_is_the_librarys_image_embedding_with_its_own_image_processor(
    height: int, width: int, tolerance: float, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    model, images = teacher_folders.sam2(tmp_path), smooth(height, width)
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(images[0], return_tensors="pt")
    expected = model.get_image_embeddings(inputs["pixel_values"])[-1]
    assert relative(built("SAM2Teacher", tmp_path)(images), expected) < tolerance


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (80, 48), (128, 128)])
@torch.no_grad()
def test_radio_is_the_librarys_at_every_resolution(height: int, width: int, tmp_path: Path) -> None:
    model, images = teacher_folders.radio(tmp_path), smooth(height, width)
    expected = model(images.float() / 255).features.unflatten(1, (height // 16, width // 16)).permute(0, 3, 1, 2)
    assert relative(built("RADIOTeacher", tmp_path)(images), expected) < 1e-5


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 800]))
@settings(max_examples=300)
def test_mask2formers_input_size_is_that_of_its_image_processor(height: int, width: int, side: int) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    teacher = Mask2FormerTeacher("folder", resize=side)
    longest = 1333 if side == 800 else round(side * 1333 / 800)
    rows, columns = get_size_with_aspect_ratio((height, width), side, longest)
    if min(rows, columns) > 0:
        assert teacher.input_size((height, width)) == (math.ceil(rows / 32) * 32, math.ceil(columns / 32) * 32)


def test_official_sizes_are_the_defaults(tmp_path: Path) -> None:
    assert Mask2FormerTeacher("folder").input_size((480, 640)) == (800, 1088)
    assert (Mask2FormerTeacher("folder").student_features, SAM2Teacher("folder").student_features) == ("mask", "vision")
    from transformers import Sam2VisionConfig

    assert Sam2VisionConfig().backbone_config.image_size == [1024, 1024]


def test_radio_takes_an_image_at_the_nearest_size_that_it_knows_or_as_a_square() -> None:
    assert built("RADIOTeacher").input_size((30, 70)) == (32, 64)
    assert built("RADIOTeacher").input_size((3, 70)) == (16, 64)
    assert built("RADIOTeacher", resize=64).input_size((30, 70)) == (64, 64)


# -- RADIO's published folder -----------------------------------------------------------------------------------------


def published(folder: Path, version: str) -> Any:
    """A RADIO-B of one layer as it is published: no sizes in its config, but code that must not run."""
    model = teacher_folders.radio(
        folder, hidden_size=768, num_attention_heads=12, num_hidden_layers=1, max_img_size=64, mlp_ratio=0.25
    )
    auto = {"AutoModel": "hf_model.RADIOModel", "AutoConfig": "hf_model.RADIOConfig"}
    config = {"architectures": ["RADIOModel"], "auto_map": auto, "version": version, "patch_size": 16, "args": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_model.py").write_text("raise AssertionError('remote code was run')\n")
    state = load_file(folder / "model.safetensors")
    state = {name: value for name, value in state.items() if "layer_scale" not in name}
    state["radio_model.summary_idxs"] = torch.tensor([0, 1])
    state["radio_model.adaptors.clip.head.weight"] = torch.zeros(2, 2)
    save_file(state, folder / "model.safetensors")
    for layer in model.encoder.layer:
        for scale in (layer.layer_scale1, layer.layer_scale2):
            scale.lambda1.data.fill_(1.0)
    return model


@torch.no_grad()
def test_radios_published_folder_is_read_and_its_code_is_not_run(tmp_path: Path) -> None:
    model, images = published(tmp_path, "c-radio_v4-h"), smooth(32, 48)
    expected = model(images.float() / 255).features.unflatten(1, (2, 3)).permute(0, 3, 1, 2)
    assert relative(built("RADIOTeacher", tmp_path)(images), expected) < 1e-5


@pytest.mark.parametrize(
    ("version", "given", "aligned"),
    [
        ("radio_v2.5-l", None, True),
        ("c-radio_v3-b", None, True),
        ("c-radio_v3-l", None, False),
        ("c-radio_v4-h", None, False),
        ("radio_v2.5-l", False, False),
        ("c-radio_v4-h", True, True),
    ],
)
def test_radios_positions_are_resized_as_its_version_does_or_as_told(
    version: str, given: bool | None, aligned: bool, tmp_path: Path
) -> None:
    published(tmp_path, version)
    generator = built("RADIOTeacher", tmp_path, align_corners=given).network.patch_generator
    table = generator.pos_embed.detach().unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    square = F.interpolate(table, (3, 3), mode="bilinear", align_corners=aligned)
    torch.testing.assert_close(generator.positions(2, 3), square[:, :, :2].flatten(2).mT)
    torch.testing.assert_close(generator.positions(4, 4), generator.pos_embed)


def test_a_radio_that_is_built_otherwise_is_refused(tmp_path: Path) -> None:
    teacher_folders.radio(tmp_path, use_swiglu_ffn=True)
    with pytest.raises(SailError, match="no RADIO that is known here: it lacks or has an unknown blocks.0.mlp.fc1"):
        built("RADIOTeacher", tmp_path)


def test_windowed_attention_is_refused(tmp_path: Path) -> None:
    teacher_folders.radio(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vitdet_window_size": 8}))
    with pytest.raises(SailError, match="asks for windowed attention"):
        built("RADIOTeacher", tmp_path)


# -- strict, local, frozen --------------------------------------------------------------------------------------------


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


NAMES = {
    "Mask2FormerTeacher": "model.pixel_level_module.decoder.mask_projection.bias",
    "SAM2Teacher": "vision_encoder.neck.convs.0.bias",
    "RADIOTeacher": "radio_model.model.blocks.1.attn.proj.bias",
}


@pytest.mark.parametrize("name", EXPERTS)
def test_a_weight_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    teacher_folders.MAKERS[name](tmp_path)
    change(tmp_path, lambda state: state.pop(NAMES[name]))
    last = NAMES[name].split(".", 3)[-1]
    with pytest.raises(SailError, match=rf"(lacks weights|missing).*{last}"):
        built(name, tmp_path)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_weight_that_is_foreign_is_named(name: str, tmp_path: Path) -> None:
    teacher_folders.MAKERS[name](tmp_path)
    change(tmp_path, lambda state: state.update({"stranger.weight": torch.zeros(2)}))
    with pytest.raises(SailError, match=r"(foreign weights|unexpected).*stranger\.weight"):
        built(name, tmp_path)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_weight_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    teacher_folders.MAKERS[name](tmp_path)
    change(tmp_path, lambda state: state.update({NAMES[name]: torch.zeros(5)}))
    last = NAMES[name].split(".", 3)[-1]
    with pytest.raises(SailError, match=rf"(misshapen weights|other shapes).*{last}"):
        built(name, tmp_path)


@pytest.mark.parametrize("name", EXPERTS)
def test_missing_and_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(SailError, match=rf"{name}: .*nowhere has no config\.json"):
        built(name, tmp_path / "nowhere")
    teacher_folders.MAKERS[name](tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SailError, match=r"cannot be loaded|is damaged"):
        built(name, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SailError, match=r"model\.safetensors"):
        built(name, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SailError, match=r"config\.json is damaged"):
        built(name, tmp_path)


def test_a_folder_of_another_model_is_named() -> None:
    folder = teacher_folders.folder_for("SAM2Teacher")
    with pytest.raises(SailError, match="holds a model of type sam2, not mask2former"):
        built("Mask2FormerTeacher", folder)


@pytest.mark.parametrize("name", EXPERTS)
def test_nothing_is_asked_of_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = teacher_folders.folder_for(name)

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    built(name, folder)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_is_frozen_and_stays_in_evaluation_mode(name: str) -> None:
    teacher = built(name)
    teacher.train()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert not teacher(teacher_folders.PICTURES).requires_grad


@pytest.mark.parametrize("name", EXPERTS)
def test_many_images_are_looked_at_a_few_at_once_with_the_same_result(name: str) -> None:
    teacher = built(name)
    whole = teacher(teacher_folders.PICTURES)
    teacher.at_once = 1
    torch.testing.assert_close(teacher(teacher_folders.PICTURES), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_computes_in_its_own_dtype_whatever_is_current(name: str) -> None:
    exact = built(name)(teacher_folders.PICTURES)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does for bf16-true
    try:
        again = built(name)
        half = built(name, dtype="bfloat16")
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        on_meta = built(name)
    assert torch.equal(again(teacher_folders.PICTURES), exact)
    assert torch.equal(on_meta(teacher_folders.PICTURES), exact)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    features = half(teacher_folders.PICTURES)
    assert features.dtype == torch.bfloat16
    assert relative(features.float(), exact) < 0.1


def test_what_cannot_be_set_is_one_sentence() -> None:
    with pytest.raises(SailUsageError, match="SAM2Teacher: every_n_steps must be 1 or more, not 0"):
        built("SAM2Teacher", every_n_steps=0)
    with pytest.raises(SailUsageError, match="SAM2Teacher: tasks.0. must be one of refer, .*, not 'referring'"):
        built("SAM2Teacher", tasks=["referring"])
    with pytest.raises(SailUsageError, match="SAM2Teacher: dtype must be one of float32, .*, not 'half'"):
        built("SAM2Teacher", dtype="half")


# -- a Pixel-SAIL as the expert ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A model and its folder."""
    model = tiny().eval()
    return model, str(model.save_pretrained(tmp_path_factory.mktemp("expert") / "folder"))


@pytest.mark.parametrize("tap", ["vision", "mask"])
@torch.no_grad()
def test_a_model_teaches_what_it_sees_itself_whatever_is_asked(tap: Any, expert: tuple[Any, str]) -> None:
    model, folder = expert
    pictures = [picture(24, 40, seed) for seed in range(3)]
    asked = [Sample(one, (Turn("where is the red circle?", "nowhere."),)) for one in pictures]
    output = model.model(packed(model, asked), {tap})
    (group,) = output.vision if tap == "vision" else output.mask
    teacher = StudentTeacher(folder, tap)
    teacher.build(Dims())
    features = teacher(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    assert features.shape[1] == teacher.channels
    torch.testing.assert_close(features, group.maps, atol=1e-5, rtol=1e-5)


def test_a_model_is_shown_images_at_the_size_it_was_made_for(expert: tuple[Any, str]) -> None:
    teacher = StudentTeacher(expert[1])
    teacher.build(Dims())
    assert teacher.input_size((96, 60)) == (48, 32)
    assert teacher(smooth(96, 60)).shape[-2:] == (48 // 4, 32 // 4)


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SailError, match="no model folder"):
        StudentTeacher(str(tmp_path / "none")).build(Dims())
