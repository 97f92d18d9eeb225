"""Folders that teachers are made from: experts of a few thousand random weights, and a cache of features."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_sail import records
from torch import nn

from sail_lightning.features.codec import StoredAs, encode
from sail_lightning.features.store import FeatureWriter, Settings, image_key
from sail_lightning.image.preprocessing import resize_image
from sail_lightning.plugin_check.sockets import IMAGES

WEIGHTS = "model.safetensors"


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """A model whose weights are all random: fresh ones hold zeros and ones, which hide what does not take part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def mask2former(folder: Path, **changes: Any) -> Any:
    """Writes a Mask2Former as it is published, with a head for classes and an image processor; returns the model."""
    from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, Mask2FormerModel, SwinConfig

    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes: dict[str, Any] = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "dim_feedforward": 32,
        "num_queries": 3,
    }
    model = shaken(Mask2FormerModel(Mask2FormerConfig(backbone_config=backbone, **sizes | changes)))
    model.save_pretrained(folder)
    state = {f"model.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    head = {"class_predictor.weight": torch.randn(4, 32), "criterion.empty_weight": torch.ones(4)}
    save_file(state | head, folder / WEIGHTS, metadata={"format": "pt"})
    Mask2FormerImageProcessor().save_pretrained(folder)
    return model


def sam2(folder: Path) -> Any:
    """Writes a SAM 2 for images of 128 pixels, with its image processor; returns it."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2ImageProcessor, Sam2Model, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    small = {"hidden_size": 32, "image_size": 128}
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={**small, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={**small, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    model = shaken(Sam2Model(config))
    model.save_pretrained(folder)
    Sam2ImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
    return model


def radio(folder: Path, **changes: Any) -> Any:
    """Writes a RADIO in the names of the published weights; returns the library's model of it."""
    from transformers import RadioConfig, RadioModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_img_size": 128}
    model = shaken(RadioModel(RadioConfig(**sizes | changes)))
    model.save_pretrained(folder)
    return model


def cache(folder: Path, pictures: Iterable[np.ndarray], stored_as: StoredAs = "float16", channels: int = 3) -> Path:
    """Writes random features (channels, h / 8, w / 8), for mask features, of images (3, h, w) uint8."""
    rng = np.random.default_rng(0)
    expert = {"class_path": "Expert", "init_args": {}}
    settings = Settings(expert, channels, "mask", stored_as, None, patch_size=8, max_side=48, resize="longest")
    with FeatureWriter(folder, settings) as writer:
        for number, pixels in enumerate(pictures):
            grid = (pixels.shape[1] // 8, pixels.shape[2] // 8)
            features = torch.from_numpy(rng.standard_normal((channels, *grid), np.float32))
            writer.add(image_key(pixels), *encode(features, stored_as), str(number))
    return folder


PICTURES = IMAGES
"""Two images that each teacher has something to say about."""


def cache_of_records(folder: Path) -> Path:
    """Writes features of the images of `tiny_sail.records`, as its model sees them, and of `PICTURES`."""
    seen = [resize_image(record.image, 8, 48).transpose(2, 0, 1) for record in records() if record.image is not None]
    return cache(folder, [*seen, *PICTURES.numpy()])


MAKERS: dict[str, Callable[[Path], Any]] = {
    "CachedTeacher": cache_of_records,
    "Mask2FormerTeacher": mask2former,
    "RADIOTeacher": radio,
    "SAM2Teacher": sam2,
}


@functools.cache
def folder_for(teacher: str) -> str:
    """The folder of a tiny expert for the class of this name, written once."""
    folder = Path(tempfile.mkdtemp(prefix=f"{teacher}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    MAKERS[teacher](folder / "expert")
    return str(folder / "expert")


def arguments(plugin: str) -> dict[str, Any]:
    """Arguments of a teacher that needs a folder; none of other plugins."""
    if plugin == "StudentTeacher":
        return {"folder": "sail-tiny"}
    small = {"resize": 64} if plugin == "Mask2FormerTeacher" else {}
    return {"folder": folder_for(plugin), **small} if plugin in MAKERS else {}
