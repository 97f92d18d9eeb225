"""Checks of what the plugins of each socket compute, by themselves, without a model around them."""

from __future__ import annotations

import torch
from torch import Tensor

from sail_lightning.interfaces import Backbone, Regions
from sail_lightning.model import contract
from sail_lightning.plugin_check.check import VOCABULARY, Subject, require
from sail_lightning.plugin_check.decoding import read_in_turns
from sail_lightning.sequence.attention_plan import AttentionPlan, Span

TOLERANCE = 1e-4
"""Largest difference, absolute and relative, between float32 results that are equal but for rounding."""
LAYOUTS: tuple[list[list[Span]], ...] = (
    [[Span("image", 6), Span("text", 3)], [Span("text", 4)]],
    [[Span("text", 3), Span("image", 7), Span("text", 4), Span("image", 2)], [Span("image", 5)], [Span("text", 1)]],
)
"""Packed batches on which attention is checked."""
HEADS = ((4, 4), (4, 2))
"""Numbers of heads of queries, and of keys and values."""
IMAGES = torch.arange(2 * 3 * 32 * 48).remainder(251).to(torch.uint8).view(2, 3, 32, 48)
"""Two images for which every teacher computes features."""


# -- attention --------------------------------------------------------------------------------------------------------


def has_no_weights(subject: Subject) -> None:
    """A kernel has no weights, so that it can be swapped for another one in a trained model."""
    attention, _ = subject.built()
    names = list(attention.state_dict())
    require(
        not names, f"{type(attention).__name__} holds weights ({', '.join(names[:3])}); an attention kernel has none"
    )


def gives_the_shape_of_its_queries(subject: Subject) -> None:
    """Queries (T, H, E) give outputs (T, H, E), with as many key and value heads as query heads, or fewer."""
    attention, _ = subject.built()
    for samples in LAYOUTS:
        for heads, groups in HEADS:
            query, key, value, plan = _attention_inputs(samples, heads, groups, subject.device)
            contract.expect(attention(query, key, value, plan, 0.25), attention, "forward", query.shape, "(T, H, E)")


def is_exact(subject: Subject) -> None:
    """Outputs and gradients equal a float64 softmax under the dense mask of the plan."""
    attention, _ = subject.built()
    for samples in LAYOUTS:
        for heads, groups in HEADS:
            query, key, value, plan = _attention_inputs(samples, heads, groups, subject.device)
            tensors = [tensor.requires_grad_() for tensor in (query, key, value)]
            output = attention(*tensors, plan, 0.25)
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
            (output * weights).sum().backward()
            exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
            wanted = _oracle(exact[0], exact[1], exact[2], plan, 0.25)
            (wanted * weights.double()).sum().backward()
            name, size = type(attention).__name__, 20 * TOLERANCE if output.dtype != torch.float32 else TOLERANCE
            error = _difference(output.double(), wanted, size)
            require(error == 0, f"{name} is off by {error:.2g} from exact attention on the spans {_described(samples)}")
            for what, ours, theirs in zip(("queries", "keys", "values"), tensors, exact, strict=True):
                require(ours.grad is not None, f"{name} gives {what} no gradient")
                assert ours.grad is not None and theirs.grad is not None
                error = _difference(ours.grad.double(), theirs.grad, size)
                require(error == 0, f"{name} gives {what} a gradient that is off by {error:.2g}")


def _attention_inputs(
    samples: list[list[Span]], heads: int, groups: int, device: str
) -> tuple[Tensor, Tensor, Tensor, AttentionPlan]:
    """Returns random queries, keys and values, float16 on CUDA, where fused kernels require it, else float32, and their
    plan."""
    plan = AttentionPlan.build(samples, device)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    query, key, value = (
        torch.randn(sum(plan.lengths), number, 16, generator=generator).to(device, dtype)
        for number in (heads, groups, groups)
    )
    return query, key, value, plan


def _oracle(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    ratio = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(ratio, 1), value.repeat_interleave(ratio, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    hidden = ~plan.dense_mask().to(scores.device)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def _described(samples: list[list[Span]]) -> str:
    return " | ".join(" ".join(f"{span.kind} {span.length}" for span in sample) for sample in samples)


def _difference(ours: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> float:
    """Returns the largest difference, zero within the tolerance, infinite where a number is not finite."""
    if torch.allclose(ours, wanted.to(ours), atol=tolerance, rtol=tolerance):
        return 0.0
    error = (ours - wanted.to(ours)).abs().max().item()
    return error if error == error else float("inf")


# -- backbone ---------------------------------------------------------------------------------------------------------


def embeds_words(subject: Subject) -> None:
    """Token ids (T,) give embeddings (T, D), also for T = 0."""
    backbone, dims = subject.built()
    for count in (5, 0):
        words = backbone.embed_tokens(torch.arange(count, device=subject.device))
        contract.expect(words, backbone, "embed_tokens", (count, dims.hidden_size), "(T, D)")


def embeds_patches(subject: Subject) -> None:
    """Raw patches (N, 3*P*P) uint8 of several images give embeddings (N, D)."""
    backbone, dims = subject.built()
    patches = backbone.embed_patches(_patches(10, dims.patch_size, subject.device), [(2, 3), (4, 1)])
    contract.expect(patches, backbone, "embed_patches", (10, dims.hidden_size), "(N, D)")


def embeds_no_patches(subject: Subject) -> None:
    """The patches of a batch of text only, (0, 3*P*P), give embeddings (0, D)."""
    backbone, dims = subject.built()
    patches = backbone.embed_patches(_patches(0, dims.patch_size, subject.device), [])
    contract.expect(patches, backbone, "embed_patches", (0, dims.hidden_size), "(N, D)")


def reads_a_packed_row(subject: Subject) -> None:
    """Embeddings (T, D) of an image and text give hidden states (T, D)."""
    backbone, dims = subject.built()
    contract.expect(_read(backbone, dims.patch_size, subject), backbone, "forward", (11, dims.hidden_size), "(T, D)")


def gives_logits_of_the_vocabulary(subject: Subject) -> None:
    """Hidden states (..., D) give logits (..., vocab_size), also for no state."""
    backbone, dims = subject.built()
    head = contract.LanguageHead(backbone, VOCABULARY)
    for shape in ((11,), (2, 3), (0,)):
        head(torch.randn(*shape, dims.hidden_size, device=subject.device))


def keeps_packed_samples_apart(subject: Subject) -> None:
    """Samples that share a packed row do not attend to each other."""
    backbone, dims = subject.built()
    row, positions, vision = _row(backbone, dims.patch_size, subject.device)
    plan = [Span("image", 6), Span("text", 5)]
    alone = backbone(row, positions, AttentionPlan.build([plan], subject.device), vision)
    both = backbone(
        torch.cat([row, -2 * row.flip(0), row]),
        torch.cat([positions] * 3, 1),
        AttentionPlan.build([plan, [Span("text", 11)], plan], subject.device),
        torch.cat([vision, torch.zeros_like(vision), vision]),
    )
    name = type(backbone).__name__
    for own in (both[:11], both[22:]):
        error = _difference(own, alone)
        require(error == 0, f"{name} reads a sample differently by {error:.2g} when others are packed with it")


def decodes_as_it_reads(subject: Subject) -> None:
    """`decode`, through a KV cache and a few tokens at a time, gives the hidden states of `forward`."""
    backbone, dims = subject.built()
    row, positions, vision = _row(backbone, dims.patch_size, subject.device)
    rows, places, seen = [row, row[6:]], [positions, positions[:, :5]], [vision, vision[6:]]
    found = read_in_turns(backbone, rows, places, seen, (7, 2))
    for own, place, image, states in zip(rows, places, seen, found, strict=True):
        wanted = backbone(own, place, AttentionPlan.build([[Span("text", len(own))]], subject.device), image)
        contract.expect(states, backbone, "decode", wanted.shape, "(T, D)")
        error = _difference(states, wanted)
        require(error == 0, f"{type(backbone).__name__}.decode is off by {error:.2g} from what forward reads at once")


def _patches(count: int, side: int, device: str) -> Tensor:
    pixels = torch.randint(0, 256, (count, 3 * side * side), generator=torch.Generator().manual_seed(0))
    return pixels.to(device, torch.uint8)


@torch.no_grad()
def _row(backbone: Backbone, side: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns embeddings (11, D), positions (3, 11) and vision (11,) of an image of 2 x 3 patches and five text
    tokens."""
    words = backbone.embed_tokens(torch.arange(5, device=device))
    patches = backbone.embed_patches(_patches(6, side, device), [(2, 3)])
    count = torch.arange(11, device=device)
    return torch.cat([patches.to(words.dtype), words]), count.expand(3, -1), count < 6


def _read(backbone: Backbone, side: int, subject: Subject) -> Tensor:
    row, positions, vision = _row(backbone, side, subject.device)
    plan = AttentionPlan.build([[Span("image", 6), Span("text", 5)]], subject.device)
    states: Tensor = backbone(row, positions, plan, vision)
    return states


# -- upsampler --------------------------------------------------------------------------------------------------------


def gives_mask_features_of_the_published_sizes(subject: Subject) -> None:
    """Vision tokens (B, D, h, w) give mask features (B, feature_channels, h*k, w*k), k = patch size / feature
    stride."""
    _upsample(subject, 2)


def takes_no_images(subject: Subject) -> None:
    """Where no image owns a mask, vision tokens (0, D, h, w) give features of zero rows."""
    _upsample(subject, 0)


def reads_what_it_computes(subject: Subject) -> None:
    """`apply_head(features, head)` equals `head(self(features))`."""
    upsampler, dims = subject.built()
    if upsampler.guided:  # the model does not call `apply_head`
        return
    tokens = torch.randn(2, 32, 3, 5, generator=torch.Generator().manual_seed(0)).to(subject.device)
    weight = torch.randn(4, dims.feature_channels, generator=torch.Generator().manual_seed(1)).to(subject.device)

    def head(features: Tensor) -> Tensor:
        return torch.einsum("nc,bchw->bnhw", weight.to(features.dtype), features)

    wanted, found = head(upsampler(tokens)), upsampler.apply_head(tokens, head)
    contract.expect(found, upsampler, "apply_head", wanted.shape, "(B, n, h*k, w*k)")
    error = _difference(found, wanted)
    name = type(upsampler).__name__
    require(error == 0, f"{name}.apply_head is off by {error:.2g} from the head on what forward gives")


def _upsample(subject: Subject, count: int) -> None:
    upsampler, dims = subject.built()
    tokens = torch.randn(count, 32, 3, 5, generator=torch.Generator().manual_seed(0)).to(subject.device)
    pixels = torch.randint(0, 256, (count, 3, 48, 80), generator=torch.Generator().manual_seed(0))
    shown = [pixels.to(subject.device, torch.uint8)] if upsampler.guided else []
    ratio = dims.patch_size // dims.feature_stride
    shape = (count, dims.feature_channels, 3 * ratio, 5 * ratio)
    contract.expect(upsampler(tokens, *shown), upsampler, "forward", shape, "(B, feature_channels, h*k, w*k)", tokens)


# -- prompt encoder ---------------------------------------------------------------------------------------------------


def keeps_the_shape_of_the_sequence(subject: Subject) -> None:
    """Embeddings (T, D) with two regions give embeddings (T, D); a patch may lie under both."""
    encoder, _ = subject.built()
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.25, 0.5, 1.0, 1.0]])
    token_ids, patch_rows, patch_region, mention_rows, mention_region = map(
        torch.tensor, ([40, 41], [1, 2, 2], [0, 0, 1], [7], [1])
    )
    regions = Regions(token_ids, patch_rows, patch_region, mention_rows, mention_region, boxes)
    embeddings, tokens = _embeddings(9, subject.device), _embeddings(2, subject.device)
    found = encoder(embeddings, regions.to(subject.device), tokens)
    contract.expect(found, encoder, "forward", embeddings.shape, "(T, D)", embeddings)


def leaves_a_batch_without_regions_alone(subject: Subject) -> None:
    """Without visual prompts the embeddings stay as they are."""
    encoder, _ = subject.built()
    embeddings, none = _embeddings(9, subject.device), torch.empty(0, dtype=torch.int64)
    regions = Regions(none, none, none, none, none, torch.empty(0, 4)).to(subject.device)
    found = encoder(embeddings, regions, _embeddings(0, subject.device))
    contract.expect(found, encoder, "forward", embeddings.shape, "(T, D)", embeddings)
    name = type(encoder).__name__
    require(torch.equal(found, embeddings), f"{name} changes embeddings of a batch without regions; leave them alone")


def _embeddings(count: int, device: str) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(count)).to(device)


# -- teacher ----------------------------------------------------------------------------------------------------------


def is_frozen(subject: Subject) -> None:
    """No weight of a teacher is trainable, because `build` turns their gradients off."""
    teacher, _ = subject.built()
    names = [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    require(not names, f"{type(teacher).__name__}.build leaves {', '.join(names[:3])} trainable; freeze all weights")


def gives_features_of_its_channels(subject: Subject) -> None:
    """Images (B, 3, height, width) uint8 give features (B, channels, h, w) without gradients."""
    teacher, _ = subject.built()
    found = contract.features(teacher, IMAGES.to(subject.device))
    require(not found.requires_grad, f"{type(teacher).__name__}.forward returns features with gradients; detach them")
