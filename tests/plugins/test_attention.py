"""Prefix attention: every kernel equals a float64 softmax under the dense mask, forward and backward."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
import xformers_emulation as emulation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Attention
from sail_lightning.plan import AttentionPlan, Span
from sail_lightning.plugins.attention import AutoAttention, SDPAAttention, XFormersAttention, auto, resolve, xformers

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
    kernel: Attention, plan: AttentionPlan, sizes: tuple[int, int], dtype: torch.dtype, device: str = "cpu"
) -> None:
    """Output and the gradients of query, key and value, as relative errors in the 2-norm."""
    *inputs, upstream = tensors(plan, sizes, dtype, device=device)
    query, key, value = exact = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    expected = oracle(query, key, value, plan.dense_mask(), 0.3)
    expected.backward(upstream.cpu().double())
    output = kernel(*inputs, plan, 0.3)
    output.backward(upstream)
    assert output.dtype == dtype
    assert output.shape == expected.shape
    compared = [output, *(tensor.grad for tensor in inputs)]
    references = [expected, *(tensor.grad for tensor in exact)]
    for name, ours, reference in zip(("output", "dq", "dk", "dv"), compared, references, strict=True):
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


@pytest.mark.parametrize("kernel", [SDPAAttention(), AutoAttention()], ids=lambda kernel: type(kernel).__name__)
def test_query_and_key_of_another_dtype_follow_the_value(kernel: Attention) -> None:
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    mixed = kernel(query, key, value.bfloat16(), plan, 0.3)
    torch.testing.assert_close(mixed, kernel(query.bfloat16(), key.bfloat16(), value.bfloat16(), plan, 0.3))


def test_the_suffix_mask_is_made_once_for_all_layers_and_samples() -> None:
    plan = AttentionPlan.build([IMAGE_FIRST, IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float32)
    SDPAAttention()(query, key, value, plan, 0.3)
    masks = dict(plan.cache)
    SDPAAttention()(query, key, value, plan, 0.3)
    assert len(masks) == 1
    assert all(plan.cache[name] is mask for name, mask in masks.items())


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
    for call, bias in zip(plan.calls, xformers._biases(plan, torch.device("cpu")), strict=True):
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
        XFormersAttention()(query, key, value, plan, 0.3)
        first = xformers._biases(plan, query.device)
        XFormersAttention()(query, key, value, plan, 0.3)
    assert xformers._biases(plan, query.device) is first


@needs_xformers
@pytest.mark.parametrize("by_argument", [True, False])
def test_deterministic_means_the_cutlass_kernels(by_argument: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = xformers.load_xformers()
    chosen: list[object] = []

    def recorded(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        chosen.append(options["op"])
        return query

    fake = SimpleNamespace(
        memory_efficient_attention=recorded, MemoryEfficientAttentionCutlassOp=ops.MemoryEfficientAttentionCutlassOp
    )
    monkeypatch.setattr(xformers, "load_xformers", lambda: fake)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: not by_argument)
    plan = AttentionPlan.build([IMAGE_FIRST])
    query, key, value, _ = tensors(plan, (4, 2), torch.float16)
    XFormersAttention(deterministic=by_argument)(query, key, value, plan, 0.3)
    assert chosen == [ops.MemoryEfficientAttentionCutlassOp] * 2


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


def test_a_kernel_given_by_the_user_is_kept() -> None:
    kernel = SDPAAttention()
    assert resolve(kernel) is kernel


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [AutoAttention, SDPAAttention, XFormersAttention])
def test_kernels_are_exact_on_cuda(kernel: type[Attention], layout: str, dtype: torch.dtype) -> None:
    plan = AttentionPlan.build(LAYOUTS[layout], "cuda")
    assert_equals_oracle(kernel(), plan, (4, 2), dtype, device="cuda")


@pytest.mark.gpu
def test_deterministic_training_gives_the_same_gradients_twice_on_cuda() -> None:
    plan = AttentionPlan.build(LAYOUTS["packed"], "cuda")
    runs = []
    for _ in range(2):
        *inputs, upstream = tensors(plan, (4, 2), torch.bfloat16, device="cuda")
        XFormersAttention(deterministic=True)(*inputs, plan, 0.3).backward(upstream)
        runs.append([tensor.grad for tensor in inputs])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
