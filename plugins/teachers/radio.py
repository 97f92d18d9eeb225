"""RADIO as a teacher of vision tokens, from its published folder; the folder's code is not run."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.errors import SailError
from sail_lightning.plugins.teachers.frozen import FrozenTeacher
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt
from sail_lightning.weights import safetensors_io
from sail_lightning.weights.state_dict import state_dict_diff

TRUNK = "radio_model.model."
CONDITIONER = "radio_model.input_conditioner."
FOREIGN = re.compile(r"radio_model\.(summary_idxs$|adaptors\.|model\.head\.)|.*video_embedder")
"""Tensors that the spatial features of an image do not use."""
SCALES = re.compile(r"(?:ls|layer_scale)(\d)\.(?:gamma|grandma|lambda1)$")
"""Names of the scale factors of a block's two branches, in models that have them."""
HEADS = {768: 12, 1024: 16, 1152: 16, 1280: 16, 1536: 24}
"""Attention heads by width of the published models (B, L, SO400M, H, g); the weights do not determine them."""
CORNERS = re.compile(r"radio_v[12]|c-radio_v3-[bh]", re.IGNORECASE)
"""Versions whose published code samples the table of positions with aligned corners; later ones do not."""


class PatchGenerator(nn.Module):
    """Linear patches, learned tokens that precede them, and a square table of positions that is resized to the image.

    Args:
        shapes: shapes of the weights by name.
        align_corners: whether the table is resized with aligned corners; versions differ.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], align_corners: bool) -> None:
        super().__init__()
        width, pixels = shapes["patch_generator.embedder.weight"]
        self.align_corners = align_corners
        self.embedder = nn.Linear(pixels, width, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(shapes["patch_generator.pos_embed"]))
        token = torch.empty(shapes["patch_generator.cls_token.token"])
        self.cls_token = nn.ParameterDict({"token": nn.Parameter(token)})
        self.side = math.isqrt(self.pos_embed.shape[1])

    def positions(self, rows: int, columns: int) -> Tensor:
        """Resizes the table to a square of the longer side and crops it: embeddings (1, rows * columns, width)."""
        table = self.pos_embed
        if (rows, columns) == (self.side, self.side):
            return table
        square, longer = table.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2), max(rows, columns)
        fitting = F.interpolate(square.float(), (longer, longer), mode="bilinear", align_corners=self.align_corners)
        return fitting[..., :rows, :columns].flatten(2).mT.to(table.dtype)


class RadioViT(nn.Module):
    """RADIO's vision transformer, without a final norm.

    Parameter names are those of the published weights, below `radio_model.model.`.

    Args:
        shapes: shapes of the weights by name.
        heads: number of attention heads.
        align_corners: whether positions are resized with aligned corners.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], heads: int, align_corners: bool) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        width, pixels = shapes["patch_generator.embedder.weight"]
        self.patch_size = math.isqrt(pixels // 3)
        self.patch_generator = PatchGenerator(shapes, align_corners)
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        ratio = shapes["blocks.0.mlp.fc1.weight"][0] / width
        scale = 1.0 if "blocks.0.ls1.gamma" in shapes else None
        norm: Any = functools.partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio, qkv_bias=True, init_values=scale, norm_layer=norm) for _ in range(depth)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps normalised pixels (B, 3, height, width) to features (B, width, rows, columns)."""
        size, (rows, columns) = self.patch_size, (side // self.patch_size for side in pixels.shape[-2:])
        cells = pixels.unflatten(3, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 1, 3, 5)
        generator = self.patch_generator
        patches = generator.embedder(cells.flatten(3).flatten(1, 2)) + generator.positions(rows, columns)
        prefix = generator.cls_token["token"]
        tokens = torch.cat([prefix.expand(len(pixels), -1, -1), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, len(prefix) :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


@register
class RADIOTeacher(FrozenTeacher):
    """RADIO's spatial features, of stride 16 and 1,024 channels for RADIO-L (an ablation of the paper).

    Reads the folder that is published for `transformers` with code of its own (`nvidia/RADIO-L`, `nvidia/C-RADIOv3-*`,
    `nvidia/C-RADIOv4-*`): its config.json and safetensors; the code is not run. Models with a gated MLP (v2.5-g), a
    feature normaliser or windowed attention are refused, as is E-RADIO, a network of another kind.

    Args:
        folder: a local copy of the published folder.
        resize: side in pixels of the square that images are resized to; None keeps each image's own size, to the
            nearest multiple of the patch size.
        align_corners: whether positions are resized with aligned corners; None is the published behaviour of the
            folder's version.
        kwargs: arguments of `FrozenTeacher`.
    """

    def __init__(
        self, folder: str, *, resize: PositiveInt | None = None, align_corners: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.folder, self.resize, self.align_corners = folder, resize, align_corners

    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes the transformer.

        Raises:
            SailError: no RADIO folder, or weights that are missing, foreign or misshapen.
        """
        folder = Path(self.folder).expanduser()
        config = _config(folder)
        with safetensors_io.opened(safetensors_io.find(folder)) as stored:
            state = {name: item.read().float() for name, item in stored.items() if not FOREIGN.match(name)}
        mean, std = (state.pop(f"{CONDITIONER}norm_{name}", None) for name in ("mean", "std"))
        own = {SCALES.sub(r"ls\1.gamma", name.removeprefix(TRUNK)): value for name, value in state.items()}
        try:
            shapes = {name: value.shape for name, value in own.items()}
            width = shapes["patch_generator.embedder.weight"][0]
            corners = bool(CORNERS.search(str(config.get("version")))) if self.align_corners is None else None
            heads = config.get("num_attention_heads") or HEADS[width]
            self.network = RadioViT(shapes, heads, bool(self.align_corners if corners is None else corners))
        except KeyError as error:
            raise SailError(
                f"RADIOTeacher: {folder} holds no RADIO that is known here: it lacks or has an unknown {error.args[0]}"
            ) from None
        if faults := state_dict_diff(self.network.state_dict(), own):
            raise SailError(f"RADIOTeacher: {folder} does not fit RADIO: {'; '.join(faults)}")
        if mean is None or std is None:
            raise SailError(f"RADIOTeacher: {folder} lacks {CONDITIONER}norm_mean or norm_std; copy it again")
        self.network.load_state_dict(own)
        self.channels = int(width)
        return mean.flatten().tolist(), std.flatten().tolist()

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize is not None:
            size = (self.resize, self.resize)
        patch = int(self.network.patch_size)  # type: ignore[arg-type]
        height, width = (max(1, round(side / patch)) * patch for side in size)
        return height, width

    def look(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels)
        return features


def _config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SailError(f"RADIOTeacher: {folder} has no config.json; give a local copy of RADIO's folder") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise SailError(f"RADIOTeacher: {folder / 'config.json'} is damaged; copy it again")
    if content.get("vitdet_window_size"):
        raise SailError(f"RADIOTeacher: {folder} asks for windowed attention, which is not supported here")
    return content
