"""`EncoderBackbone`: a vision encoder, a projector and a decoder, the modular design that Pixel-SAIL replaces."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.compat.torch import BatchNorm
from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims
from sail_lightning.plugins import timm_models
from sail_lightning.plugins.backbones.core import Pixels
from sail_lightning.plugins.backbones.sail_qwen import SailQwen
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt

logger = logging.getLogger(__name__)


@register
class EncoderBackbone(SailQwen):
    """The baseline that the paper argues against: a vision encoder reads the image before the same decoder does.

    The features of an image are projected (linear, GELU, linear) and take the positions of its patches: the sequence,
    the decoder and the heads are those of `SailQwen`, so the encoder is the only difference. Any decoder may be the
    core.

    Args:
        encoder: name of a timm model with feature maps, such as `vit_small_patch14_dinov2.lvd142m`.
        weights: local file of the encoder's weights (`.safetensors`, `.pth` or `.npz`); None is random.
        frozen: keep the encoder fixed: without gradients, always in evaluation mode.
        layer: index of the encoder's feature map; -1 is the last, deepest one.
        input_size: side in pixels of the square that images are resized to for the encoder; None keeps an image's own
            size, or uses the encoder's size if it accepts one size only.
        patch_size: pixels per vision token, along one side; None is the encoder's own stride. Features are resized to
            that grid where theirs differs.
        kwargs: arguments of `SailQwen`.
    """

    families = ()  # type: ignore[assignment]

    def __init__(
        self,
        encoder: str = "vit_tiny_patch16_224",
        weights: str | None = None,
        frozen: bool = False,
        layer: int = -1,
        input_size: PositiveInt | None = None,
        patch_size: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(patch_size=patch_size, **kwargs)
        self.patch_size = patch_size  # not the preset's, which is the side of raw patches
        self.encoder_name = encoder
        self.weights = weights
        self.frozen = frozen
        self.layer = layer
        self.input_size = input_size

    def export_init_args(self) -> dict[str, Any]:
        """Returns the arguments without files: the encoder's weights are stored with the decoder's."""
        return super().export_init_args() | {"weights": None, "patch_size": self.patch_size}

    def build(self, dims: Dims) -> Dims:
        """Makes the encoder, then the decoder.

        Raises:
            SailUsageError: timm has no such model, layer or size, or the decoder cannot be the core.
            SailError: a file of weights is missing, or does not fit.
        """
        name = self.encoder_name
        self.encoder = timm_models.create(
            "EncoderBackbone", name, self.layer, self.weights, input_size=self.input_size, any_size=True
        )
        if self.weights is None:
            logger.info("EncoderBackbone: %s has no weights file; it is random until a checkpoint is loaded", name)
        self.stride = timm_models.reduction(self.encoder)
        self.patch_size = self.patch_size or self.stride
        self.size: tuple[int, int] | None = None
        if self.input_size is not None:
            self.size = (self.input_size, self.input_size)
        elif timm_models.is_fixed(self.encoder):
            self.size = timm_models.own_size(self.encoder)
        self._probe()
        if self.frozen:
            self.encoder.requires_grad_(False)
        dims = super().build(dims)
        if self.activation_checkpointing and not self.frozen:
            inner: Any = getattr(self.encoder, "model", self.encoder)
            if hasattr(inner, "set_grad_checkpointing"):
                inner.set_grad_checkpointing(True)
        self.train(self.training)
        return dims

    def build_patches(self, hidden: int, patch_size: int) -> None:
        """Makes the projector, in place of a patch embedding."""
        self.pixels = Pixels(patch_size, *timm_models.statistics(self.encoder))
        self.channels = timm_models.channels(self.encoder)
        self.projector = nn.Sequential(nn.Linear(self.channels, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def init_patches(self, read: set[str]) -> None:
        """Initialises the projector: features of unit variance become tokens with the RMS norm of token embeddings."""
        table = self.model.embed_tokens.weight
        embedding_std = 0.02 if table.is_meta else float(table.detach().float().std())
        deviations = (1 / math.sqrt(self.channels), 0.0, embedding_std / GELU_RMS / math.sqrt(table.shape[1]), 0.0)
        for parameter, std in zip(self.projector.parameters(), deviations, strict=True):  # weight, bias, weight, bias
            nn.init.normal_(parameter, std=std)

    def train(self, mode: bool = True) -> EncoderBackbone:
        """Keeps a frozen encoder in evaluation mode, and the batch norms of any encoder.

        So the features of an image do not depend on the images that it is packed with.
        """
        super().train(mode)
        encoder = getattr(self, "encoder", None)
        for module in encoder.modules() if encoder is not None else ():
            if self.frozen or isinstance(module, BatchNorm):
                module.training = False
        return self

    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        like = next(self.projector.parameters())
        if not grids:  # no rows, but every trained weight has a gradient, which is zero
            idle = sum((p.sum() * 0.0 for p in self.encoder.parameters() if p.requires_grad), like.new_zeros(()))
            return self.projector(like.new_zeros(0, self.channels)) + idle
        pixels = self.pixels(patches).split([rows * columns for rows, columns in grids])
        tokens: list[Tensor] = [like] * len(grids)
        for grid in dict.fromkeys(grids):
            members = [index for index, other in enumerate(grids) if other == grid]
            features = self.encode(torch.stack([pixels[index] for index in members]), grid)
            for index, rows in zip(members, self.projector(features.to(like.dtype)), strict=True):
                tokens[index] = rows
        return torch.cat(tokens)

    def encode(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps normalised patches (B, rows*columns, 3*P*P) of images of one grid to features (B, rows*columns, C)."""
        side = math.isqrt(pixels.shape[-1] // 3)
        cells = pixels.unflatten(2, (3, side, side)).unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
        images = cells.flatten(4, 5).flatten(2, 3)
        height, width = images.shape[-2:]
        whole = (math.ceil(height / self.stride) * self.stride, math.ceil(width / self.stride) * self.stride)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = timm_models.feature_map(self.encoder, _resized(images, self.size or whole))
        return _resized(features, grid).flatten(2).transpose(1, 2)

    def _probe(self) -> None:
        """Finds out whether the encoder accepts images of any size, and which of its weights its features use.

        Raises:
            SailUsageError: the encoder fails at every size.
        """
        self.encoder.eval()
        parameters = {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
        example = next(iter(parameters.values()))
        tried = [self.size] if self.size else [(self.stride, 2 * self.stride), timm_models.own_size(self.encoder)]
        for size in tried:
            try:
                with torch.enable_grad():
                    features = timm_models.feature_map(self.encoder, example.new_zeros(1, 3, *size))
                break
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            raise SailUsageError(
                f"EncoderBackbone: {self.encoder_name} cannot read images of {size[0]} x {size[1]} pixels ({reason})"
            )
        if size != tried[0]:
            self.size = size
        used = torch.autograd.grad(features.sum(), list(parameters.values()), allow_unused=True)
        idle = [name for (name, parameter), gradient in zip(parameters.items(), used, strict=True) if gradient is None]
        for name in idle:
            parameters[name].requires_grad_(False)
        if idle:
            logger.info(
                "%s: %d weights have no effect on the features and are not trained", self.encoder_name, len(idle)
            )


GELU_RMS = 0.652
"""Root mean square of GELU of a standard normal variable."""


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps (B, C, h, w) with antialiasing, computed in float32."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=False, antialias=True).to(maps.dtype)
