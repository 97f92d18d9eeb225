"""`EVEv2`: equal to the official code's recorded tensors (tests/golden/official), and to its own definition."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from sail_lightning.conversion.convert import open_model
from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.errors import SailUsageError
from sail_lightning.generation.engine import generate
from sail_lightning.image.preprocessing import load_image
from sail_lightning.interfaces import Dims
from sail_lightning.model.losses import MaskLoss, resize
from sail_lightning.model.model import ModelOutput
from sail_lightning.module import PixelSAIL
from sail_lightning.plugin_check.decoding import read_in_turns
from sail_lightning.plugins.attention import SDPAAttention
from sail_lightning.plugins.backbones import EVEv2
from sail_lightning.plugins.backbones.eve import Modalities
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Box, Mask, Sample, Turn
from sail_lightning.sequence.attention_plan import AttentionPlan, Span
from sail_lightning.sequence.layout import CLASS_VECTOR, PATCH_ONLY, ROW_VECTOR, SequenceBuilder
from sail_lightning.training.optim import parameter_groups

GOLDEN = Path(__file__).parents[1] / "golden" / "official"
META = json.loads((GOLDEN / "meta.json").read_text())["eve"]
PLACEHOLDER = -200
"""Stands for an image in the official ids."""
SMALL, WIDE = GOLDEN / "eve_image_20x36.png", GOLDEN / "eve_image_40x28.png"


# -- the official cases as records ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An official batch: its recorded tensors, and the same samples as ours."""

    golden: dict[str, Tensor]
    samples: tuple[Sample, ...]
    losses: dict[str, float]

    @property
    def widths(self) -> tuple[int, ...]:
        """Official tokens of each sample, an image being one; the rest is padding."""
        return tuple(self.golden["in.attention_mask"].sum(1).tolist())


def case(name: str) -> Case:
    golden = load_file(GOLDEN / f"{name}.safetensors")

    def segmented(place: int) -> Sample:
        return Sample(SMALL, (Turn("Seg it", "[SEG]", "refer", (0,)),), masks(place))

    def prompted(place: int) -> Sample:
        turns = (Turn("<Prompt2>?", "a [SEG]", "vres", (0,)), Turn("<Prompt0>", "[SEG].", "vres", (1,)))
        return Sample(WIDE, turns, masks(place), prompts(place))

    def masks(place: int) -> tuple[NDArray[np.bool_], ...]:
        return tuple(mask.numpy() for mask in golden[f"in.masks.{place}"].bool())

    def prompts(place: int) -> tuple[Mask, ...]:
        """Masks that cover the patches of the recorded indices: a patch of the 32 x 40 image is 7 x 8 pixels."""
        cells = golden[f"in.visual_prompt_indexes.{place}"][1:].view(4, 6)[:, :5].numpy()
        pixels = cells.repeat(7, 0).repeat(8, 1)
        return tuple(Mask(pixels == id, int(id)) for id in np.unique(cells) if id >= 0)

    text = Sample(None, (Turn("Hi", "Yes"),))
    samples = {
        "eve_case1_two_prompts": lambda: (prompted(0),),
        "eve_case2_batch2": lambda: (segmented(0), prompted(1)),
        "eve_case3_image_and_text": lambda: (segmented(0), text),
    }
    return Case(golden, samples[name](), META[name]["losses"])


CASES = {name: case(name) for name in ("eve_case1_two_prompts", "eve_case2_batch2", "eve_case3_image_and_text")}


@pytest.fixture(scope="module")
def official() -> PixelSAIL:
    return open_model(GOLDEN / "eve_tiny_state_dict.safetensors")


@pytest.fixture(params=CASES)
def recorded(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=["packed", "alone"])
def batches(request: pytest.FixtureRequest, official: PixelSAIL, recorded: Case) -> list[list[EncodedSample]]:
    """The samples of a case in one batch, or each in its own."""
    encoded = [official.encoder.encode(sample) for sample in recorded.samples]
    return [encoded] if request.param == "packed" else [[item] for item in encoded]


def close(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def run(official: PixelSAIL, batches: Sequence[list[EncodedSample]]) -> list[ModelOutput]:
    with torch.no_grad():
        return [official.model(pack(items), taps={"mask"}) for items in batches]


def per_sample(batches: Sequence[list[EncodedSample]], rows: Sequence[Tensor]) -> list[Tensor]:
    """Packed rows (T, ...) of each batch, cut into samples."""
    cut = (whole.split([len(item) for item in items]) for items, whole in zip(batches, rows, strict=True))
    return [own for parts in cut for own in parts]


def unpadded(recorded: Case, official: PixelSAIL, name: str) -> list[Tensor]:
    """An official (B, L, ...) tensor of expanded sequences, without its padding."""
    lengths = [len(official.encoder.encode(sample)) for sample in recorded.samples]
    return [row[:length] for row, length in zip(recorded.golden[name], lengths, strict=True)]


# -- equal to the official code ---------------------------------------------------------------------------------------


def test_sequences_are_the_official_ones(official: PixelSAIL, recorded: Case) -> None:
    golden = recorded.golden
    for place, (sample, width) in enumerate(zip(recorded.samples, recorded.widths, strict=True)):
        sequence = official.encoder.encode(sample).sequence
        ids: list[int] = []
        for id in golden["in.input_ids"][place, :width].tolist():
            if id == PLACEHOLDER:
                rows, columns = golden["in.patch_nums_per_images"][place].tolist()
                ids += [CLASS_VECTOR, *[*[PATCH_ONLY] * (columns - 1), ROW_VECTOR] * rows]
            else:
                ids.append(id)
        assert sequence.ids.tolist() == ids
        assert sequence.positions.tolist() == [list(range(len(ids)))] * 3
        assert sequence.vision.tolist() == golden["out.visual_token_mask"][place, : len(ids), 0].int().bool().tolist()
        labels = np.full(len(ids), -100)
        labels[sequence.target_rows + 1] = sequence.target_ids
        assert labels.tolist() == golden["out.expanded_labels"][place, : len(ids)].tolist()
        assert all(span.kind == "text" for span in sequence.spans)


def test_images_are_resized_to_the_official_size_and_vision_tokens_are_the_official_ones(
    official: PixelSAIL, recorded: Case
) -> None:
    backbone = official.model.backbone
    for place, sample in enumerate(recorded.samples):
        if sample.image is None:
            continue
        item = official.encoder.encode(sample)
        rows, columns = item.sequence.grids[0]
        pixels = recorded.golden[f"in.pixel_values.{place}"]
        assert pixels.shape == (3, 8 * rows, 8 * columns)
        ours = backbone.pixels(torch.from_numpy(item.patches)).view(rows, columns, 3, 8, 8).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(ours.reshape(pixels.shape), pixels, atol=1e-5, rtol=1e-5)
        plain = pack([replace(item, regions=())])
        with torch.no_grad():
            tokens = official.model.embed(plain)[plain.vision]
        close(tokens, recorded.golden[f"out.vision_tokens.{place}"])


def test_states_and_logits_are_the_official_ones(
    official: PixelSAIL, recorded: Case, batches: list[list[EncodedSample]]
) -> None:
    backbone, first_layer = official.model.backbone, []
    handle = backbone.model.layers[0].register_forward_hook(lambda *args: first_layer.append(args[-1]))
    outputs = run(official, batches)
    handle.remove()
    packs = [pack(items) for items in batches]
    sorts = [Modalities.of(batch.vision) for batch in packs]
    stages = {
        "out.hidden_states.0": [official.model.embed(batch).detach() for batch in packs],
        "out.hidden_states.1": [sort.restore(rows) for sort, rows in zip(sorts, first_layer, strict=True)],
        "out.hidden_states.2": [output.hidden for output in outputs],
        "out.logits": [backbone.logits(output.hidden).detach() for output in outputs],
    }
    compared = [name for name in stages if name in recorded.golden]
    assert "out.hidden_states.2" in compared
    for name in compared:
        wanted = unpadded(recorded, official, name)
        for ours, theirs in zip(per_sample(batches, stages[name]), wanted, strict=True):
            close(ours, theirs)


def test_masks_are_the_official_ones(official: PixelSAIL, recorded: Case, batches: list[list[EncodedSample]]) -> None:
    golden, queries, logits, features = recorded.golden, [], [], []
    for items, output in zip(batches, run(official, batches), strict=True):
        queries.append(official.model.mask_head.queries(output.hidden[pack(items).seg_rows]).detach())
        logits += [maps for maps in output.mask_logits if len(maps)]
        features += [maps for group in output.mask for maps in group.maps]
    close(torch.cat(queries), golden["out.seg_embeddings"])
    wanted = [value for key, value in sorted(golden.items()) if key.startswith("out.mask_logits.")]
    for ours, theirs in zip(logits, wanted, strict=True):
        close(ours, theirs)
    if "out.image_features.0" in golden:
        close(features[0].permute(1, 2, 0), golden["out.image_features.0"])


def official_losses(official: PixelSAIL, items: list[EncodedSample]) -> dict[str, Tensor]:
    """The official means: of tokens, and of masks with 1e-4 added to their number."""
    batch = pack(items)
    output = official.model(batch)
    masks = MaskLoss(num_points=0, resolution="features")(output.mask_logits, batch.masks)
    count = len(batch.seg_rows) + 1e-4
    language = 0.1 * F.cross_entropy(output.logits, batch.target_ids)
    return {"loss_mask": masks.bce / count, "loss_dice": masks.dice / count, "llm_loss": language}


def test_losses_are_the_official_ones(official: PixelSAIL, recorded: Case) -> None:
    items = [official.encoder.encode(sample) for sample in recorded.samples]
    losses = official_losses(official, items)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(recorded.losses, abs=2e-5)


def test_gradients_are_the_official_ones(official: PixelSAIL) -> None:
    items = [official.encoder.encode(sample) for sample in CASES["eve_case2_batch2"].samples]
    official.zero_grad()
    torch.stack(list(official_losses(official, items).values())).sum().backward()
    ours = {name: float(p.grad.norm()) for name, p in official.model.backbone.named_parameters() if p.grad is not None}
    official.zero_grad()
    theirs = {
        name.removeprefix("single_transformer.").replace("model.vision_tower.", ""): norm
        for name, norm in META["grad_norms_case2"].items()
        if name.startswith("single_transformer.") and norm is not None
    }
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_answers_are_the_official_ones(official: PixelSAIL) -> None:
    golden, facts = load_file(GOLDEN / "eve_gen1.safetensors"), META["gen1"]
    answer = official.predict(SMALL, facts["text"], max_new_tokens=12)
    assert answer.text == facts["prediction"].strip()
    assert np.array_equal(answer.masks, golden["mask_bool"].numpy())
    item = official.encoder.encode(Sample(SMALL, (Turn(facts["text"]),)), answers=False)
    (generation,) = generate(official.model, official.tokens, [item], 12)
    assert generation.ids == golden["new_tokens"].tolist()
    assert np.array_equal(generation.masks, golden["mask_bool"].numpy())
    longer = extended(item, generation.ids[:-1])
    batch = pack([longer])
    assert batch.positions[0].tolist() == golden["fed_position_ids"].tolist()
    with torch.no_grad():
        hidden = official.model(batch).hidden
        queries = official.model.mask_head.queries(hidden[batch.seg_rows])
    close(hidden, golden["all_last_hidden"])
    close(official.model.backbone.logits(hidden[-12:]).detach(), golden["step_last_logits"])
    close(queries, golden["seg_embeddings"])


def extended(item: EncodedSample, ids: list[int]) -> EncodedSample:
    """A sample with generated ids behind it."""
    sequence = item.sequence
    more = SequenceBuilder(EVEv2.image_layout).text(ids).build()
    longer = replace(
        sequence,
        ids=np.concatenate([sequence.ids, more.ids]),
        positions=np.concatenate([sequence.positions, more.positions + sequence.next_position], 1),
        spans=(Span("text", len(sequence) + len(ids)),),
        vision=np.concatenate([sequence.vision, more.vision]),
    )
    return replace(item, sequence=longer, seg_rows=longer.rows_of(180))


@pytest.mark.parametrize(
    ("size", "wanted"),  # (height, width)
    [((32, 32), (32, 32)), ((640, 480), (40, 32)), ((3, 3000), (8, 1016)), ((5, 7), (32, 40)), ((1, 1), (32, 32))],
)
def test_the_image_has_about_the_area_whatever_its_size(
    size: tuple[int, int], wanted: tuple[int, int], official: PixelSAIL
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    item = official.encoder.encode(Sample(image, (Turn("a", "b"),)))
    assert item.sequence.grids == ((wanted[0] // 8, wanted[1] // 8),)
    ratio = math.sqrt(size[0] * size[1]) / 32
    assert wanted == tuple(max(math.ceil(side / ratio / 8) * 8, 8) for side in size)


# -- prompts at inference, which the official code does not have ------------------------------------------------------


def test_prompts_change_the_answer_at_inference_as_they_do_in_training(official: PixelSAIL) -> None:
    """Greedy decoding with prompts says what reading everything anew, as in training, says."""
    question = (Turn("<Prompt2>?"),)
    regions = CASES["eve_case1_two_prompts"].samples[0].prompts
    elsewhere = tuple(Box(0, 21, 40, 28, id=prompt.id) for prompt in regions[1:])
    samples = [Sample(WIDE, question, (), regions), Sample(WIDE, question, (), elsewhere)]
    items = [official.encoder.encode(sample, answers=False) for sample in samples]
    together = generate(official.model, official.tokens, items, 8)
    for item, answer in zip(items, together, strict=True):
        ids: list[int] = []
        for _ in range(8):
            batch = pack([extended(item, ids)])
            with torch.no_grad():
                hidden = official.model(batch).hidden
            ids.append(int(official.model.backbone.logits(hidden[-1]).argmax()))
        stop = next((place for place, id in enumerate(ids) if id in official.tokens.stop_token_ids), len(ids))
        assert answer.ids == ids[:stop]
    unprompted = replace(items[0], regions=())
    (plain,) = generate(official.model, official.tokens, [unprompted], 8)
    assert len({tuple(answer.ids) for answer in (*together, plain)}) == 3


def test_masks_depend_on_prompts_at_inference(official: PixelSAIL) -> None:
    regions = CASES["eve_case1_two_prompts"].samples[0].prompts
    asked = [
        Sample(WIDE, (Turn("<Prompt0>"),), (), regions[:1]),
        Sample(WIDE, (Turn("<Prompt0>"),), (), (Box(30, 20, 40, 28, id=0),)),
    ]
    items = [official.encoder.encode(sample, answers=False, answer_prefix="[SEG].") for sample in asked]
    answers = generate(official.model, official.tokens, items, 1)
    for item, answer in zip(items, answers, strict=True):
        with torch.no_grad():
            batch = pack([item])
            output = official.model(batch, taps={"mask"})
            query = official.model.mask_head.queries(output.hidden[batch.seg_rows])
            logits = torch.einsum("nc,chw->nhw", query, output.mask[0].maps[0])
        assert np.array_equal(answer.masks[:1], (resize(logits, item.image_size or (0, 0)) > 0).numpy())
    assert not np.array_equal(answers[0].masks[0], answers[1].masks[0])


# -- its own definition -----------------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "mm_hidden_size": 12,
}


def built(**changes: object) -> EVEv2:
    torch.manual_seed(0)
    backbone = EVEv2(**(SIZES | changes))  # type: ignore[arg-type]
    backbone.build(Dims(vocab_size=40))
    for name, parameter in backbone.named_parameters():  # norms and biases are all alike at the start
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return backbone


def inputs(lengths: Sequence[int] = (14, 9, 1)) -> tuple[Tensor, Tensor, AttentionPlan, Tensor]:
    """Embeddings, positions, plan, and a mask in which the modalities alternate at random."""
    generator = torch.Generator().manual_seed(1)
    total = sum(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths]).expand(3, -1)
    plan = AttentionPlan.build([[Span("text", length)] for length in lengths])
    vision = torch.rand(total, generator=generator) < 0.5
    return torch.randn(total, 32, generator=generator), positions, plan, vision


def plain_decoder(backbone: EVEv2, prefix: str) -> Qwen2Model:
    """Hugging Face's Qwen2 with the weights of one modality."""
    config = backbone.model.config.to_dict() | {"attn_implementation": "eager"}
    decoder = Qwen2Model(Qwen2Config(**config)).eval()
    own = backbone.model.state_dict()
    names = {name: name.replace(".moe_", ".") for name in own if ".layers." not in f".{name}"}
    for name in own:
        if "layers." in name and (".moe_" in name) == (prefix == "moe_"):
            names[name] = name.replace(".moe_", ".")
    decoder.load_state_dict({plain: own[name] for name, plain in names.items()})
    return decoder


@pytest.mark.parametrize("prefix", ["", "moe_"])
@pytest.mark.parametrize("grad", [True, False])
def test_one_modality_alone_is_qwen2_with_its_weights(prefix: str, grad: bool) -> None:
    backbone = built(rope_theta=1e4)
    embeddings, positions, plan, vision = inputs((12,))
    vision = torch.full_like(vision, prefix == "moe_")
    with torch.set_grad_enabled(grad):
        ours = backbone(embeddings, positions, plan, vision)
        theirs = plain_decoder(backbone, prefix)(inputs_embeds=embeddings[None]).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def blended(backbone: EVEv2, embeddings: Tensor, vision: Tensor) -> Tensor:
    """The definition (official form): each part computed with both weights, and the tokens' own one kept."""

    def by_token(module: nn.Module, name: str, tokens: Tensor) -> Tensor:
        words, pixels = getattr(module, name)(tokens), getattr(module, f"moe_{name}")(tokens)
        return torch.where(vision[:, None], pixels, words)

    length, size = len(embeddings), 8
    angles = torch.arange(length)[:, None] * backbone.settings["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotated(heads: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.stack(heads.chunk(2, -1), -1)) * turn
        return torch.cat([pairs.real, pairs.imag], -1)

    hidden, causal = embeddings, torch.ones(length, length, dtype=torch.bool).tril()
    for layer in backbone.model.layers:
        attention, normed = layer.self_attn, by_token(layer, "input_layernorm", hidden)
        query, key, value = (
            by_token(attention, name, normed).view(length, -1, size) for name in ("q_proj", "k_proj", "v_proj")
        )
        key, value = (tensor.repeat_interleave(2, 1) for tensor in (rotated(key), value))
        scores = torch.einsum("qhe,khe->hqk", rotated(query), key) / math.sqrt(size)
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khe->qhe", weights, value).flatten(1)
        hidden = hidden + by_token(attention, "o_proj", mixed)
        hidden = hidden + by_token(layer, "mlp", by_token(layer, "post_attention_layernorm", hidden))
    return backbone.model.norm(hidden)


def test_each_token_is_read_with_the_weights_of_its_modality() -> None:
    backbone = built()
    embeddings, positions, plan, vision = inputs()
    whole = backbone(embeddings, positions, plan, vision)
    for ours, own, mask in zip(*(t.split([14, 9, 1]) for t in (whole, embeddings, vision)), strict=True):
        torch.testing.assert_close(ours, blended(backbone, own, mask), atol=1e-5, rtol=1e-5)


def test_weights_of_a_modality_that_is_not_there_change_nothing_and_have_a_gradient_of_zero() -> None:
    backbone = built()
    embeddings, positions, plan, _ = inputs()
    for there, vision in (("", torch.zeros(24, dtype=torch.bool)), ("moe_", torch.ones(24, dtype=torch.bool))):
        backbone.zero_grad()
        backbone(embeddings, positions, plan, vision).square().sum().backward()
        for name, parameter in backbone.model.layers.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.any() == ((".moe_" in name) == (there == "moe_")), name


def test_no_token_sees_a_later_one_or_another_sample() -> None:
    backbone = built()
    embeddings, positions, plan, vision = inputs()
    before = backbone(embeddings, positions, plan, vision)
    changed = embeddings.clone()
    changed[6] += 1.0  # in the middle of the first sample
    moved = (backbone(changed, positions, plan, vision) != before).any(1)
    assert moved.tolist() == [6 <= row < 14 for row in range(24)]


def test_decoding_with_a_cache_equals_the_full_pass() -> None:
    backbone = built()
    given, more = (5, 9, 7), (6, 4, 5)
    rows, masks = [], []
    for index, (length, steps) in enumerate(zip(given, more, strict=True)):
        vision = torch.rand(length + steps, generator=torch.Generator().manual_seed(index)) < 0.5
        vision[length:] = False  # after the image there are words only
        rows.append(torch.randn(length + steps, 32))
        masks.append(vision)
    places = [torch.arange(len(row)).expand(3, -1) for row in rows]
    found = read_in_turns(backbone, rows, places, masks, given)
    for row, place, vision, states in zip(rows, places, masks, found, strict=True):
        wanted = backbone(row, place, AttentionPlan.build([[Span("text", len(row))]]), vision)
        torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)


def test_patches_are_two_convolutions_of_the_normalised_image() -> None:
    backbone = built(patch_stride=3, dense_stride=4)
    patches = torch.randint(0, 256, (6, 3 * 12 * 12), dtype=torch.uint8)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    picture = patches.view(2, 3, 3, 12, 12).permute(2, 0, 3, 1, 4).reshape(1, 3, 24, 36).float() / 255
    picture = (picture - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    first, gelu, second = backbone.patch_embedding
    wanted = second(gelu(first(picture)))[0].flatten(1).T
    torch.testing.assert_close(backbone.embed_patches(patches, [(2, 3)]), wanted, atol=1e-5, rtol=1e-5)
    assert backbone.embed_patches(patches[:0], []).shape == (0, 32)


def test_ids_below_zero_are_learned_vectors_or_nothing() -> None:
    backbone = built()
    ids = torch.tensor([3, CLASS_VECTOR, PATCH_ONLY, ROW_VECTOR, 0])
    found = backbone.embed_tokens(ids)
    table = backbone.model.embed_tokens.weight
    wanted = [table[3], backbone.class_embedding, torch.zeros(32), backbone.split_embedding, table[0]]
    assert torch.equal(found, torch.stack(wanted))
    (found * torch.arange(1.0, 6)[:, None]).sum().backward()
    assert table.grad is not None and table.grad.sum(1).tolist() == [5 * 32.0, 0, 0, 32.0, *[0.0] * 36]
    assert torch.equal(backbone.class_embedding.grad, torch.full((32,), 2.0))
    assert torch.equal(backbone.split_embedding.grad, torch.full((32,), 4.0))


def gradients(backbone: EVEv2) -> dict[str, Tensor]:
    embeddings, positions, plan, vision = inputs()
    embeddings.requires_grad_()
    backbone(embeddings, positions, plan, vision).square().sum().backward()
    named = {name: p.grad for name, p in backbone.model.named_parameters() if p.grad is not None}
    assert embeddings.grad is not None
    return {"embeddings": embeddings.grad, **named}


def test_activation_checkpointing_gives_identical_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        backbone = built(activation_checkpointing=checkpointing).train()
        calls: list[int] = []
        for part in ("mlp", "moe_mlp"):
            module = getattr(backbone.model.layers[0], part)
            module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        grads.append(gradients(backbone))
        assert len(calls) == (4 if checkpointing else 2), "a checkpointed layer runs again in the backward pass"
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


@pytest.mark.slow
def test_layers_compile_as_one_graph() -> None:
    plain = gradients(built())
    backbone = built(attention=SDPAAttention())
    for layer in backbone.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    for name, grad in gradients(backbone).items():
        torch.testing.assert_close(grad, plain[name], atol=1e-5, rtol=1e-5)


def test_rotary_frequencies_stay_float32_in_bfloat16() -> None:
    exact, rounded = built(rope_theta=1e4).model.rotary_emb, built(rope_theta=1e4).bfloat16().model.rotary_emb
    positions = torch.tensor([3000, 5001])
    for ours, wanted in zip(rounded(torch.zeros(2, 8), positions), exact(torch.zeros(2, 8), positions), strict=True):
        assert torch.equal(ours, wanted)


def test_parameters_are_trained_by_their_roles() -> None:
    model = PixelSAIL(EVEv2(**SIZES), DeconvUpsampler(), PromptInjection(2, projection=False), mask_channels=8)  # type: ignore[arg-type]
    model.configure_model()
    names = {id(p): name.removeprefix("model.backbone.") for name, p in model.named_parameters()}
    roles = {names[id(p)]: group["role"] for group in parameter_groups(model) for p in group["params"]}
    assert roles.keys() == set(names.values())
    layer = "model.layers.1."
    inside = ("self_attn.q_proj", "self_attn.moe_o_proj", "mlp.up_proj", "moe_mlp.down_proj")
    assert {roles[f"{layer}{name}.weight"] for name in inside} == {"hidden"}
    ends = ("patch_embedding.0.weight", "patch_embedding.2.weight", "lm_head.weight")
    assert {roles[name] for name in ends} == {"outer"}
    plain = ("class_embedding", "split_embedding", "patch_embedding.0.bias", f"{layer}moe_input_layernorm.weight")
    assert {roles[name] for name in (*plain, "model.embed_tokens.weight")} == {"plain"}


def test_the_preset_has_the_size_of_qwen2_5_7b_and_its_layers_twice() -> None:
    with torch.device("meta"):
        backbone = EVEv2(size="7b")
        dims = backbone.build(Dims(vocab_size=152064))
        sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
        heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
        qwen = Qwen2Model(Qwen2Config(**sizes, **heads, vocab_size=152064))
    assert (dims.vocab_size, dims.hidden_size, dims.patch_size) == (152064, 3584, 32)
    assert all(parameter.is_meta for parameter in backbone.parameters())

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    head = 152064 * 3584
    assert count(qwen) + head == 7_615_616_512  # Qwen2.5-7B
    eyes = 3 * 16 * 16 * 1024 + 1024 + 1024 * 2 * 2 * 3584 + 3584 + 2 * 3584
    assert count(backbone) == count(qwen) + head + count(qwen.layers) + eyes == 14_156_712_960


def test_a_tied_language_head_is_the_embedding_table() -> None:
    tied = built(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert built().lm_head.weight is not built().model.embed_tokens.weight


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 36}, {"num_heads": 3, "hidden_size": 48, "num_key_value_heads": 2}]
)
def test_sizes_that_do_not_divide_are_named(changes: dict[str, int]) -> None:
    with pytest.raises(SailUsageError, match="EVEv2: hidden_size .* must be divisible"):
        built(**changes)


def test_the_image_stands_inside_the_first_question(official: PixelSAIL) -> None:
    image = load_image(SMALL)
    pair = official.encoder.encode(Sample((image, image), (Turn("a", "b"), Turn("c", "d"))))
    runs = "".join("x" if seen else "." for seen in pair.sequence.vision)
    picture = 1 + 6 * 4
    assert runs == "." * 6 + "x" * picture + "." + "x" * picture + "." * (len(pair) - 2 * picture - 7)
    words = official.tokens.tokenizer.decode(pair.sequence.ids[~pair.sequence.vision])
    assert words == (
        "<|im_start|>user\n\n\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>"
    )
