"""What every plugin owes its socket. All registered plugins are checked, those of `$SAIL_PLUGINS` included.

A new plugin is covered as soon as it is registered; one that cannot be made without arguments is given some in
`ARGUMENTS`, or in `teacher_folders`. The classes named `Users...` come from a file that a user wrote, loaded as
`--plugins` does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import teacher_folders
import torch
from decoding_harness import read_in_turns
from tiny_sail import BACKBONE, packed, picture, records, text_records, tiny
from torch import Tensor

from sail_lightning import plugins, registry
from sail_lightning.interfaces import Attention, Backbone, Dims, Plugin, PromptEncoder, Regions, Teacher, Upsampler
from sail_lightning.model.model import ModelOutput
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.sample import Box
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

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
    tap = "mask"
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
REGISTERED = {name: base for base in registry.SOCKETS for name in registry.plugins_of(base)}
SLOTS = {Backbone: "backbone", Upsampler: "upsampler", PromptEncoder: "prompt_encoder"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "plugin" in metafunc.fixturenames:
        names = sorted(REGISTERED | USERS)
        marks = {name: [pytest.mark.gpu] if name in NEEDS_CUDA else [] for name in names}
        metafunc.parametrize("plugin", [pytest.param(n, marks=marks[n]) for n in names], indirect=True)


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


def made(plugin: type[Plugin]) -> Any:
    """A plugin as configured, not built."""
    return plugin(**(ARGUMENTS.get(plugin.__name__) or teacher_folders.arguments(plugin.__name__)))


def device(plugin: type[Plugin]) -> torch.device:
    return torch.device("cuda" if plugin.__name__ in NEEDS_CUDA else "cpu")


def model_with(plugin: type[Plugin], dtype: torch.dtype = torch.float32) -> PixelSAIL:
    """A built Pixel-SAIL with the plugin in its socket."""
    instance = made(plugin)
    if isinstance(instance, Attention):
        changes: dict[str, Any] = {"backbone": SailQwen(**BACKBONE, attention=instance)}
    elif isinstance(instance, Teacher):
        changes = {"teachers": {"expert": instance, "off": None}}
    else:
        changes = {next(slot for base, slot in SLOTS.items() if isinstance(instance, base)): instance}
    return tiny(**changes).to(device(plugin), dtype)


def dims_for(plugin: type[Plugin]) -> Dims:
    """What plugins built earlier have published."""
    dims = Dims(vocab_size=50)
    if not issubclass(plugin, Backbone | Attention):
        dims = replace(dims, hidden_size=32, patch_size=16)
    if not issubclass(plugin, Backbone | Attention | Upsampler):
        dims = replace(dims, feature_channels=12, feature_stride=4)
    return dims


def outputs(output: ModelOutput) -> list[Tensor]:
    groups = [group.maps for group in (*output.vision, *output.mask)]
    return [output.hidden, output.logits, *output.mask_logits, *groups]


def gradients(model: PixelSAIL, samples: list[Any]) -> dict[str, Tensor | None]:
    """Of the sum of all losses, by parameter."""
    model.zero_grad()
    sums, _ = model.losses(packed(model, samples))
    torch.stack([value.float() for value in sums.values()]).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_network(first: PixelSAIL, second: PixelSAIL, samples: list[Any]) -> None:
    """The same weights, outputs and answers."""
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    with torch.no_grad():
        pairs = zip(*(outputs(m.eval().model(packed(m, samples))) for m in (first, second)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    prompts = [Box(1, 2, 15, 14)]
    answers = [m.predict(picture(20, 30), "please segment <Prompt0>.", prompts) for m in (first, second)]
    assert answers[0].text == answers[1].text
    assert (answers[0].masks == answers[1].masks).all()


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


def test_making_a_plugin_costs_nothing(plugin: type[Plugin]) -> None:
    instance = made(plugin)
    assert not list(instance.parameters())
    assert not list(instance.buffers())


def test_a_plugin_remembers_how_it_was_made(plugin: type[Plugin]) -> None:
    first = made(plugin)
    second = plugin(**getattr(first, "init_args", {}))
    assert getattr(second, "init_args", {}) == getattr(first, "init_args", {})
    assert ARGUMENTS.get(plugin.__name__, {}).items() <= getattr(first, "init_args", {}).items()


def test_build_publishes_and_the_shapes_are_the_sockets(plugin: type[Plugin]) -> None:
    instance, before = made(plugin), dims_for(plugin)
    dims = instance.build(before)
    assert dims.vocab_size == 50
    check = next(check for base, check in SHAPES.items() if isinstance(instance, base))
    check(instance.to(device(plugin)), before, dims)


def test_a_plugin_is_built_in_bfloat16_as_lightnings_bf16_true_does(plugin: type[Plugin]) -> None:
    instance = made(plugin)
    torch.set_default_dtype(torch.bfloat16)
    try:
        instance.build(dims_for(plugin))
    finally:
        torch.set_default_dtype(torch.float32)
    if not isinstance(instance, Teacher):  # an expert may keep its own precision
        assert {p.dtype for p in instance.parameters()} <= {torch.bfloat16}


def check_attention(attention: Attention, before: Dims, dims: Dims) -> None:
    assert dims == before
    assert not attention.state_dict()
    on = "cuda" if type(attention).__name__ in NEEDS_CUDA else "cpu"
    plan = AttentionPlan.build([[Span("image", 6), Span("text", 3)], [Span("text", 4)]], on)
    for groups in (4, 2):
        query, key, value = (torch.randn(13, heads, 16, device=on) for heads in (4, groups, groups))
        assert attention(query, key, value, plan, 0.25).shape == (13, 4, 16)


def check_backbone(backbone: Backbone, before: Dims, dims: Dims) -> None:
    width, patch = dims.hidden_size, dims.patch_size
    assert width > 0 and patch > 0
    assert backbone.chat.answer_end in backbone.chat.stops
    assert backbone.resize in ("longest", "area")
    words = backbone.embed_tokens(torch.arange(5))
    patches = backbone.embed_patches(torch.randint(0, 256, (6, 3 * patch * patch), dtype=torch.uint8), [(2, 3)])
    assert (words.shape, patches.shape) == ((5, width), (6, width))
    plan = AttentionPlan.build([[Span("image", 6), Span("text", 5)]])
    hidden = backbone(torch.cat([patches, words]), torch.arange(11).expand(3, -1), plan, torch.arange(11) < 6)
    assert hidden.shape == (11, width)
    assert backbone.logits(hidden).shape == (11, 50)
    rows = [torch.cat([patches, words]), words]
    places = [torch.arange(len(row)).expand(3, -1) for row in rows]
    vision = [torch.arange(11) < 6, torch.zeros(5, dtype=torch.bool)]
    found = read_in_turns(backbone, rows, places, vision, (7, 2))
    for row, place, seen, states in zip(rows, places, vision, found, strict=True):
        wanted = backbone(row, place, AttentionPlan.build([[Span("text", len(row))]]), seen)
        torch.testing.assert_close(states, wanted, atol=1e-4, rtol=1e-4)


def check_upsampler(upsampler: Upsampler, before: Dims, dims: Dims) -> None:
    scale, rest = divmod(dims.patch_size, dims.feature_stride)
    assert rest == 0
    assert (dims.hidden_size, dims.patch_size) == (before.hidden_size, before.patch_size)
    for count in (2, 0):
        shown = [torch.randint(0, 256, (count, 3, 48, 80), dtype=torch.uint8)] if upsampler.guided else []
        features = upsampler(torch.randn(count, 32, 3, 5), *shown)
        assert features.shape == (count, dims.feature_channels, 3 * scale, 5 * scale)


def check_prompt_encoder(encoder: PromptEncoder, before: Dims, dims: Dims) -> None:
    assert dims == before
    assert encoder.num_prompts > 0
    embeddings, none = torch.randn(9, 32), torch.empty(0, dtype=torch.int64)
    untouched = encoder(embeddings, Regions(none, none, none, none, none, torch.empty(0, 4)), torch.empty(0, 32))
    assert torch.equal(untouched, embeddings)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.25, 0.5, 1.0, 1.0]])
    regions = Regions(*(torch.tensor(rows) for rows in ([40, 41], [1, 2, 2], [0, 0, 1], [7], [1])), boxes)
    assert encoder(embeddings, regions, torch.randn(2, 32)).shape == (9, 32)


def check_teacher(teacher: Teacher, before: Dims, dims: Dims) -> None:
    assert dims == before
    assert teacher.tap in ("vision", "mask")
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    features = teacher(teacher_folders.PICTURES)
    assert features.ndim == 4
    assert features.shape[:2] == (2, teacher.channels)
    assert not features.requires_grad


SHAPES: dict[type[Plugin], Any] = {
    Attention: check_attention,
    Backbone: check_backbone,
    Upsampler: check_upsampler,
    PromptEncoder: check_prompt_encoder,
    Teacher: check_teacher,
}


def test_every_socket_is_checked() -> None:
    assert set(SHAPES) == set(registry.SOCKETS)
    assert set(USERS.values()) == set(registry.SOCKETS)


def test_every_parameter_gets_a_gradient(plugin: type[Plugin]) -> None:
    grads = gradients(model_with(plugin), records())
    assert [name for name, grad in grads.items() if grad is None or not grad.any()] == []
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)


def test_words_alone_give_zero_gradients_not_missing_ones(plugin: type[Plugin]) -> None:
    grads = gradients(model_with(plugin), text_records())
    assert [name for name, grad in grads.items() if grad is None] == []
    eyes = ("model.backbone.vis_embed.", "model.backbone.encoder.", "model.backbone.projector.")
    eyes += ("model.backbone.patch_embedding.", "model.backbone.class_embedding", "model.backbone.split_embedding")
    heads = ("model.upsampler.", "model.mask_head.", "model.prompt_encoder.", "distill.", *eyes)
    assert [name for name, grad in grads.items() if name.startswith(heads) and grad is not None and grad.any()] == []


def test_a_model_in_bfloat16_gives_finite_outputs_losses_and_gradients(plugin: type[Plugin]) -> None:
    model = model_with(plugin, torch.bfloat16)
    output = model.model(packed(model, records()), taps={"vision", "mask"})
    assert output.logits.dtype == torch.bfloat16
    assert all(tensor.isfinite().all() for tensor in outputs(output))
    grads = gradients(model, records())
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []


def test_autocast_gives_about_the_same_losses_and_a_gradient_for_every_parameter(plugin: type[Plugin]) -> None:
    model = model_with(plugin)
    batch = packed(model, records())
    exact, _ = model.losses(batch)
    with torch.autocast(device(plugin).type, torch.bfloat16):
        sums, _ = model.losses(batch)
    for name, value in sums.items():
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05), name
    torch.stack([value.float() for value in sums.values()]).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []


def test_a_lightning_checkpoint_brings_the_model_back(plugin: type[Plugin], tmp_path: Path) -> None:
    model = model_with(plugin)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    again = PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt", map_location=device(plugin))
    assert_same_network(model, again, records())
    assert not list(again.distill.parameters()), "teachers are made where training begins"
    again.configure_teachers()
    ours, theirs = model.distill.state_dict(), again.distill.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value.cpu(), theirs[k].cpu()) for k, value in ours.items())
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert stored.keys() == dict(model.named_parameters()).keys(), "teachers' weights are in no checkpoint"


def test_a_model_folder_brings_the_model_back(plugin: type[Plugin], tmp_path: Path) -> None:
    model = model_with(plugin)
    again = PixelSAIL.from_pretrained(model.save_pretrained(tmp_path / "folder")).to(device(plugin))
    assert_same_network(model, again, records())
    assert not list(again.distill.parameters()), "a folder holds no trace of teachers"
