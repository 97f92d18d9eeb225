"""Losses: the official values (tests/golden/losses.safetensors), the formulas in float64, and sums that add up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_sail import packed, records, text_records, tiny
from torch import Tensor, nn

from sail_lightning.errors import SailUsageError
from sail_lightning.model.contract import LanguageHead
from sail_lightning.model.losses import (
    ChunkedLanguageLoss,
    LanguageLoss,
    LigerLanguageLoss,
    MaskLoss,
    MSEDistillation,
    dice_loss,
    gather_points,
    resize,
    sample_points,
    uncertain_points,
)

GOLDEN = load_file(Path(__file__).parent.parent / "golden" / "losses.safetensors")
CASES = ("case1", "case2")
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
"""Float32 noise of the official code itself is about a tenth of this."""
OFFICIAL_EPS = 1e-4
"""The official code adds this to every count that it divides by; ours divides by the count."""


def logits_and_masks(case: str) -> tuple[Tensor, Tensor]:
    return GOLDEN[f"{case}.out.mask_logits.0"], GOLDEN[f"{case}.in.masks.0"].bool()


def draws(case: str) -> tuple[Tensor, Tensor]:
    return GOLDEN[f"{case}.ptsout.rand_candidates.0"], GOLDEN[f"{case}.ptsout.rand_extra.0"]


@pytest.mark.parametrize("case", CASES)
def test_language_loss_is_the_official_cross_entropy(case: str) -> None:
    logits, targets = GOLDEN[f"{case}.logits"], GOLDEN[f"{case}.target_ids"]
    ours = LanguageLoss()(logits, nn.Identity(), targets, torch.ones(len(targets))) / len(targets)
    torch.testing.assert_close(ours, GOLDEN[f"{case}.out.ce_loss"], **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_mask_losses_are_the_official_ones_without_points(case: str) -> None:
    logits, masks = logits_and_masks(case)
    sums = MaskLoss(resolution="features")([logits], [masks])
    count = len(masks) + OFFICIAL_EPS
    torch.testing.assert_close(sums.bce / count, GOLDEN[f"{case}.out.loss_mask"], **TOLERANCE)
    torch.testing.assert_close(sums.dice / count, GOLDEN[f"{case}.out.loss_dice"], **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_points_are_the_official_ones_for_the_official_draws(case: str) -> None:
    logits, _ = logits_and_masks(case)
    points = uncertain_points(logits, 64, 3.0, 0.75, draws(case))
    torch.testing.assert_close(points, GOLDEN[f"{case}.ptsout.point_coords.0"], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_mask_losses_are_the_official_ones_at_points(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks = logits_and_masks(case)
    given = iter(draws(case))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: expect_shape(next(given), size))
    sums = MaskLoss(num_points=64)([logits], [masks])
    count = len(masks) + OFFICIAL_EPS
    bce = sums.bce * 64 / (64 + OFFICIAL_EPS) / count
    dice = sums.dice / (1 + OFFICIAL_EPS) / count
    torch.testing.assert_close(bce, GOLDEN[f"{case}.ptsout.loss_mask"], **TOLERANCE)
    torch.testing.assert_close(dice, GOLDEN[f"{case}.ptsout.loss_dice"], **TOLERANCE)


def expect_shape(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    assert tuple(tensor.shape) == tuple(size)
    return tensor


@pytest.mark.parametrize(("teacher", "tap"), [("mask2former", "mask"), ("sam2", "vision")])
@pytest.mark.parametrize(("run", "images"), [("both", 2), ("second_none", 1)])
def test_distillation_is_the_official_mean_squared_difference(teacher: str, tap: str, run: str, images: int) -> None:
    weight, bias = (GOLDEN[f"distill.{teacher}_distill_linear.{name}"] for name in ("weight", "bias"))
    losses = []
    for index, letter in list(enumerate("ab"))[:images]:
        student = F.linear(GOLDEN[f"distill.{tap}.{index}"].permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        losses.append(MSEDistillation()(student, GOLDEN[f"distill.teacher.{teacher}.{letter}"]))
    ours = torch.cat(losses).sum() / (images + OFFICIAL_EPS)
    torch.testing.assert_close(ours, GOLDEN[f"distill.{run}.{teacher}_distill_loss"], **TOLERANCE)


def random_masks(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.6


def formula(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """2.0 x mean cross-entropy and 0.5 x dice of (n, h, w) float64 maps of one size, summed over masks."""
    bce = dice = 0.0
    for x, t in zip(logits.double().flatten(1), targets.double().flatten(1), strict=True):
        p = 1 / (1 + (-x).exp())
        bce += float(-(t * p.log() + (1 - t) * (1 - p).log()).mean())
        dice += float(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    return 2.0 * bce, 0.5 * dice


def test_dense_mask_losses_are_the_formulas_at_the_images_resolution() -> None:
    logits, targets = torch.randn(3, 6, 8) * 3, random_masks(3, 21, 30)
    wanted = F.interpolate(logits.double()[:, None], (21, 30), mode="bilinear", align_corners=False)[:, 0]
    sums = MaskLoss()([logits], [targets])
    assert (sums.bce.item(), sums.dice.item()) == pytest.approx(formula(wanted, targets), rel=1e-5)


def test_sampled_points_estimate_the_dense_losses() -> None:
    logits, targets = torch.randn(2, 12, 12), random_masks(2, 12, 12)
    dense = MaskLoss(num_points=0)([logits], [targets])
    uniform = MaskLoss(num_points=100, importance_ratio=0.0)
    drawn = [uniform([logits], [targets]) for _ in range(300)]
    # Points between pixels see smoothed logits and targets, so a uniform estimate agrees roughly, not exactly.
    assert torch.stack([one.bce for one in drawn]).mean().item() == pytest.approx(dense.bce.item(), rel=0.15)
    assert torch.stack([one.dice for one in drawn]).mean().item() == pytest.approx(dense.dice.item(), rel=0.15)


def test_targets_with_no_more_pixels_than_points_are_compared_densely() -> None:
    logits, targets = torch.randn(1, 5, 5), random_masks(1, 10, 10)
    at_the_limit = [MaskLoss(num_points=100)([logits], [targets]).bce for _ in range(2)]
    below = [MaskLoss(num_points=99)([logits], [targets]).bce for _ in range(2)]
    assert at_the_limit[0] == at_the_limit[1]
    assert below[0] != below[1]


def test_three_quarters_of_the_points_are_the_least_certain_candidates() -> None:
    logits = torch.randn(2, 9, 9)
    candidates, extra = torch.rand(2, 120, 2), torch.rand(2, 10, 2)
    points = uncertain_points(logits, 40, 3.0, 0.75, (candidates, extra))
    assert torch.equal(points[:, 30:], extra)
    certainty = sample_points(logits, candidates).abs()
    for mine, all_certainty, own, map_ in zip(points[:, :30], certainty, candidates, logits, strict=True):
        kept = sample_points(map_[None], mine[None]).abs()[0]
        assert kept.max() <= all_certainty.kthvalue(30).values + 1e-6
        assert {tuple(p) for p in mine.tolist()} <= {tuple(p) for p in own.tolist()}


def test_points_read_bilinear_values_and_zero_outside() -> None:
    map_ = torch.arange(12.0).view(1, 3, 4)
    centres = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])[None]
    torch.testing.assert_close(sample_points(map_, centres), map_.flatten(1))
    between = torch.tensor([[[1.0 / 4, 0.5 / 3], [2.0, 2.0]]])
    torch.testing.assert_close(sample_points(map_, between), torch.tensor([[0.5, 0.0]]))


@given(count=st.integers(0, 3), height=st.integers(1, 5), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_points_by_indexing_are_those_of_grid_sample_forward_and_backward(
    count: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    maps = torch.randn(count, height, width, dtype=torch.float64, requires_grad=True)
    points = torch.rand(count, 20, 2, dtype=torch.float64) * 1.6 - 0.3  # some outside
    upstream = torch.randn(count, 20, dtype=torch.float64)
    expected = F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    found = gather_points(maps, points)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    (wanted,) = torch.autograd.grad(expected, maps, upstream)
    (got,) = torch.autograd.grad(found, maps, upstream)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch in deterministic mode, and a `grid_sample` that has no gradient, as on CUDA."""

    def refuse(maps: Tensor, *_: object, **__: object) -> Tensor:
        assert not maps.requires_grad, "grid_sampler_2d_backward_cuda does not have a deterministic implementation"
        return maps

    monkeypatch.setattr(F, "grid_sample", refuse)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def point_losses(device: str = "cpu") -> list[Tensor]:
    """Both losses at sampled points, and the gradient of the logits."""
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 12, 16), random_masks(3, 48, 64)
    logits, targets = logits.to(device).requires_grad_(), targets.to(device)
    sums = MaskLoss(num_points=200)([logits], [targets])
    (sums.bce + sums.dice).backward()
    assert logits.grad is not None
    return [sums.bce.detach(), sums.dice.detach(), logits.grad]


def test_deterministic_mode_does_without_grid_sample_and_gives_the_same_losses(request: pytest.FixtureRequest) -> None:
    plain = point_losses()
    request.getfixturevalue("deterministic")
    for found, expected in zip(point_losses(), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
def test_deterministic_mask_losses_have_the_same_gradients_twice_on_cuda(deterministic: None) -> None:
    assert all(torch.equal(a, b) for a, b in zip(point_losses("cuda"), point_losses("cuda"), strict=True))


def test_dice_of_a_perfect_mask_is_zero_and_of_a_missed_one_nearly_one() -> None:
    target = torch.zeros(1, 100)
    target[:, :40] = 1
    assert dice_loss(target, target).item() == 0
    assert dice_loss(1 - target, target).item() == pytest.approx(1 - 1 / 101)
    assert dice_loss(torch.zeros(1, 100), torch.zeros(1, 100)).item() == 0


@pytest.mark.parametrize("resolution", ["target", "features"])
def test_mask_sums_of_parts_add_up_to_the_whole(resolution: str) -> None:
    shapes = [((4, 6), (16, 24), 2), ((4, 6), (16, 24), 1), ((5, 5), (20, 20), 3), ((4, 6), (9, 9), 1)]
    logits = [torch.randn(n, *small) for small, _, n in shapes]
    targets = [random_masks(n, *large) for _, large, n in shapes]
    loss = MaskLoss(resolution=resolution)  # type: ignore[arg-type]
    whole = loss(logits, targets)
    parts = [loss(logits[a:b], targets[a:b]) for a, b in ((0, 1), (1, 3), (3, 4))]
    torch.testing.assert_close(sum(part.bce for part in parts), whole.bce)
    torch.testing.assert_close(sum(part.dice for part in parts), whole.dice)
    lone = [
        loss([x[None]], [t[None]]) for xs, ts in zip(logits, targets, strict=True) for x, t in zip(xs, ts, strict=True)
    ]
    torch.testing.assert_close(sum(one.bce for one in lone), whole.bce)


def test_language_sums_of_parts_add_up_to_the_whole_and_weights_scale_them() -> None:
    logits, targets, weights = torch.randn(9, 7), torch.randint(0, 7, (9,)), torch.rand(9)
    loss = LanguageLoss()
    as_is = nn.Identity()
    parts = loss(logits[:4], as_is, targets[:4], weights[:4]) + loss(logits[4:], as_is, targets[4:], weights[4:])
    torch.testing.assert_close(parts, loss(logits, as_is, targets, weights))


def test_losses_of_nothing_are_zero_with_zero_gradients() -> None:
    logits, maps = torch.empty(0, 7, requires_grad=True), torch.empty(0, 4, 4, requires_grad=True)
    language = LanguageLoss()(logits, nn.Identity(), torch.empty(0, dtype=torch.int64), torch.empty(0))
    sums = MaskLoss()([maps], [torch.empty(0, 1, 1)])
    total = language + sums.bce + sums.dice
    assert total.item() == 0
    total.backward()
    assert logits.grad is not None and maps.grad is not None


def test_no_group_of_masks_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        MaskLoss()([], [])


def test_distillation_is_per_image_and_resizes_the_teacher() -> None:
    student, teacher = torch.randn(3, 5, 4, 6), torch.randn(3, 5, 2, 3)
    losses = MSEDistillation()(student, teacher)
    for one, s, t in zip(losses, student, teacher, strict=True):
        torch.testing.assert_close(one, (s - resize(t, (4, 6))).square().mean())


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    logits, masks = torch.randn(2, 4, 4).bfloat16(), random_masks(2, 4, 4)
    sums = MaskLoss()([logits], [masks])
    assert sums.bce.dtype == torch.float32
    torch.testing.assert_close(sums.bce, MaskLoss()([logits.float()], [masks]).bce)


# -- the language loss, from hidden states ----------------------------------------------------------------------------

ROWS, HIDDEN, WORDS = 23, 12, 50
LANGUAGE_LOSSES = {
    "plain": LanguageLoss,
    "one chunk": lambda **settings: ChunkedLanguageLoss(**settings),
    "chunks": lambda **settings: ChunkedLanguageLoss(chunk_size=5, **settings),
    "chunks of a row": lambda **settings: ChunkedLanguageLoss(chunk_size=1, **settings),
}


@dataclass
class Rows:
    """Hidden states with few different weights, and a head."""

    hidden: Tensor
    head: nn.Linear
    targets: Tensor
    weights: Tensor

    @classmethod
    def drawn(cls, rows: int = ROWS, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Rows:
        head = nn.Linear(HIDDEN, WORDS, bias=False).to(device, dtype)
        hidden = torch.randn(rows, HIDDEN, device=device).to(dtype).requires_grad_()
        weights = torch.tensor([1.0, 0.1, 1.0])[torch.randint(0, 3, (rows,))]
        return cls(hidden, head, torch.randint(0, WORDS, (rows,)).to(device), weights.to(device))

    def results(self, loss: LanguageLoss, head: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """The sum, and the gradients of the hidden states and of the head."""
        total = loss(self.hidden, head or self.head, self.targets, self.weights)
        return total, *torch.autograd.grad(3 * total, (self.hidden, self.head.weight))

    def exact(self, smoothing: float) -> tuple[Tensor, ...]:
        """The same from the formula in float64."""
        states, matrix = (t.detach().double().requires_grad_() for t in (self.hidden, self.head.weight))
        log_p = (states @ matrix.T).log_softmax(-1)
        wanted = (1 - smoothing) * F.one_hot(self.targets, WORDS) + smoothing / WORDS
        total = -(self.weights.double() * (wanted * log_p).sum(-1)).sum()
        return total, *torch.autograd.grad(3 * total, (states, matrix))


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("loss", LANGUAGE_LOSSES)
def test_language_losses_and_their_gradients_are_the_formulas(loss: str, smoothing: float) -> None:
    rows = Rows.drawn()
    ours = rows.results(LANGUAGE_LOSSES[loss](label_smoothing=smoothing))
    assert ours[0].shape == () and ours[0].dtype == torch.float32
    for mine, exact in zip(ours, rows.exact(smoothing), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LANGUAGE_LOSSES)
def test_language_losses_of_no_row_are_zero_with_zero_gradients(loss: str) -> None:
    total, *grads = Rows.drawn(rows=0).results(LANGUAGE_LOSSES[loss]())
    assert total.item() == 0 and total.dtype == torch.float32
    assert [tuple(grad.shape) for grad in grads] == [(0, HIDDEN), (WORDS, HIDDEN)]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("loss", LANGUAGE_LOSSES)
def test_language_losses_of_half_precision_are_computed_in_float32(loss: str) -> None:
    rows = Rows.drawn(dtype=torch.bfloat16)
    with torch.no_grad():
        logits = rows.head(rows.hidden).float()
    exact = (F.cross_entropy(logits, rows.targets, reduction="none") * rows.weights).sum()
    total, *grads = rows.results(LANGUAGE_LOSSES[loss]())
    assert total.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [torch.bfloat16] * 2
    torch.testing.assert_close(total.detach(), exact)


def test_chunks_never_hold_more_rows_than_their_size_and_keep_no_logits_for_the_way_back() -> None:
    rows, seen, kept = Rows.drawn(), [], []

    def head(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return rows.head(hidden)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = ChunkedLanguageLoss(chunk_size=5)(rows.hidden, head, rows.targets, rows.weights)
    assert seen == [5, 5, 5, 5, 3]
    assert not [shape for shape in kept if WORDS in shape[1:]]
    total.backward()
    assert sorted(seen) == sorted([5, 5, 5, 5, 3] * 2)


@pytest.mark.parametrize(("loss", "settings"), [(ChunkedLanguageLoss, {"chunk_size": 0}), (LanguageLoss, {})])
def test_settings_of_language_losses_are_checked(loss: type[LanguageLoss], settings: dict[str, Any]) -> None:
    settings = settings or {"label_smoothing": 1.5}
    with pytest.raises(SailUsageError, match=f"{next(iter(settings))} must be .*, not"):
        loss(**settings)


class Fused:
    """Liger's fused loss: what it was given, and the same numbers in plain torch, with its own parameter order."""

    calls: list[tuple[Any, ...]] = []

    def __init__(self, label_smoothing: float, reduction: str, accum_dtype: torch.dtype) -> None:
        assert (reduction, accum_dtype) == ("sum", torch.float32)
        self.smoothing = label_smoothing

    def __call__(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        assert len(_input) == len(target) > 0
        self.calls.append((len(_input), lin_weight, bias))
        logits = F.linear(_input, lin_weight, bias).float()
        return F.cross_entropy(logits, target, reduction="sum", label_smoothing=self.smoothing)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> type[Fused]:
    """A stand-in for Liger, and hidden states that say they are on CUDA."""
    module = ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Fused  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(Fused, "calls", [])
    return Fused


class Owner(nn.Module):
    """A backbone with its language head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.lm_head = head

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_liger_gets_the_heads_weight_and_the_rows_of_each_weight(fused: type[Fused], smoothing: float) -> None:
    rows = Rows.drawn()
    ours = rows.results(LigerLanguageLoss(smoothing), Owner(rows.head).logits)
    assert [(count, bias) for count, _, bias in fused.calls] == [
        (int((rows.weights == weight).sum()), None) for weight in rows.weights.unique()
    ]
    assert all(weight is rows.head.weight for _, weight, _ in fused.calls)
    for mine, exact in zip(ours, rows.exact(smoothing), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


def test_liger_finds_the_weight_behind_the_head_that_a_model_checks(fused: type[Fused]) -> None:
    rows = Rows.drawn()
    rows.results(LigerLanguageLoss(), LanguageHead(Owner(rows.head), WORDS))  # type: ignore[arg-type]
    assert fused.calls and all(weight is rows.head.weight for _, weight, _ in fused.calls)


def test_liger_is_not_asked_about_no_row(fused: type[Fused]) -> None:
    total, *grads = Rows.drawn(rows=0).results(LigerLanguageLoss())
    assert total.item() == 0 and not any(grad.any() for grad in grads) and not fused.calls


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (nn.Sequential(nn.Linear(HIDDEN, WORDS)), "Sequential"),
        (Owner(nn.Sequential(nn.Linear(HIDDEN, WORDS))).logits, "Sequential"),
        (lambda hidden: hidden, "function"),
    ],
)
def test_liger_refuses_a_head_that_is_no_plain_matrix(fused: type[Fused], head: Any, kind: str) -> None:
    rows = Rows.drawn()
    with pytest.raises(SailUsageError, match=f"plain nn.Linear as lm_head, not {kind}; use ChunkedLanguageLoss"):
        LigerLanguageLoss()(rows.hidden, head, rows.targets, rows.weights)


def test_liger_needs_cuda_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows.drawn()
    with pytest.raises(SailUsageError, match="LigerLanguageLoss needs CUDA, not cpu; use ChunkedLanguageLoss"):
        rows.results(LigerLanguageLoss())
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SailUsageError, match="needs liger-kernel, .*: pip install .*, or use Chunked"):
        rows.results(LigerLanguageLoss())


@pytest.mark.gpu
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
def test_ligers_kernels_give_the_formulas(smoothing: float, dtype: torch.dtype, tolerance: float) -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    rows = Rows.drawn(rows=300, dtype=dtype, device="cuda")
    for mine, exact in zip(rows.results(LigerLanguageLoss(smoothing)), rows.exact(smoothing), strict=True):
        assert (mine.double() - exact).norm() <= tolerance * exact.norm()


# -- in the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [records, text_records])
def test_the_model_gives_logits_or_the_sum_of_a_loss_from_the_same_rows(samples: Any) -> None:
    model = tiny()
    batch = packed(model, samples())
    logits = model.model(batch).logits
    output = model.model(batch, (), ChunkedLanguageLoss(chunk_size=3))
    assert output.logits is None and model.model(batch).language is None
    losses = F.cross_entropy(logits, batch.target_ids, reduction="none")
    torch.testing.assert_close(output.language, (losses * batch.target_weights).sum())


def test_training_with_chunks_gives_the_gradients_of_the_plain_loss() -> None:
    found = []
    for loss in (None, ChunkedLanguageLoss(chunk_size=4, label_smoothing=0.0)):
        model = tiny(language_loss=loss)
        sums, _ = model.losses(packed(model, records()))
        sums["language"].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, chunked = found
    assert plain.keys() == chunked.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(chunked[name], grad, rtol=1e-4, atol=1e-5, msg=name)
