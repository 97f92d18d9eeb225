"""Every registered plugin, those of `$SAIL_PLUGINS` included, through the checks of `sail-lightning plugins check`.

A new plugin is covered as soon as it is registered; one that cannot be made without arguments is given some in
`ARGUMENTS`, or in `teacher_folders`. The classes named `Users...` come from a file that a user wrote, loaded as
`--plugins` does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import teacher_folders
import torch
from tiny_sail import BACKBONE, packed, text_records

from sail_lightning import plugins, registry
from sail_lightning.interfaces import Attention, Backbone, Plugin, PromptEncoder, Teacher, Upsampler
from sail_lightning.plugin_check import Check, Subject, checks_of
from sail_lightning.plugin_check.run import COMPUTING

DECODER = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 100.0,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SailQwen": BACKBONE,
    "SailDecoder": {"config": DECODER, "patch_size": 8},
    "EncoderBackbone": {"encoder": "test_vit", **BACKBONE},
    "EVEv2": {**BACKBONE, "mm_hidden_size": 12},
    "UsersBackbone": BACKBONE,
    "UsersWrappedBackbone": {"gain": 3.0, **BACKBONE},
    "TimmTeacher": {"model": "test_convnext", "resize": 32, "weight": 0.5},
}
"""Arguments of plugins that have required ones, or whose default is too large for a test."""
NEEDS_CUDA = {"FlexAttention", "XFormersAttention"}
"""Plugins that do not train on the CPU (their arithmetic is tested there in `plugins/test_attention.py`)."""

USERS_FILE = """
from dataclasses import replace

import torch
from torch import nn

from sail_lightning.interfaces import Attention, PromptEncoder, Teacher, Upsampler
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.registry import register


@register
class UsersAttention(Attention):
    def forward(self, query, key, value, plan, scale):
        ratio = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(ratio, 1) for tensor in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query.to(value.dtype), key.to(value.dtype)) * scale
        scores = scores.masked_fill(~plan.dense_mask().to(scores.device), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


@register
class UsersBackbone(SailQwen):
    prefix = "causal"


@register
class UsersWrappedBackbone(SailQwen):
    def __init__(self, gain: float = 2.0, **kwargs):
        super().__init__(**kwargs)
        self.gain = gain

    def embed_tokens(self, ids):
        return self.gain * super().embed_tokens(ids)


@register
class UsersUpsampler(Upsampler):
    def __init__(self, channels: int = 6):
        super().__init__()
        self.channels = channels

    def build(self, dims):
        self.fold = nn.ConvTranspose2d(dims.hidden_size, self.channels, 2, stride=2)
        return replace(dims, feature_channels=self.channels, feature_stride=dims.patch_size // 2)

    def forward(self, features):
        return self.fold(features)


@register
class UsersPromptEncoder(PromptEncoder):
    def __init__(self, num_prompts: int = 3):
        super().__init__()
        self.num_prompts = num_prompts

    def build(self, dims):
        self.scale = nn.Parameter(torch.ones(dims.hidden_size))
        return dims

    def forward(self, embeddings, regions, region_tokens):
        prompts = (self.scale * region_tokens).index_select(0, regions.patch_region)
        return embeddings.index_add(0, regions.patch_rows, prompts.to(embeddings.dtype))


@register
class UsersTeacher(Teacher):
    student_features = "mask"
    weight = 0.25

    def build(self, dims):
        self.channels = 3
        return dims

    def forward(self, images):
        return nn.functional.avg_pool2d(images.float() / 255, 4)
"""
USERS = {
    "UsersAttention": Attention,
    "UsersBackbone": Backbone,
    "UsersWrappedBackbone": Backbone,
    "UsersUpsampler": Upsampler,
    "UsersPromptEncoder": PromptEncoder,
    "UsersTeacher": Teacher,
}
REGISTERED = {name: base for base in registry.SOCKETS for name in registry.members_of(base)}
VISION_ONLY = ("vis_embed.", "encoder.", "projector.", "patch_embedding.", "class_embedding", "split_embedding")
"""Parts of the shipped backbones that serve images only."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every check of its socket for every plugin."""
    named = sorted((REGISTERED | USERS).items())
    marks = {name: [pytest.mark.gpu] if name in NEEDS_CUDA else [] for name, _ in named}
    if "check" in metafunc.fixturenames:
        cases = [
            pytest.param(name, check, marks=marks[name], id=f"{name}-{check.name.replace(' ', '_')}")
            for name, socket in named
            for check in checks_of(socket)
        ]
        metafunc.parametrize(("plugin", "check"), cases, indirect=["plugin"])
    elif "plugin" in metafunc.fixturenames:
        metafunc.parametrize("plugin", [pytest.param(n, marks=marks[n]) for n, _ in named], indirect=True)


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's classes, registered while this module's tests run."""
    path = tmp_path_factory.mktemp("user") / "contract_users_plugins.py"
    path.write_text(USERS_FILE)
    registry.load(str(path))
    yield path
    for name, base in USERS.items():
        registry.SOCKETS[base].module_dict.pop(name)
    registry.SOURCES.pop(str(path))
    sys.modules.pop(path.stem)
    sys.path.remove(str(path.parent))


@pytest.fixture
def plugin(request: pytest.FixtureRequest) -> type[Plugin]:
    """A plugin's class."""
    if request.param in USERS:
        request.getfixturevalue("users_file")
    found = registry.find(request.param)
    assert found is not None
    return found[1]


def subject(plugin: type[Plugin]) -> Subject:
    """A plugin with the arguments that it is checked with."""
    arguments = ARGUMENTS.get(plugin.__name__) or teacher_folders.arguments(plugin.__name__)
    return Subject(lambda: plugin(**arguments), "cuda" if plugin.__name__ in NEEDS_CUDA else "cpu")


def test_plugins_know_nothing_of_lightning() -> None:
    known = {}
    for path in sorted(Path(plugins.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            known |= {f"{name}.": path.name for name in names}
    assert "sail_lightning.interfaces." in known
    above = ("lightning.", "sail_lightning.module.", "sail_lightning.data.datamodule.", "sail_lightning.cli.")
    assert {name: where for name, where in known.items() if name.startswith(above)} == {}


def test_a_plugin_keeps_the_contract_of_its_socket(plugin: type[Plugin], check: Check) -> None:
    check(subject(plugin))


def test_every_socket_is_checked() -> None:
    assert set(COMPUTING) == set(registry.SOCKETS)
    assert set(USERS.values()) == set(registry.SOCKETS)


def test_a_plugin_remembers_the_arguments_that_it_was_made_with(plugin: type[Plugin]) -> None:
    given = getattr(subject(plugin).make(), "init_args", {})
    assert ARGUMENTS.get(plugin.__name__, {}).items() <= given.items()


def test_words_alone_teach_the_shipped_backbones_nothing_about_images(plugin: type[Plugin]) -> None:
    model = subject(plugin).model()
    sums, _ = model.losses(packed(model, text_records()))
    torch.stack([value.float() for value in sums.values()]).sum().backward()
    eyes = tuple(f"model.backbone.{name}" for name in VISION_ONLY)
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if name.startswith(eyes)}
    assert grads
    assert [name for name, grad in grads.items() if grad is None or grad.any()] == []
