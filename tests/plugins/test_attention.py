"""Prefix attention: every kernel equals a float64 softmax under the dense mask, forward and backward."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xformers_emulation as emulation
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sail import BACKBONE
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Attention, Dims
from sail_lightning.plugins.attention import (
    AutoAttention,
    FlexAttention,
    SDPAAttention,
    XFormersAttention,
    auto,
    resolve,
    xformers,
)
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

needs_xformers = pytest.mark.skipif(not emulation.available(), reason="xformers or its flash operators are missing")

IMAGE_FIRST = [Span("image", 12), Span("text", 5)]
TEXT_FIRST = [Span("text", 3), Span("image", 7), Span("text", 4)]
TEXT_ONLY = [Span("text", 9)]
IMAGE_ONLY = [Span("image", 6)]
INTERLEAVED = [Span("image", 4), Span("text", 2), Span("image", 3), Span("text", 1), Span("image", 2), Span("text", 3)]
LAYOUTS = {
    "image first": [IMAGE_FIRST],
    "text first": [TEXT_FIRST],
    "text only": [TEXT_ONLY],
    "image only": [IMAGE_ONLY],
    "one token": [[Span("text", 1)]],
    "interleaved": [INTERLEAVED],
    "packed": [IMAGE_FIRST, TEXT_ONLY, TEXT_FIRST, IMAGE_ONLY, INTERLEAVED, IMAGE_FIRST],
}
LONG = [[Span("image", 200), Span("text", 130)], [Span("text", 5), Span("image", 250), Span("text", 40)], TEXT_ONLY]
"""Several blocks of 128, none of whose edges is a sample's."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}

spans = st.builds(Span, st.sampled_from(["image", "text"]), st.integers(0, 9))
batches = st.lists(st.lists(spans, min_size=1, max_size=5), min_size=1, max_size=4).filter(
    lambda samples: any(span.length for sample in samples for span in sample)
)
heads = st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)])


def tensors(
    plan: AttentionPlan, sizes: tuple[int, int], dtype: torch.dtype, seed: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """Query, key, value and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(plan.lengths)
    made = [torch.randn(total, count, 16, generator=generator) for count in (*sizes, sizes[1], sizes[0])]
    moved = [tensor.to(device, dtype) for tensor in made]
    return [*(tensor.requires_grad_() for tensor in moved[:3]), moved[3]]


def oracle(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention by definition, in the dtype given."""
    ratio = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(ratio, 1), value.repeat_interleave(ratio, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), value)


def assert_equals_oracle(
    kernel: Attention,
    plan: AttentionPlan,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    device: str = "cpu",
    backward: bool = True,
) -> None:
    """Output and the gradients of query, key and value, as relative errors in the 2-norm."""
    *inputs, upstream = tensors(plan, sizes, dtype, device=device)
    query, key, value = exact = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    expected = oracle(query, key, value, plan.dense_mask(), 0.3)
    expected.backward(upstream.cpu().double())
    with torch.set_grad_enabled(backward):
        output = kernel(*inputs, plan, 0.3)
    assert output.dtype == dtype
    assert output.shape == expected.shape
    compared, references = [output], [expected]
    if backward:
        output.backward(upstream)
        compared += [tensor.grad for tensor in inputs]
        references += [tensor.grad for tensor in exact]
    for name, ours, reference in zip(("output", "dq", "dk", "dv"), compared, references, strict=False):
        assert ours is not None and reference is not None, name
        error = (ours.detach().cpu().double() - reference).norm()
        # A lone token has no gradient at all in its query; the floor keeps rounding there from counting as an error.
        floor = max(reference.norm().item(), reference.numel() ** 0.5)
        assert error <= TOLERANCE[dtype] * floor, f"{name} is off by {error / floor:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sdpa_is_exact_for_every_layout(layout: str, dtype: torch.dtype) -> None:
    assert_equals_oracle(SDPAAttention(), AttentionPlan.build(LAYOUTS[layout]), (4, 2), dtype)


@settings(max_examples=50)
@given(samples=batches, sizes=heads, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_sdpa_equals_the_dense_mask_for_any_packed_batch(
    samples: list[list[Span]], sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_equals_oracle(SDPAAttention(), AttentionPlan.build(samples), sizes, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "long"])
def test_flex_is_exact_for_every_layout(layout: str, dtype: torch.dtype) -> None:
    plan = AttentionPlan.build((LAYOUTS | {"long": LONG})[layout])
    assert_equals_oracle(FlexAttention(), plan, (4, 2), dtype, backward=False)


@settings(max_examples=50)
@given(samples=batches, sizes=heads, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_flex_equals_the_dense_mask_for_any_packed_batch(
    samples: list[list[Span]], sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_equals_oracle(FlexAttention(), AttentionPlan.build(samples), sizes, dtype, backward=False)


long_spans = st.builds(Span, st.sampled_from(["image", "text"]), st.integers(1, 300))


@settings(max_examples=25)
@given(samples=st.lists(st.lists(long_spans, min_size=1, max_size=3), min_size=1, max_size=3))
def test_blocks_of_flex_are_those_that_torch_finds_in_the_dense_mask(samples: list[list[Span]]) -> None:
    plan = AttentionPlan.build(samples)
    FlexAttention().prepare(plan, torch.device("cpu"))
    (ours,) = plan.cache.values()
    dense, total = plan.dense_mask(), sum(plan.lengths)
    wanted = create_block_mask(lambda b, h, query, key: dense[query, key], None, None, total, total, device="cpu")
    assert torch.equal(ours.to_dense(), wanted.to_dense())
    assert torch.equal(ours.kv_num_blocks, wanted.kv_num_blocks)
    assert torch.equal(ours.full_kv_num_blocks, wanted.full_kv_num_blocks)
    assert torch.equal(ours.q_num_blocks, wanted.q_num_blocks), "the backward pass goes by keys"


def test_flex_without_gradients_on_the_cpu_says_what_to_choose() -> None:
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    with pytest.raises(SailUsageError, match="no gradients on the CPU; choose `attention: SDPAAttention`"):
        FlexAttention()(query, key, value, plan, 0.3)


@pytest.mark.parametrize("kernel", [SDPAAttention(), AutoAttention()], ids=lambda kernel: type(kernel).__name__)
def test_query_and_key_of_another_dtype_follow_the_value(kernel: Attention) -> None:
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    mixed = kernel(query, key, value.bfloat16(), plan, 0.3)
    torch.testing.assert_close(mixed, kernel(query.bfloat16(), key.bfloat16(), value.bfloat16(), plan, 0.3))


def test_the_suffix_mask_is_made_once_for_all_layers_and_samples() -> None:
    plan = AttentionPlan.build([IMAGE_FIRST, IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    SDPAAttention().prepare(plan, query.device)
    (steps,) = plan.cache.values()
    masks = [step.mask for sample in steps for step in sample]
    assert masks[1] is not None and masks[1] is masks[3]
    SDPAAttention()(query, key, value, plan, 0.3)
    assert list(plan.cache.values()) == [steps]


@given(samples=batches)
def test_a_plan_computes_every_row_once_in_at_most_two_calls(samples: list[list[Span]]) -> None:
    plan = AttentionPlan.build(samples)
    everything = torch.arange(sum(plan.lengths))
    rows = torch.cat([everything if call.query_rows is None else call.query_rows for call in plan.calls])
    assert len(plan.calls) <= 2
    assert [len(call.query_lengths) for call in plan.calls] == [len(call.key_lengths) for call in plan.calls]
    assert torch.equal(rows if plan.inverse is None else rows[plan.inverse], everything)


@needs_xformers
@settings(max_examples=50)
@given(samples=batches)
def test_the_biases_of_the_calls_together_are_the_dense_mask(samples: list[list[Span]]) -> None:
    plan = AttentionPlan.build(samples)
    everything = torch.arange(sum(plan.lengths))
    seen = torch.zeros(len(everything), len(everything))
    for call, bias in zip(plan.calls, xformers._prepared(plan, torch.device("cpu"))[1], strict=True):
        queries = everything if call.query_rows is None else call.query_rows
        keys = everything if call.key_rows is None else call.key_rows
        allowed = (bias.materialize((len(queries), len(keys))) == 0).float()
        seen.index_put_((queries[:, None], keys[None]), allowed, accumulate=True)
    assert torch.equal(seen > 0, plan.dense_mask())
    assert seen.max() <= 1, "a pair is computed twice"


@needs_xformers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_xformers_path_is_exact_for_every_layout(layout: str, dtype: torch.dtype) -> None:
    with emulation.emulated():
        assert_equals_oracle(XFormersAttention(), AttentionPlan.build(LAYOUTS[layout]), (4, 2), dtype)


@needs_xformers
@settings(max_examples=25)
@given(samples=batches, sizes=heads, dtype=st.sampled_from([torch.float32, torch.float16]))
def test_xformers_path_equals_the_dense_mask_for_any_packed_batch(
    samples: list[list[Span]], sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    with emulation.emulated():
        assert_equals_oracle(XFormersAttention(), AttentionPlan.build(samples), sizes, dtype)


@needs_xformers
def test_xformers_path_keeps_grouped_heads_where_no_gradient_is_needed() -> None:
    plan = AttentionPlan.build(LAYOUTS["packed"])
    query, key, value, _ = tensors(plan, (4, 2), torch.float16)
    with emulation.emulated() as calls, torch.no_grad():
        output = XFormersAttention()(query, key, value, plan, 0.3)
    assert calls == [("forward", 2, False), ("forward", 2, True)]
    expected = oracle(query.double(), key.double(), value.double(), plan.dense_mask(), 0.3)
    torch.testing.assert_close(output.double(), expected, atol=3e-3, rtol=3e-3)


@needs_xformers
def test_xformers_path_repeats_heads_where_gradients_are_needed() -> None:
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, upstream = tensors(plan, (4, 2), torch.float16)
    with emulation.emulated() as calls:
        XFormersAttention()(query, key, value, plan, 0.3).backward(upstream)
    assert {groups for _, groups, _ in calls} == {4}


@needs_xformers
def test_xformers_biases_are_made_once_for_all_layers() -> None:
    plan = AttentionPlan.build([IMAGE_FIRST, TEXT_FIRST])
    query, key, value, _ = tensors(plan, (2, 2), torch.float32)
    with emulation.emulated():
        XFormersAttention().prepare(plan, query.device)
        (first,) = plan.cache.values()
        XFormersAttention()(query, key, value, plan, 0.3)
    assert list(plan.cache.values()) == [first]


@needs_xformers
@pytest.mark.parametrize("deterministic", [True, False])
def test_torchs_deterministic_mode_means_the_cutlass_kernels(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = xformers.load_xformers()
    chosen: list[object] = []

    def recorded(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        chosen.append(options["op"])
        return query

    fake = SimpleNamespace(
        memory_efficient_attention=recorded, MemoryEfficientAttentionCutlassOp=ops.MemoryEfficientAttentionCutlassOp
    )
    monkeypatch.setattr(xformers, "load_xformers", lambda: fake)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float16)
    XFormersAttention()(query, key, value, plan, 0.3)
    assert chosen == [ops.MemoryEfficientAttentionCutlassOp if deterministic else None] * 2


@needs_xformers
def test_deterministic_sums_the_gradients_of_a_key_in_a_fixed_order() -> None:
    rows = torch.tensor([0, 1, 0, 2, 0])
    names = []
    for deterministic in (True, False):
        tokens = torch.randn(3, 2, requires_grad=True)
        gathered = xformers._rows(tokens * 1, rows, deterministic)
        assert torch.equal(gathered, tokens[rows])
        names.append(type(gathered.grad_fn).__name__)
    # On CUDA, index_put sums in sorted order always, index_add only where torch is told to be deterministic.
    assert names == ["IndexBackward0", "IndexSelectBackward0"]


@needs_xformers
def test_xformers_on_a_device_without_kernels_says_what_to_choose() -> None:
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    with pytest.raises(SailError, match=r"no kernel for torch\.float32 tensors on cpu.*SDPAAttention"):
        XFormersAttention()(query, key, value, plan, 0.3)


def test_missing_xformers_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    xformers.load_xformers.cache_clear()
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(SailError, match=r"cannot import xformers.*sail-lightning\[cuda\].*SDPAAttention"):
        xformers.load_xformers()


@needs_xformers
def test_an_xformers_without_its_cuda_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    xformers.load_xformers()
    monkeypatch.setattr(sys.modules["xformers._cpp_lib"], "_built_with_cuda", False)
    with pytest.raises(SailError, match=r"libcudart\.so\.12.*SDPAAttention"):
        xformers.check_cuda()


def test_auto_is_sdpa_on_the_cpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    plan = AttentionPlan.build([TEXT_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    kernel = resolve("auto")
    with caplog.at_level(logging.INFO, logger=auto.__name__):
        kernel.prepare(plan, query.device)
        output = kernel(query, key, value, plan, 0.3)
        kernel(query, key, value, plan, 0.3)
    assert [record.getMessage() for record in caplog.records] == ["attention on cpu: SDPAAttention"]
    assert torch.equal(output, SDPAAttention()(query, key, value, plan, 0.3))


def test_auto_never_falls_back_silently_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise SailError("the library does not load")

    monkeypatch.setattr(auto, "check_cuda", broken)
    with pytest.raises(SailError, match=r"the library does not load.*choose `attention: SDPAAttention`"):
        auto.choose(torch.device("cuda"))


def test_the_trial_of_auto_trains_a_kernel_in_prediction_too() -> None:
    grads: list[bool] = []

    class Watched(SDPAAttention):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
            query.register_hook(lambda gradient: grads.append(bool(gradient.isfinite().all())))
            return super().forward(query, key, value, plan, scale)

    with torch.inference_mode():  # as `generate` runs
        auto.probe(Watched(), torch.device("cpu"))
        assert torch.is_inference_mode_enabled()
    assert grads == [True]


@needs_xformers
def test_the_trial_of_auto_runs_xformers_both_ways_in_prediction() -> None:
    with emulation.emulated() as calls, torch.inference_mode():
        auto.probe(XFormersAttention(), torch.device("cpu"))
    assert sorted(name for name, _, _ in calls) == ["backward", "backward", "forward", "forward"]


def test_a_kernel_that_does_not_train_fails_the_trial() -> None:
    class Forward(SDPAAttention):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
            return super().forward(query, key, value, plan, scale).detach()

    with pytest.raises(RuntimeError, match="does not require grad"):
        auto.probe(Forward(), torch.device("cpu"))


@pytest.mark.gpu
def test_auto_is_xformers_on_cuda_in_prediction_too() -> None:
    with torch.inference_mode():
        assert isinstance(auto.choose(torch.device("cuda")), XFormersAttention)


def test_a_kernel_given_by_the_user_is_kept() -> None:
    kernel = SDPAAttention()
    assert resolve(kernel) is kernel


def step_of(kernel: Attention, autocast: bool = False, **changes: Any) -> dict[str, Tensor]:
    """The output of a backbone over a packed batch, and its gradients."""
    torch.manual_seed(0)
    backbone = SailQwen(**(BACKBONE | changes), attention=kernel)
    backbone.build(Dims(vocab_size=8))
    plan = AttentionPlan.build(LAYOUTS["packed"])
    total = sum(plan.lengths)
    embeddings = torch.randn(total, 32, requires_grad=True)
    with torch.autocast("cpu", torch.float16) if autocast else nullcontext():
        output = backbone(embeddings, torch.arange(total).expand(3, -1), plan, torch.zeros(total, dtype=torch.bool))
    (output.float() * torch.randn(total, 32)).sum().backward()
    found = {name: parameter.grad for name, parameter in backbone.model.layers.named_parameters()}
    return {"output": output.detach(), "embeddings": embeddings.grad, **found}


KERNELS = [SDPAAttention, pytest.param(XFormersAttention, marks=needs_xformers)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_activation_checkpointing_changes_nothing(kernel: type[Attention], autocast: bool) -> None:
    with emulation.emulated() if kernel is XFormersAttention else nullcontext():
        plain = step_of(kernel(), autocast)
        again = step_of(kernel(), autocast, activation_checkpointing=True)
    assert plain.keys() == again.keys()
    assert [name for name, tensor in plain.items() if not torch.equal(tensor, again[name])] == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_gives_about_the_same_output_and_gradients(kernel: type[Attention]) -> None:
    with emulation.emulated() if kernel is XFormersAttention else nullcontext():
        exact, rounded = step_of(kernel()), step_of(kernel(), autocast=True)
    for name, tensor in exact.items():
        if not name.endswith("k_proj.bias"):  # softmax does not see it: its gradient is rounding
            assert (rounded[name].float() - tensor).norm() < 0.02 * tensor.norm(), name


@needs_xformers
def test_the_xformers_path_trains_as_sdpa_does() -> None:
    with emulation.emulated():
        ours = step_of(XFormersAttention())
    for name, tensor in step_of(SDPAAttention()).items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "long"])
@pytest.mark.parametrize("kernel", [AutoAttention, FlexAttention, SDPAAttention, XFormersAttention])
def test_kernels_are_exact_on_cuda(kernel: type[Attention], layout: str, dtype: torch.dtype) -> None:
    plan = AttentionPlan.build((LAYOUTS | {"long": LONG})[layout], "cuda")
    assert_equals_oracle(kernel(), plan, (4, 2), dtype, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [FlexAttention, SDPAAttention, XFormersAttention])
def test_kernels_read_a_packed_batch_without_gradients_on_cuda(kernel: type[Attention]) -> None:
    plan = AttentionPlan.build(LONG, "cuda")
    assert_equals_oracle(kernel(), plan, (4, 2), torch.bfloat16, device="cuda", backward=False)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [FlexAttention, SDPAAttention, XFormersAttention])
def test_deterministic_training_gives_the_same_gradients_twice_on_cuda(
    kernel: type[Attention], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    plan = AttentionPlan.build(LAYOUTS["packed"] + LONG, "cuda")
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            *inputs, upstream = tensors(plan, (4, 2), torch.bfloat16, device="cuda")
            kernel()(*inputs, plan, 0.3).backward(upstream)
            runs.append([tensor.grad for tensor in inputs])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
