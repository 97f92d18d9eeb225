"""Makes timm's image models for plugins: by name, with checked weights of a local file. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sail_lightning.errors import SailError, SailUsageError


def create(
    who: str,
    name: str,
    layer: int = -1,
    weights: str | None = None,
    seed: int | None = None,
    input_size: int | None = None,
    any_size: bool = False,
) -> nn.Module:
    """Makes a model that computes one of its feature maps, see `feature_map`; timm leaves out what that does not need.

    Args:
        who: name of the plugin, for messages.
        name: timm's name of the model; a tag (`name.tag`) chooses among normalisations and input sizes.
        layer: index of the feature map; -1 is the last, deepest one.
        weights: a local `.safetensors`, `.pth` or `.npz` file; None is random. It is not read on the meta device.
        seed: seed of the random weights, independent of the run's random numbers; None uses the run's.
        input_size: side in pixels, for models that are made for one size.
        any_size: make a model for images of any size, where timm supports it (`dynamic_img_size`).

    Raises:
        SailUsageError: timm has no such model, or it has no such layer or size.
        SailError: the weights file is missing, or does not fit the model.
    """
    _check_name(who, name)
    path = None if weights is None else _local_file(who, name, weights)
    arguments: dict[str, Any] = {"features_only": True, "out_indices": (layer,)}
    arguments |= _size_options(name, input_size, any_size)
    with _made_on_cpu(seed):
        try:
            network = _create(
                name, arguments
            )  # first without the file: a model that cannot be made is no fault of the file
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
            if isinstance(error, TypeError) and "img_size" in arguments:
                raise SailUsageError(f"{who}: {name} accepts its own size only; leave out the size") from error
            raise SailUsageError(f"{who}: {name} gives no features of layer {layer} ({_reason(error)})") from error
    if path is None or next(network.parameters()).is_meta:
        return network
    with _made_on_cpu(seed):
        try:
            network = _create(name, arguments, _source(path))
            # timm skips tensors that are missing or foreign, so that a file of another model would leave random weights
            # behind. Weights that are not NaN after a load of the file with NaN values were not in the file.
            with tempfile.TemporaryDirectory() as folder:
                blank = _create(name, arguments, _source(path, Path(folder)))
        except Exception as error:
            raise SailError(f"{who} {name}: {path} cannot be loaded ({_reason(error)})") from error
    learned = {key: tensor for key, tensor in blank.state_dict().items() if key in dict(blank.named_parameters())}
    learned |= {key: tensor for key, tensor in blank.named_buffers() if key.endswith(("running_mean", "running_var"))}
    if missing := [key for key, tensor in learned.items() if not tensor.isnan().any()]:
        raise SailError(
            f"{who} {name}: {path} lacks {len(missing)} of {len(learned)} weights, such as {missing[0]}; "
            "is it a file of this model?"
        )
    return network


def feature_map(network: nn.Module, pixels: Tensor) -> Tensor:
    """Maps normalised pixels (B, 3, height, width), in any floating dtype, to features (B, channels, h, w)."""
    features: Tensor = network(pixels.to(next(network.parameters()).dtype))[-1]
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        features = features.permute(0, 3, 1, 2)
    return features


def channels(network: nn.Module) -> int:
    """Returns the number of channels of the feature map."""
    return int(network.feature_info.channels()[-1])  # type: ignore[operator, union-attr]


def reduction(network: nn.Module) -> int:
    """Returns the number of pixels per feature along one side."""
    return int(network.feature_info.reduction()[-1])  # type: ignore[operator, union-attr]


def own_size(network: nn.Module) -> tuple[int, int]:
    """Returns the height and width of the images that the model was trained with."""
    return tuple(_data_config(network)["input_size"][1:])


def statistics(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation, by channel, of the pixels in [0, 1] that the model was trained with."""
    config = _data_config(network)
    return tuple(config["mean"]), tuple(config["std"])


def is_fixed(network: nn.Module) -> bool:
    """Returns whether the model accepts images of one size only."""
    inner = getattr(network, "model", network)
    dynamic = bool(getattr(inner, "dynamic_img_size", False))
    return bool(network.pretrained_cfg.get("fixed_input_size")) and not dynamic  # type: ignore[operator, union-attr]


def _data_config(network: nn.Module) -> dict[str, Any]:
    import timm

    return dict(timm.data.resolve_model_data_config(network))


def _check_name(who: str, name: str) -> None:
    import timm

    # Tags choose among pretrained weights and input sizes; the architecture is what precedes.
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise SailUsageError(
            f"{who}: timm has no model {name!r}; close are {', '.join(close) or 'none'} (timm.list_models() has all)"
        )


def _local_file(who: str, name: str, weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise SailError(f"{who} {name}: no weights file {path}; give a local file, or null for random")
    return path


def _size_options(name: str, input_size: int | None, any_size: bool) -> dict[str, Any]:
    """Returns the arguments that set the image size of this model."""
    import timm

    if any_size:
        # Some models do not have the argument, others ignore it.
        with torch.random.fork_rng(devices=[]), torch.device("meta"), contextlib.suppress(TypeError, RuntimeError):
            if not is_fixed(timm.create_model(name, features_only=True, out_indices=(-1,), dynamic_img_size=True)):
                return {"dynamic_img_size": True}
    fixed = bool(timm.get_pretrained_cfg_value(name, "fixed_input_size"))
    return {"img_size": input_size} if input_size and fixed else {}


@contextlib.contextmanager
def _made_on_cpu(seed: int | None) -> Iterator[None]:
    """Makes weights on the CPU, whatever device is current, unless it is meta; random weights use `seed`."""
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device(device))
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
        yield


def _create(name: str, arguments: dict[str, Any], source: dict[str, Any] | None = None) -> nn.Module:
    import timm

    pretrained: dict[str, Any] = {} if source is None else {"pretrained": True, "pretrained_cfg_overlay": source}
    network: nn.Module = timm.create_model(name, **arguments, **pretrained)
    for module in network.modules():  # the file's tensors are kept there too
        for config in (getattr(module, "pretrained_cfg", None), getattr(module, "default_cfg", None)):
            if isinstance(config, dict):
                config.pop("state_dict", None)
    return network


def _source(path: Path, blank: Path | None = None) -> dict[str, Any]:
    """Returns the settings that make timm load a file; with `blank`, a scratch folder, all its values are NaN.

    Raises:
        ValueError: the file holds no tensors.
    """
    import timm

    if path.suffix == ".npz":
        if blank is not None:
            with np.load(path) as arrays:
                nans = {key: np.full_like(arrays[key], np.nan) for key in arrays if arrays[key].dtype.kind == "f"}
            path = blank / "blank.npz"
            np.savez(path, **nans)  # type: ignore[arg-type]
        return {"file": str(path), "custom_load": True}
    state = timm.models.load_state_dict(str(path), weights_only=True)
    if not any(isinstance(value, Tensor) for value in state.values()):  # timm would download weights from its hub
        raise ValueError("it holds no tensors")
    if blank is not None:
        state = {key: _nan(value) for key, value in state.items()}
    return {"state_dict": state}


def _nan(value: Any) -> Any:
    return torch.full_like(value, torch.nan) if isinstance(value, Tensor) and value.is_floating_point() else value


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
