"""LoRA on a backbone's decoder, through PEFT: apply, save, load, merge.

An adapter folder holds what was trained and nothing else, without pickle: `adapter_config.json` and
`adapter_model.safetensors` in PEFT's own format (PEFT can put them on the plain decoder), and `rest.safetensors` with
the other trained tensors (embeddings, patch embedding, upsampler, heads) under the names of a model folder.

PEFT's own `modules_to_save` would copy the embedding table and so cut its tie to the language head; here both are
ordinary parameters, trained in place, and a tie stays a tie.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sail_lightning.compat import peft
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.model.bundle import ModelBundle
from sail_lightning.model.model import SailModel
from sail_lightning.registry import register, swap_point
from sail_lightning.sequence.tokenizer import SailTokenizer
from sail_lightning.settings.ranges import BelowOne, Checked, PositiveFloat, PositiveInt, refuse_empty
from sail_lightning.weights.state_dict import load_strict, state_dict_diff, truncate_list

CONFIG, WEIGHTS, REST = "adapter_config.json", "adapter_model.safetensors", "rest.safetensors"
NAME = "default"
"""Name of this package's adapter among those of PEFT."""
PEFT_PREFIX = "base_model.model.model.layers."
"""PEFT's prefix of the names of a causal language model's layers."""
INCIDENTAL = frozenset(
    {
        *("peft_version", "base_model_name_or_path", "revision", "auto_mapping", "task_type"),
        *("inference_mode", "init_lora_weights", "target_modules"),
    }
)
"""Entries of an `adapter_config.json` that do not change the meaning of its weights, or are read separately."""


@register
@swap_point("model.adapter", name="Adapter")
class LoRA(Checked):
    """Low-rank adapters on the linear layers of a backbone's decoder; its own weights are frozen.

    All that a pretrained decoder lacks stays trainable: the patch embedding, the upsampler, the heads, the
    prompt encoder. (The official setup has an adapter on the patch embedding in place of training it whole.)

    Args:
        r: Rank of the update of each matrix.
        alpha: Scale of the update, which counts alpha / r.
        dropout: Dropout on the adapters' input, 0 to 1.
        targets: Names of linear layers inside the decoder's layers, such as `q_proj`; null for all of them.
        rslora: The update counts alpha / sqrt(r) instead, so that larger ranks do not learn more slowly.
        dora: Learn the length of each output's weights apart from their direction (slower; often better at low ranks).
        train_embeddings: Train the embedding table and the language head whole, as the added tokens need; tied if they
            were.
    """

    def __init__(
        self,
        r: PositiveInt = 16,
        alpha: PositiveFloat = 32.0,
        dropout: BelowOne = 0.0,
        targets: list[str] | None = None,
        rslora: bool = False,
        dora: bool = False,
        train_embeddings: bool = True,
    ) -> None:
        refuse_empty(self, targets=targets)
        self.r, self.alpha, self.dropout, self.targets = r, alpha, dropout, targets
        self.rslora, self.dora, self.train_embeddings = rslora, dora, train_embeddings
        self._frozen: list[nn.Parameter] = []

    def spec(self) -> dict[str, Any]:
        """Returns the settings as `class_path` and `init_args`, the form that YAML and checkpoints hold."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    def apply(self, backbone: nn.Module) -> None:
        """Adds the adapters and freezes the decoder; their updates start at zero, so the model's outputs do not change.

        Raises:
            SailError: The library peft is not installed.
            SailUsageError: The decoder's layers lack a target, or the backbone has no such layers, or has adapters
                already.
        """
        layers = decoder_layers(backbone)
        if hasattr(layers, "peft_config"):
            raise SailUsageError("this backbone has adapters already; merge them first (merge_adapter)")
        config = self._peft_config(layers)
        decoder: Any = backbone.model
        head = getattr(backbone, "lm_head", nn.Identity())
        tables = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
        whole = {id(p) for part in (*tables, head) for p in part.parameters()} if self.train_embeddings else set[int]()
        frozen = {id(p): p for part in (decoder, head) for p in part.parameters() if p.requires_grad}
        self._frozen = [parameter for key, parameter in frozen.items() if key not in whole]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        peft.library().inject_adapter_in_model(config, layers, NAME)
        layers.train(layers.training)  # dropout of the new modules follows the rest

    @torch.no_grad()
    def remove(self, backbone: nn.Module, merge: bool) -> None:
        """Removes the adapters, merged into the weights or not; frozen weights become trainable again."""
        layers = decoder_layers(backbone)
        for name, layer in list(adapted(layers)):
            if merge:
                layer.merge()
            layers.set_submodule(name, layer.get_base_layer())
        del layers.peft_config
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _peft_config(self, layers: nn.Module) -> Any:
        """Returns PEFT's config, with targets found among the linear layers of the decoder."""
        names = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
        leaves = sorted({name.rpartition(".")[2] for name in names})
        for target in self.targets or ():
            if not any(f".{name}".endswith(f".{target}") for name in names):
                raise SailUsageError(
                    f"LoRA: no linear layer in the decoder's layers is named {target}; there are {', '.join(leaves)}"
                )
        return peft.library().LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.targets or leaves),
            use_rslora=self.rslora,
            use_dora=self.dora,
        )


def decoder_layers(backbone: nn.Module) -> nn.Module:
    """Returns the layers of a backbone's decoder, `backbone.model.layers`.

    Raises:
        SailUsageError: The backbone has no such layers.
    """
    layers = getattr(getattr(backbone, "model", None), "layers", None)
    if not isinstance(layers, nn.Module):
        raise SailUsageError(f"LoRA needs a backbone with a decoder (model.layers); {type(backbone).__name__} has none")
    return layers


def adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the names and modules of PEFT's adapter layers."""
    kind = peft.adapter_layer()
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, kind))


@torch.no_grad()
def merged_state(model: SailModel, adapter: LoRA | None) -> dict[str, Tensor]:
    """Returns the model's tensors with the names and values that they would have after `merge_adapter`.

    The model stays as it is; merged matrices are copies on the CPU, all others are the model's own tensors.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    if adapter is None:
        return state
    for name, layer in adapted(model):
        plain = copy.deepcopy(layer)
        plain.merge()
        own = {f"{name}.{key}": value.cpu() for key, value in plain.get_base_layer().state_dict().items()}
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")} | own
    return state


# -- folders ----------------------------------------------------------------------------------------------------------


def save(bundle: ModelBundle, adapter: LoRA, folder: Path) -> Path:
    """Writes an adapter folder (`Pretrained.save_adapter`) and returns its path.

    Args:
        bundle: The built model, with the adapter on it.
        adapter: The adapter that was trained.
        folder: Made if missing.

    Raises:
        SailError: A file has the folder's name.
    """
    if folder.exists() and not folder.is_dir():
        raise SailError(f"{folder} is a file; name a folder to save the adapter to")
    folder.mkdir(parents=True, exist_ok=True)
    config = decoder_layers(bundle.model.backbone).peft_config[NAME].to_dict()  # type: ignore[index, union-attr]
    trained, rest = _adapter_tensors(bundle.model), _rest(bundle.model)
    metadata = {"format": "pt", "train_embeddings": str(adapter.train_embeddings).lower()}
    if adapter.train_embeddings:
        metadata["vocabulary"] = _vocabulary(bundle.tokens)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as scratch:
        unfinished = Path(scratch)
        text = json.dumps(config, indent=2, sort_keys=True, default=sorted)  # sets
        (unfinished / CONFIG).write_text(text, encoding="utf-8")
        for name, tensors in ((WEIGHTS, trained), (REST, rest)):
            stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(stored, unfinished / name, metadata=metadata if name == REST else {"format": "pt"})
        for name in (WEIGHTS, REST, CONFIG):
            (unfinished / name).replace(folder / name)
    return folder


@dataclass(frozen=True)
class StoredAdapter:
    """The content of an adapter folder.

    Args:
        folder: Where it was read from.
        adapter: The settings of the adapter.
        tensors: The adapter's own tensors by PEFT's names.
        rest: The other trained tensors, by the names of a model folder.
        vocabulary: Digest of the token of each row of the embedding table; None if embeddings were not trained.
    """

    folder: Path
    adapter: LoRA
    tensors: dict[str, Tensor]
    rest: dict[str, Tensor]
    vocabulary: str | None


def read(folder: Path) -> StoredAdapter:
    """Reads an adapter folder.

    Raises:
        SailError: A file is missing or damaged.
    """
    tensors, rest, metadata = _read(folder / WEIGHTS)[0], *_read(folder / REST)
    adapter = _read_lora(folder / CONFIG, metadata.get("train_embeddings") != "false")
    return StoredAdapter(folder, adapter, tensors, rest, metadata.get("vocabulary"))


def load(bundle: ModelBundle, adapter: LoRA | None, stored: StoredAdapter) -> LoRA:
    """Loads a stored adapter and the other trained tensors into a built model (`Pretrained.load_adapter`).

    Args:
        bundle: The built model.
        adapter: The adapter that is on the model already; None puts the stored one on it.
        stored: The content of an adapter folder.

    Returns:
        The adapter that is on the model.

    Raises:
        SailError: The stored adapter does not fit the model, which is then as before.
    """
    folder, model, on_model = stored.folder, bundle.model, adapter
    if stored.vocabulary not in (None, _vocabulary(bundle.tokens)):
        raise SailError(f"{folder} does not fit this model: its embeddings are of another tokenizer, or another order")
    if on_model is None:
        on_model = stored.adapter
        try:
            on_model.apply(model.backbone)
        except SailUsageError as error:
            raise SailError(f"{folder / CONFIG} does not fit this model: {error}") from None
    for name in ("r", "alpha", "rslora", "dora", "train_embeddings"):
        here, there = getattr(on_model, name), getattr(stored.adapter, name)
        if here != there:
            raise SailError(f"{folder} does not fit this model's adapter: {name} is {there} there and {here} here")
    own, own_rest = _adapter_tensors(model), _rest(model)
    for name, mine, theirs in ((WEIGHTS, own, stored.tensors), (REST, own_rest, stored.rest)):
        if faults := state_dict_diff(mine, theirs):
            if adapter is None:
                on_model.remove(model.backbone, merge=False)
            raise SailError(f"{folder / name} does not fit this model: {'; '.join(faults)}")
    load_strict(own | own_rest, stored.tensors | stored.rest, str(folder))
    return on_model


def _adapter_tensors(model: SailModel) -> dict[str, Tensor]:
    """Returns the adapters' own tensors by PEFT's names; they share the model's memory."""
    layers = decoder_layers(model.backbone)
    state = peft.library().get_peft_model_state_dict(layers, adapter_name=NAME, save_embedding_layers=False)
    return {PEFT_PREFIX + key: value for key, value in state.items()}


def _rest(model: SailModel) -> dict[str, Tensor]:
    """Returns the other trained tensors and the buffers by name; of tensors that share memory, the first name only."""
    adapters = tuple(f"{name}." for name, _ in adapted(model))
    rest: dict[int, tuple[str, Tensor]] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        if not frozen and not key.startswith(adapters):
            rest.setdefault(id(value), (key, value))
    return dict(rest.values())


def _vocabulary(tokens: SailTokenizer) -> str:
    """Returns a digest of the token of each row of the embedding table."""
    return hashlib.sha256(json.dumps(tokens.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except FileNotFoundError:
        raise SailError(f"{path.parent} is no whole adapter folder: it has no {path.name}; copy it again") from None
    except (SafetensorError, OSError) as error:
        raise SailError(f"{path} is damaged ({error}); copy it again") from None


def _read_lora(path: Path, train_embeddings: bool) -> LoRA:
    """Returns the adapter that PEFT's config describes.

    Raises:
        SailError: The config is not valid, or requires more than `LoRA` can do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["target_modules"], list):
            raise ValueError("target_modules is no list of names")
        lora = LoRA(
            r=int(found["r"]),
            alpha=float(found["lora_alpha"]),
            dropout=float(found["lora_dropout"]),
            targets=sorted(map(str, found["target_modules"])),
            rslora=bool(found.get("use_rslora", False)),
            dora=bool(found.get("use_dora", False)),
            train_embeddings=train_embeddings,
        )
    except FileNotFoundError:
        raise SailError(f"{path.parent} is no whole adapter folder: it has no {path.name}; copy it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, ValueError, SailError) as error:
        raise SailError(f"{path} is no config of a LoRA adapter ({error}); copy it again") from None
    plain = peft.library().LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout).to_dict()
    plain |= {"use_rslora": lora.rslora, "use_dora": lora.dora}
    others = [key for key in plain.keys() & found.keys() - INCIDENTAL if found[key] != plain[key]]
    if others:
        raise SailError(f"{path} asks for what LoRA here does not do: {truncate_list(sorted(others))}")
    return lora
