"""`SailQwen`: rotary positions, attention plan, cache, sizes and memory saving."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_sail import BACKBONE
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims
from sail_lightning.plugin_check.decoding import read_in_turns
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.sequence.attention_plan import AttentionPlan, Span
from sail_lightning.sequence.layout import ImageLayout, SequenceBuilder

VOCABULARY = 40


def built(**changes: object) -> SailQwen:
    torch.manual_seed(0)
    backbone = SailQwen(**(BACKBONE | changes))
    backbone.build(Dims(vocab_size=VOCABULARY))
    return backbone


def packed_inputs(backbone: SailQwen) -> tuple[Tensor, Tensor, AttentionPlan]:
    """Three packed samples: image and words, words, words around two images. Positions start at 100."""
    layout = ImageLayout((1,), 2, end=(3,))
    builders = [
        SequenceBuilder(layout).image((3, 2)).text([5] * 6),
        SequenceBuilder(layout).text([6] * 5),
        SequenceBuilder(layout).text([7] * 2).image((1, 4)).text([8] * 3).image((2, 2)).text([9]),
    ]
    sequences = [builder.build() for builder in builders]
    positions = torch.cat([torch.from_numpy(sequence.positions) for sequence in sequences], 1) + 100
    plan = AttentionPlan.build([list(sequence.spans) for sequence in sequences])
    width = int(backbone.settings["hidden_size"])
    embeddings = torch.randn(positions.shape[1], width, generator=torch.Generator().manual_seed(1))
    return embeddings.to(backbone.vis_embed.weight.dtype), positions, plan


def run(backbone: SailQwen, embeddings: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
    return backbone(embeddings, positions, plan, torch.zeros(len(embeddings), dtype=torch.bool))


def test_fast_frequencies_turn_with_height_slow_ones_with_width_and_time_is_not_used() -> None:
    backbone = built(rope_theta=1000.0)
    size = 16  # of a head: 32 / 2
    positions = torch.tensor([[9, 9], [3, 5], [7, 11]])  # two tokens: time, height, width
    cos, sin = backbone.model.rotary_emb(torch.zeros(1, 2, 32), positions[:, None])
    for token, (_, height, width) in enumerate(positions.T.tolist()):
        angles = [(height if j < size // 4 else width) * 1000.0 ** (-2 * j / size) for j in range(size // 2)]
        assert cos.reshape(2, size)[token].tolist() == pytest.approx([math.cos(a) for a in angles * 2], abs=1e-5)
        assert sin.reshape(2, size)[token].tolist() == pytest.approx([math.sin(a) for a in angles * 2], abs=1e-5)


def test_rotary_frequencies_stay_float32_in_bfloat16() -> None:
    exact, half = built(), built().bfloat16()
    assert half.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert half.model.rotary_emb.frequencies.dtype == torch.float32
    assert torch.equal(half.model.rotary_emb.frequencies, exact.model.rotary_emb.frequencies)
    far = torch.full((3, 1, 4), 1000)
    angles = [backbone.model.rotary_emb(torch.zeros(1), far) for backbone in (half, exact)]
    assert torch.equal(torch.stack(angles[0]), torch.stack(angles[1]))


def test_frequencies_are_the_same_after_a_move_and_a_cast_back() -> None:
    backbone, exact = built(), built().model.rotary_emb.frequencies
    assert torch.equal(backbone.bfloat16().float().model.rotary_emb.frequencies, exact)


def test_the_attention_plan_equals_eager_attention_under_the_dense_mask() -> None:
    backbone = built().double()
    embeddings, positions, plan = packed_inputs(backbone)
    settings = backbone.model.config.to_dict() | {"attn_implementation": "eager"}
    settings["rope_parameters"] |= {"mrope_section": [0, 4, 4]}  # a quarter of a head's 16 channels each
    reference = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**settings)).double()
    reference.load_state_dict(backbone.model.state_dict())
    assert reference.config._attn_implementation == "eager"
    mask = torch.zeros(1, 1, len(embeddings), len(embeddings), dtype=torch.float64)
    mask.masked_fill_(~plan.dense_mask(), torch.finfo(torch.float64).min)
    wanted = reference(
        inputs_embeds=embeddings[None],
        position_ids=positions[:, None],
        attention_mask={"full_attention": mask},
        use_cache=False,
    ).last_hidden_state[0]
    torch.testing.assert_close(run(backbone, embeddings, positions, plan), wanted, atol=1e-6, rtol=1e-6)


def test_packed_samples_do_not_see_each_other() -> None:
    backbone = built()
    embeddings, positions, plan = packed_inputs(backbone)
    whole = run(backbone, embeddings, positions, plan)
    start = 0
    for spans, length in zip(plan.samples, plan.lengths, strict=True):
        rows = slice(start, start + length)
        alone = run(backbone, embeddings[rows], positions[:, rows], AttentionPlan.build([list(spans)]))
        torch.testing.assert_close(whole[rows], alone, atol=1e-5, rtol=1e-5)
        start += length


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_decoding_with_a_cache_equals_the_full_pass(groups: int, dtype: torch.dtype, bound: float) -> None:
    backbone = built(num_key_value_heads=groups).to(dtype)
    given, more = (5, 9, 7), (6, 4, 5)
    rows = [torch.randn(length + steps, 32).to(dtype) for length, steps in zip(given, more, strict=True)]
    places = [torch.arange(len(row)).expand(3, -1) + 4 for row in rows]
    found = read_in_turns(backbone, rows, places, [torch.zeros(len(row), dtype=torch.bool) for row in rows], given)
    for row, place, states in zip(rows, places, found, strict=True):
        wanted = run(backbone, row, place, AttentionPlan.build([[Span("text", len(row))]]))
        torch.testing.assert_close(states, wanted, atol=bound, rtol=bound)


@pytest.mark.parametrize(("size", "billions"), [("0.5b", 0.494), ("3b", 3.086)])
def test_presets_have_the_size_of_their_family(size: str, billions: float) -> None:
    with torch.device("meta"):
        backbone = SailQwen(size=size)  # type: ignore[arg-type]
        dims = backbone.build(Dims(vocab_size=151936))
    assert (dims.vocab_size, dims.patch_size) == (151936, 16)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    patches = backbone.vis_embed.weight.numel()
    assert (count - patches) / 1e9 == pytest.approx(billions, rel=0.005)
    assert all(parameter.is_meta for parameter in backbone.parameters())


def test_activation_checkpointing_gives_identical_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        backbone = built(activation_checkpointing=checkpointing).train()
        calls: list[int] = []
        backbone.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        embeddings, positions, plan = packed_inputs(backbone)
        embeddings.requires_grad_()
        run(backbone, embeddings, positions, plan).square().sum().backward()
        assert len(calls) == (2 if checkpointing else 1), "a checkpointed layer runs again in the backward pass"
        named = {name: p.grad for name, p in backbone.model.named_parameters() if p.grad is not None}
        grads.append({"embeddings": embeddings.grad, **named})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_a_tied_language_head_is_the_embedding_table() -> None:
    tied = built(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    loose = built(tie_word_embeddings=False)
    assert loose.lm_head.weight is not loose.model.embed_tokens.weight


def test_patches_are_normalised_pixels_times_one_matrix() -> None:
    backbone = built()
    patches = torch.randint(0, 256, (4, 3 * 64), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).repeat_interleave(64)
    std = torch.tensor([0.229, 0.224, 0.225]).repeat_interleave(64)
    wanted = ((patches.float() / 255 - mean) / std) @ backbone.vis_embed.weight.T
    torch.testing.assert_close(backbone.embed_patches(patches, [(2, 2)]), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 36}, {"num_heads": 3, "hidden_size": 48, "num_key_value_heads": 2}]
)
def test_sizes_that_do_not_divide_are_named(changes: dict[str, int]) -> None:
    with pytest.raises(SailUsageError, match="SailQwen: hidden_size .* must be divisible"):
        built(**changes)
