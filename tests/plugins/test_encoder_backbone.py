"""`EncoderBackbone`: a timm encoder and a projector in place of the patch embedding, and nothing else changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_sail import BACKBONE, packed, picture, records, text_records, tiny
from torch import Tensor, nn

from sail_lightning import Box, PixelSAIL
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import patchify
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.backbones import EncoderBackbone
from sail_lightning.training.optim import parameter_groups

GRIDS = [(2, 3), (1, 1), (2, 3), (1, 2)]


def encoder_backbone(encoder: str = "test_vit", **settings: Any) -> EncoderBackbone:
    return EncoderBackbone(encoder=encoder, **(BACKBONE | settings))


def built(encoder: str = "test_vit", **settings: Any) -> EncoderBackbone:
    backbone = encoder_backbone(encoder, **settings)
    backbone.build(Dims(vocab_size=40))
    return backbone.eval()


def pictures(patch: int, grids: list[tuple[int, int]] = GRIDS) -> tuple[Tensor, list[np.ndarray]]:
    """Images (H, W, 3) of these grids, and their patches in one row."""
    images = [picture(rows * patch, columns * patch, seed) for seed, (rows, columns) in enumerate(grids)]
    return torch.from_numpy(np.concatenate([patchify(image, patch)[0] for image in images])), images


def stored(encoder: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, str]:
    """A whole classifier, as timm makes it, with every weight away from its start, and a file of it."""
    torch.manual_seed(7)
    options = {"dynamic_img_size": True} if "vit" in encoder and "relpos" not in encoder else {}
    model = timm.create_model(encoder, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    path = folder / f"{encoder}.safetensors"
    save_file({name: value.contiguous().to(dtype) for name, value in model.state_dict().items()}, path)
    return model, str(path)


def by_hand(model: nn.Module, image: np.ndarray, size: tuple[int, int] | None, layer: int) -> Tensor:
    """Features (C, h, w) of an image (H, W, 3), from the whole classifier."""
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - mean) / std
    if size is not None:
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        return model.forward_intermediates(pixels, indices=[layer], intermediates_only=True, stop_early=True)[0][0]


@pytest.mark.parametrize(
    ("encoder", "layer", "patch", "size"),
    [
        ("test_vit", -1, 16, None),  # with a class token, of any size
        ("test_vit", 0, 16, None),
        ("test_convnext", -1, 32, None),
        ("test_convnext", 1, 8, None),
        ("test_mambaout", 1, 8, None),  # channels last
        ("test_resnet", 2, 8, None),  # batch norms
        ("test_vit_relpos", -1, 16, (160, 160)),  # of one size only
    ],
)
def test_tokens_are_timms_features_projected(
    encoder: str, layer: int, patch: int, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    model, path = stored(encoder, tmp_path)
    backbone = built(encoder, layer=layer, weights=path)
    assert backbone.patch_size == patch
    patches, images = pictures(patch)
    tokens = backbone.embed_patches(patches, GRIDS).split([rows * columns for rows, columns in GRIDS])
    for image, grid, found in zip(images, GRIDS, tokens, strict=True):
        features = by_hand(model, image, size, layer)
        if features.shape[1:] != grid:
            assert size is not None, "features of pictures of any size lie on the grid"
            features = F.interpolate(features[None], grid, mode="bilinear", antialias=True)[0]
        assert features.std() > 0.01
        wanted = backbone.projector(features.flatten(1).T)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [8, 24, 32])
def test_features_are_resized_to_the_grid_of_another_patch_size(patch: int, tmp_path: Path) -> None:
    model, path = stored("test_vit", tmp_path)
    backbone = built(weights=path, patch_size=patch)
    assert backbone.patch_size == patch
    patches, (image,) = pictures(patch, [(3, 1)])
    whole = tuple(-(-side // 16) * 16 for side in image.shape[:2])
    features = by_hand(model, image, whole, -1)  # type: ignore[arg-type]
    assert features.shape[1:] == (whole[0] // 16, whole[1] // 16)
    resized = F.interpolate(features[None], (3, 1), mode="bilinear", antialias=True)[0]
    wanted = backbone.projector(resized.flatten(1).T)
    torch.testing.assert_close(backbone.embed_patches(patches, [(3, 1)]), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["test_vit", "test_vit_relpos"])
def test_images_are_resized_where_a_size_is_asked_for(encoder: str, tmp_path: Path) -> None:
    model, path = stored(encoder, tmp_path)
    backbone = built(encoder, weights=path, input_size=160)
    patches, (image,) = pictures(16, [(2, 3)])
    resized = F.interpolate(by_hand(model, image, (160, 160), -1)[None], (2, 3), mode="bilinear", antialias=True)[0]
    wanted = backbone.projector(resized.flatten(1).T)
    torch.testing.assert_close(backbone.embed_patches(patches, [(2, 3)]), wanted, atol=1e-5, rtol=1e-5)


def test_an_encoder_of_one_size_is_made_for_another() -> None:
    backbone = built("test_vit_relpos", input_size=64)
    seen: list[tuple[int, ...]] = []
    backbone.encoder.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    assert backbone.embed_patches(pictures(16)[0], GRIDS).shape == (15, 32)
    assert seen == [(2, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64)], "pictures of one grid go together"


def test_an_encoder_that_cannot_read_small_images_gets_them_at_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(self: nn.Module, pixels: Tensor) -> list[Tensor]:
        if pixels.shape[-1] < 100:
            raise RuntimeError("too small")
        return forward(self, pixels)

    kind = type(timm.create_model("test_convnext", features_only=True))
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", picky)
    assert built("test_convnext").size == (160, 160)
    monkeypatch.setattr(kind, "forward", lambda self, pixels: [][0])
    with pytest.raises(SailUsageError, match="EncoderBackbone: test_convnext cannot read images of 160 x 160 pixels"):
        built("test_convnext")


# -- weights ----------------------------------------------------------------------------------------------------------


def test_there_is_no_weight_that_is_not_used() -> None:
    names = dict(built(layer=0).named_parameters()).keys()
    assert not [name for name in names if "vis_embed" in name or "head" in name.removeprefix("lm_head")]
    assert not [name for name in names if name.startswith("encoder.model.blocks.1.")], "deeper layers are cut off"


def test_weights_that_lead_to_no_feature_are_not_trained(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        backbone = built("pit_ti_224")  # timm leaves the final norm in
    idle = {name for name, parameter in backbone.encoder.named_parameters() if not parameter.requires_grad}
    assert idle == {"body.norm.weight", "body.norm.bias"}
    assert "pit_ti_224: 2 weights have no effect on the features and are not trained" in caplog.text


def test_tokens_start_about_as_loud_as_words() -> None:
    backbone = built("test_convnext", hidden_size=256, layer=1)
    features = torch.randn(1000, 32)
    words = backbone.model.embed_tokens.weight
    assert backbone.projector(features).std().item() == pytest.approx(words.std().item(), rel=0.1)


def test_random_weights_are_mentioned_and_follow_the_seed_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(built().encoder.state_dict()["model.blocks.0.attn.qkv.weight"])
    assert "EncoderBackbone: test_vit has no weights file; it is random until a checkpoint is loaded" in caplog.text
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def jax_arrays(model: Any) -> dict[str, np.ndarray]:
    """A vision transformer in the layout of the files that its authors published."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for index in range(len(model.blocks)):
        there, here = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{there}/LayerNorm_{number}/scale"] = state[f"{here}.{norm}.weight"]
            arrays[f"{there}/LayerNorm_{number}/bias"] = state[f"{here}.{norm}.bias"]
        for number, layer in enumerate(("fc1", "fc2")):
            arrays[f"{there}/MlpBlock_3/Dense_{number}/kernel"] = state[f"{here}.mlp.{layer}.weight"].T
            arrays[f"{there}/MlpBlock_3/Dense_{number}/bias"] = state[f"{here}.mlp.{layer}.bias"]
        attention = f"{there}/MultiHeadDotProductAttention_1"
        kernels, biases = (np.split(state[f"{here}.attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}/{name}/kernel"] = kernel.T.reshape(len(kernel), heads, -1)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{here}.attn.proj.weight"].T.reshape(heads, -1, len(kernels[0]))
        arrays[f"{attention}/out/bias"] = state[f"{here}.attn.proj.bias"]
    return arrays


def test_weights_in_the_layout_of_jax_are_read_and_checked(tmp_path: Path) -> None:
    model, _ = stored("test_vit", tmp_path)
    path = tmp_path / "jax.npz"
    arrays = jax_arrays(model)
    np.savez(path, **arrays)
    encoder = built(weights=str(path)).encoder.state_dict()
    state = model.state_dict()
    assert all(torch.equal(value, state[name.removeprefix("model.")]) for name, value in encoder.items())
    del arrays["Transformer/encoderblock_1/LayerNorm_0/bias"]
    np.savez(path, **arrays)
    with pytest.raises(SailError, match=r"EncoderBackbone test_vit: .*jax.npz cannot be loaded"):
        built(weights=str(path))


@pytest.mark.parametrize("lacking", ["blocks.1.attn.qkv.weight", "blocks.2.norm1.bias", "pos_embed"])
def test_a_file_that_lacks_one_weight_is_refused(lacking: str, tmp_path: Path) -> None:
    _, path = stored("test_vit", tmp_path)
    state = load_file(path)
    del state[lacking]
    save_file(state, path)
    with pytest.raises(
        SailError, match=rf"EncoderBackbone test_vit: .* lacks 1 of \d+ weights, such as model.{lacking}"
    ):
        built(weights=path)


def test_a_file_that_lacks_the_statistics_of_a_batch_norm_is_refused(tmp_path: Path) -> None:
    _, path = stored("test_resnet", tmp_path)
    state = load_file(path)
    del state["layer2.0.bn1.running_var"]
    save_file(state, path)
    with pytest.raises(SailError, match=r"lacks 1 of \d+ weights, such as layer2.0.bn1.running_var"):
        built("test_resnet", weights=path)


def test_a_file_without_the_classifier_and_the_deeper_layers_is_enough(tmp_path: Path) -> None:
    model, path = stored("test_convnext", tmp_path)
    kept = {name: value for name, value in load_file(path).items() if name.startswith(("stem", "stages.0", "stages.1"))}
    save_file(kept, path)
    backbone = built("test_convnext", weights=path, layer=1)
    assert torch.equal(backbone.encoder.state_dict()["stem_0.weight"], model.state_dict()["stem.0.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "test_vitt"}, "EncoderBackbone: timm has no model 'test_vitt'; close are test_vit"),
        ({"encoder": "test_vit", "layer": 77}, "EncoderBackbone: test_vit gives no features of layer 77"),
        ({"weights": "no.pth"}, "EncoderBackbone test_vit: no weights file no.pth"),
        (
            {"encoder": "efficientformer_l1", "input_size": 96},
            "efficientformer_l1 cannot read images of 96 x 96 pixels",
        ),
    ],
)
def test_mistakes_are_answered_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SailError, match=message):
        built(**settings)


def test_files_that_hold_no_weights_are_refused_and_nothing_is_fetched(tmp_path: Path) -> None:
    for content in ({}, {"state_dict": {}}, {"epoch": 3}, [torch.zeros(2)]):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(SailError, match=r"EncoderBackbone test_vit: .*odd.pth cannot be loaded"):
            built(weights=str(tmp_path / "odd.pth"))


def test_a_file_is_loaded_without_running_what_is_pickled_in_it(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"state_dict": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(SailError, match=r"harm.pth cannot be loaded"):
        built(weights=str(tmp_path / "harm.pth"))
    assert not (tmp_path / "harm").exists()


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_a_frozen_encoder_does_not_change_and_is_in_no_optimiser(encoder: str) -> None:
    model = tiny(backbone=encoder_backbone(encoder, frozen=True, patch_size=8)).train()
    frozen = model.model.backbone.encoder  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    trained = [parameter for group in parameter_groups(model) for parameter in group["params"]]
    assert not {id(p) for p in frozen.parameters()} & {id(p) for p in trained}
    optimizer = torch.optim.SGD(trained, lr=0.1)
    sums, _ = model.losses(packed(model, records()))
    torch.stack(list(sums.values())).sum().backward()
    optimizer.step()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    projector = model.model.backbone.projector  # type: ignore[union-attr]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projector.parameters())


def test_a_trained_encoder_gives_an_image_the_same_features_whatever_it_is_packed_with() -> None:
    backbone = built("test_resnet", layer=2).train()
    assert backbone.encoder.training
    before = {name: value.clone() for name, value in backbone.encoder.named_buffers()}
    patches, _ = pictures(8)
    together = backbone.embed_patches(patches, GRIDS)
    torch.testing.assert_close(together[7:13], backbone.embed_patches(patches[7:13], GRIDS[2:3]), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in backbone.encoder.named_buffers())


@pytest.mark.parametrize("frozen", [True, False])
def test_words_alone_give_zero_gradients_to_what_is_trained(frozen: bool) -> None:
    model = tiny(backbone=encoder_backbone(frozen=frozen))
    sums, _ = model.losses(packed(model, text_records()))
    torch.stack(list(sums.values())).sum().backward()
    for name, parameter in model.model.backbone.named_parameters():
        if name.startswith(("encoder.", "projector.")):
            assert (parameter.grad is None) == (frozen and name.startswith("encoder.")), name
            assert parameter.grad is None or not parameter.grad.any(), name


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_activation_checkpointing_gives_the_same_gradients(encoder: str) -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = built(encoder, layer=1, activation_checkpointing=checkpointing).train()
        calls: list[int] = []
        block = next(m for name, m in backbone.encoder.named_modules() if name.endswith(("blocks.0", "stages_0")))
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        patch = backbone.patch_size or 0
        backbone.embed_patches(pictures(patch)[0][:6], [(2, 3)]).square().sum().backward()
        grads.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
        assert len(calls) == 1 + checkpointing, "a checkpointed block runs again in the backward pass"
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 10
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_pixels_stay_exact_in_a_model_that_is_built_in_bfloat16() -> None:
    exact = built()
    torch.set_default_dtype(torch.bfloat16)
    try:
        half = built()
    finally:
        torch.set_default_dtype(torch.float32)
    patches, _ = pictures(16)
    assert torch.equal(half.pixels(patches), exact.pixels(patches))
    assert half.embed_patches(patches, GRIDS).dtype == torch.bfloat16


def test_on_the_meta_device_nothing_is_made() -> None:
    with torch.device("meta"):
        backbone = built("vit_large_patch14_dinov2.lvd142m", weights=__file__)
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert sum(parameter.numel() for parameter in backbone.encoder.parameters()) / 1e6 == pytest.approx(304.4, rel=0.01)


# -- the whole model --------------------------------------------------------------------------------------------------


def test_any_decoder_reads_the_features() -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = tiny(backbone=EncoderBackbone("test_vit", config=llama))
    assert type(model.model.backbone.model).__name__ == "LlamaModel"  # type: ignore[union-attr]
    assert model.predict(picture(20, 30), "please segment the red circle.").text is not None


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [("test_resnet", {"layer": 2, "frozen": True}), ("test_vit", {"frozen": False, "patch_size": 8})],
)
def test_a_model_folder_needs_no_other_file(encoder: str, settings: dict[str, Any], tmp_path: Path) -> None:
    _, path = stored(encoder, tmp_path)
    model = tiny(backbone=encoder_backbone(encoder, weights=path, **settings)).eval()
    folder = model.save_pretrained(tmp_path / "model")
    Path(path).unlink()
    again = PixelSAIL.from_pretrained(folder)
    assert again.model.backbone.frozen == settings["frozen"]
    ours, theirs = model.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    answers = [
        m.predict(picture(20, 30), "segment <Prompt0>.", [Box(1, 2, 9, 9)], answer_prefix="it is [SEG].")
        for m in (model, again)
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].masks.shape == (1, 20, 30)
    assert np.array_equal(answers[0].masks, answers[1].masks)
    assert PixelSAIL.from_pretrained(again.save_pretrained(tmp_path / "again")) is not None
