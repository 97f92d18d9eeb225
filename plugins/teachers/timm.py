"""Any of timm's image models as a teacher."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.registry import register

logger = logging.getLogger(__name__)


@register
class TimmTeacher(Teacher):
    """The features of one layer of a timm model, with the model's own input size and normalisation.

    Nothing is downloaded: weights come from a file, or are random (a control: what does distillation of structure
    without knowledge give?), of which a warning is logged.

    Args:
        model: timm's name, such as `vit_small_patch14_dinov2.lvd142m`; any model with `features_only`.
        weights: a local `.safetensors`, `.pth` or `.npz` file; None is a random initialisation from `seed`.
        tap: the student features it teaches, `vision` tokens or upsampled `mask` features.
        weight: of its loss.
        resize: side in pixels of the square that images are resized to; None is the model's own input size. The whole
            image is kept, so features still lie at the same relative places.
        layer: which of the model's feature maps; -1 is the last, deepest one.
        seed: of the random initialisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        tap: Literal["vision", "mask"] = "vision",
        weight: float = 1.0,
        resize: int | None = None,
        layer: int = -1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name = model
        self.weights = weights
        self.tap = tap
        self.weight = weight
        self.resize = resize
        self.layer = layer
        self.seed = seed

    def build(self, dims: Dims) -> Dims:
        """Makes the model, frozen, and learns its `channels`.

        Raises:
            SailUsageError: timm has no such model, or it has no such layer.
            SailError: the weights file is missing, or does not fit the model.
        """
        import timm

        # Tags ("name.tag") choose among pretrained weights and input sizes; the architecture is what precedes.
        if not timm.is_model(self.name.split(".")[0]):
            close = difflib.get_close_matches(self.name, timm.list_models(), n=3, cutoff=0.4)
            raise SailUsageError(
                f"TimmTeacher: timm has no model {self.name!r}; close are {', '.join(close) or 'none'} "
                "(timm.list_models() has all)"
            )
        if self.weights is None:
            logger.warning("TimmTeacher %s has no weights file: it is random, with seed %d", self.name, self.seed)
            self.network = self._create(None)
        else:
            self.network = self._create(self._weights_file())
        config = timm.data.resolve_model_data_config(self.network)
        self.size = (self.resize, self.resize) if self.resize else tuple(config["input_size"][1:])
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.channels = self.network.feature_info.channels()[-1]  # type: ignore[operator, union-attr]
        self.requires_grad_(False)
        self.eval()
        return dims

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w)."""
        pixels = images.float()
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
        pixels = (pixels - self.mean) / self.std
        features: Tensor = self.network(pixels.to(next(self.network.parameters()).dtype))[-1]
        if str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC"):
            features = features.permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> TimmTeacher:
        """A teacher stays in evaluation mode, whatever its surroundings do."""
        return super().train(False)

    def _weights_file(self) -> Path:
        path = Path(str(self.weights)).expanduser()
        if not path.is_file():
            raise SailError(f"TimmTeacher {self.name}: no weights file {path}; give a local file, or null for random")
        return path

    def _create(self, weights: Path | None) -> nn.Module:
        """The model, from a file or at random."""
        if weights is None:
            return self._initialised(None, self.seed)
        self._initialised(None, self.seed)  # names a layer that is not there before the file is blamed
        try:
            other, network = (self._initialised(weights, self.seed + offset) for offset in (1, 0))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SailError(f"TimmTeacher {self.name}: {weights} cannot be loaded ({reason})") from error
        # timm skips tensors that are missing or foreign, so a file of another model would leave random weights behind.
        # What differs between two random starts after loading was not in the file.
        twin = dict(other.named_parameters())
        pairs = [(name, tensor, twin[name]) for name, tensor in network.named_parameters() if tensor.dim() > 1]
        missing = [name for name, tensor, second in pairs if not torch.equal(tensor, second)]
        if missing:
            raise SailError(
                f"TimmTeacher {self.name}: {weights} lacks {len(missing)} of {len(pairs)} weights, such as "
                f"{missing[0]}; is it a file of this model?"
            )
        return network

    def _initialised(self, weights: Path | None, seed: int) -> nn.Module:
        import timm

        options: dict[str, Any] = {}
        if weights is not None:
            overlay: dict[str, Any] = {"file": str(weights), "custom_load": weights.suffix == ".npz"}
            options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
        if self.resize and (timm.get_pretrained_cfg_value(self.name, "fixed_input_size") or False):
            options["img_size"] = self.resize
        # On the CPU, whatever the model around is built on: teachers are not sharded, and not materialised later.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            try:
                network: nn.Module = timm.create_model(
                    self.name, features_only=True, out_indices=(self.layer,), **options
                )
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                if weights is not None:
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise SailUsageError(
                    f"TimmTeacher: {self.name} gives no features of layer {self.layer} ({reason})"
                ) from error
        return network
