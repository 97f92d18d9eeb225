"""Compiled layers: the same numbers, no graph break, and a graph for each form of a batch, not for each batch.

`aot_eager` traces and differentiates as any backend does, and needs no compiler of C++ or CUDA.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import xformers_emulation as emulation
from tiny_sail import BACKBONE, packed, picture, records, tiny
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from sail_lightning.interfaces import Attention, Backbone, Dims
from sail_lightning.plugins.attention import AutoAttention, FlexAttention, SDPAAttention, XFormersAttention
from sail_lightning.plugins.backbones import EncoderBackbone, EVEv2, SailDecoder, SailQwen, core
from sail_lightning.pretrained.lora import LoRA
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

FIRST = 1
"""torch traces its first graph twice, until it knows that the scale of the scores is a constant."""
needs_xformers = pytest.mark.skipif(not emulation.available(), reason="xformers or its flash operators are missing")
Layout = list[list[Span]]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs of compiled layers in `frame_count`."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(core, "COMPILER", counter)
    with torch._dynamo.config.patch(recompile_limit=8):  # put back afterwards
        yield counter
    torch._dynamo.reset()


def qwen(**changes: Any) -> SailQwen:
    return SailQwen(**(BACKBONE | changes))


def decoder(kind: str, **changes: Any) -> SailDecoder:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 100.0}
    config = {"model_type": kind, "hidden_size": 32, "intermediate_size": 48, **sizes}
    return SailDecoder(config=config, patch_size=8, **changes)


def built(backbone: Backbone) -> Backbone:
    torch.manual_seed(0)
    backbone.build(Dims(vocab_size=8))
    return backbone.train()


def emulated(kernel: type[Attention]) -> AbstractContextManager[Any]:
    return emulation.emulated() if kernel is XFormersAttention else nullcontext()


def step(backbone: Backbone, samples: Layout, grad: bool = True) -> dict[str, Tensor]:
    """The output over a packed batch, and all gradients of its layers."""
    backbone.zero_grad()
    plan = AttentionPlan.build(samples)
    vision = [span.kind == "image" for spans in plan.samples for span in spans for _ in range(span.length)]
    generator = torch.Generator().manual_seed(len(vision))
    embeddings, upstream = torch.randn(2, len(vision), 32, generator=generator)
    embeddings.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        output = backbone(embeddings, torch.arange(len(vision)).expand(3, -1), plan, torch.tensor(vision))
    if not grad:
        return {"output": output}
    output.backward(upstream)
    layers: Any = backbone.model
    found = {name: p.grad for name, p in layers.layers.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "embeddings": embeddings.grad, **found}


def assert_same(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text)


def assert_compiled_is_eager(make: Callable[..., Backbone], layouts: list[Layout], grad: bool = True) -> None:
    """Over all batches, with one compiled backbone, and without a graph break."""
    eager, compiled = built(make()), built(make(compile_layers=True))
    for samples in layouts:
        assert_same(step(compiled, samples, grad), step(eager, samples, grad))
    assert not counters["graph_break"]


def drawn(forms: list[list[str]], seed: int = 0) -> Layout:
    """Samples of the kinds of spans given, whose lengths are not those of the model's own axes (16, 32, 48)."""
    draw = random.Random(seed)
    return [[Span(kind, draw.randint(17, 29)) for kind in form] for form in forms]  # type: ignore[arg-type]


SAMPLES = [["image", "text"], ["text", "image", "text"], ["text"], ["image", "text", "image", "text"]]


def any_layouts(count: int) -> list[Layout]:
    draw = random.Random(0)
    return [drawn(draw.choices(SAMPLES, k=draw.randint(2, 4)), seed) for seed in range(count)]


def form(samples: Layout) -> tuple[Any, ...]:
    """What compiled code sees of a plan, but for lengths."""
    plan = AttentionPlan.build(samples)
    calls = [(call.causal, call.query_rows is None, call.key_rows is None) for call in plan.calls]
    return (*calls, plan.inverse is None)


@pytest.mark.slow
@needs_xformers
def test_the_xformers_path_has_few_graphs_for_batches_of_any_layout(compiler: CompileCounterWithBackend) -> None:
    layouts = any_layouts(9)
    with emulation.emulated():
        assert_compiled_is_eager(lambda **kw: qwen(attention=XFormersAttention(), **kw), layouts)
    forms = {form(samples) for samples in layouts}
    assert len(forms) <= 4
    assert 0 < compiler.frame_count <= len(forms) + FIRST


@needs_xformers
def test_a_change_of_lengths_and_samples_is_no_new_graph(compiler: CompileCounterWithBackend) -> None:
    layouts = [drawn([*SAMPLES[:2], *SAMPLES[: seed % 3]], seed) for seed in range(8)]
    assert len({form(samples) for samples in layouts}) == 1
    with emulation.emulated():
        assert_compiled_is_eager(lambda **kw: qwen(attention=XFormersAttention(), **kw), layouts)
    assert compiler.frame_count <= 1 + FIRST


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [SDPAAttention, AutoAttention])
def test_sdpa_has_a_graph_for_each_structure_of_spans(
    kernel: type[Attention], compiler: CompileCounterWithBackend
) -> None:
    structures = [SAMPLES[:1], SAMPLES[:2], SAMPLES[2:]]
    layouts = [drawn(structures[seed % 3], seed) for seed in range(8)]
    assert_compiled_is_eager(lambda **kw: qwen(attention=kernel(), **kw), layouts)
    assert compiler.frame_count <= len(structures) + FIRST


@pytest.mark.slow
def test_flex_has_a_graph_for_one_block_and_one_for_several(compiler: CompileCounterWithBackend) -> None:
    layouts = [drawn(SAMPLES[:1]), *any_layouts(6), [[Span("image", 150), Span("text", 120)], [Span("text", 40)]]]
    assert {sum(span.length for spans in samples for span in spans) > 128 for samples in layouts} == {False, True}
    assert_compiled_is_eager(lambda **kw: qwen(attention=FlexAttention(), **kw), layouts, grad=False)
    assert compiler.frame_count <= 2 + FIRST


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "llama": lambda **kw: decoder("llama", **kw),
    "qwen3": lambda **kw: decoder("qwen3", **kw),
    "EVEv2": lambda **kw: EVEv2(**(BACKBONE | {"mm_hidden_size": 12} | kw)),
    "EncoderBackbone": lambda **kw: EncoderBackbone("test_vit", **(BACKBONE | kw)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_compiles(name: str, compiler: CompileCounterWithBackend) -> None:
    layouts = [drawn(SAMPLES[:2], seed) for seed in range(3)]
    assert_compiled_is_eager(BACKBONES[name], layouts)
    assert 0 < compiler.frame_count <= 1 + FIRST


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [SDPAAttention, pytest.param(XFormersAttention, marks=needs_xformers)])
def test_compiled_layers_are_checkpointed_too(kernel: type[Attention], compiler: CompileCounterWithBackend) -> None:
    layouts = [drawn(SAMPLES[:2], seed) for seed in range(3)]
    with emulated(kernel):
        assert_compiled_is_eager(
            lambda **kw: qwen(attention=kernel(), activation_checkpointing="compile_layers" in kw, **kw), layouts
        )
    operators = {str(node.target) for graph in compiler.graphs for node in graph.graph.nodes}
    assert "tag_activation_checkpoint" in operators
    assert compiler.frame_count <= 1 + FIRST


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_are_compiled_with_the_layers(checkpointing: bool, compiler: CompileCounterWithBackend) -> None:
    models = []
    for compile_layers in (False, True):
        backbone = qwen(compile_layers=compile_layers, activation_checkpointing=checkpointing)
        model = tiny(backbone=backbone, adapter=LoRA(r=4)).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        sums, _ = model.losses(packed(model, records()))
        torch.stack([value.float() for value in sums.values()]).sum().backward()
        models.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert any("lora_A" in name for name in models[0])
    assert_same(models[1], models[0])
    assert compiler.frame_count > 0
    assert not counters["graph_break"]


@pytest.mark.parametrize("backbone", [qwen, BACKBONES["EVEv2"]])
def test_generation_is_not_compiled(backbone: Callable[..., Backbone], compiler: CompileCounterWithBackend) -> None:
    plain, model = tiny(backbone=backbone()), tiny(backbone=backbone(compile_layers=True))
    batch = packed(model, records())
    for trained in (False, True):
        if trained:
            model.losses(batch)
            assert compiler.frame_count > 0
        before = compiler.frame_count
        answers = [m.predict(picture(20, 30), "please segment it.") for m in (plain, model)]
        assert answers[0].text == answers[1].text
        assert (answers[0].masks == answers[1].masks).all()
        assert compiler.frame_count == before
    compiled = [layer._compiled_call_impl for layer in model.model.backbone.model.layers]
    assert None not in compiled, "layers are compiled again after generation"


@pytest.mark.slow
def test_names_of_weights_stay_and_a_copy_compiles_by_itself(compiler: CompileCounterWithBackend) -> None:
    plain, compiled = built(qwen()), built(qwen(compile_layers=True))
    samples = drawn(SAMPLES[:2])
    wanted = step(plain, samples)
    assert_same(step(compiled, samples), wanted)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    again = copy.deepcopy(compiled)
    assert_same(step(again, samples), wanted)
    assert all(layer._compiled_call_impl is not None for layer in again.model.layers)


class Untraceable(SDPAAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(query, key, value, plan, scale)


@pytest.mark.slow
def test_a_kernel_that_cannot_be_traced_breaks_the_graph_and_nothing_else(compiler: CompileCounterWithBackend) -> None:
    samples = drawn(SAMPLES[:2])
    wanted = step(built(qwen(attention=Untraceable())), samples)
    assert_same(step(built(qwen(attention=Untraceable(), compile_layers=True)), samples), wanted)
    assert counters["graph_break"]
