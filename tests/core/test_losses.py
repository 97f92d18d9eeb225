"""Losses: the official values (tests/golden/losses.safetensors), the formulas in float64, and sums that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sail_lightning.losses import (
    LanguageLoss,
    MaskLoss,
    MSEDistillation,
    dice_loss,
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
    ours = LanguageLoss()(logits, targets, torch.ones(len(targets))) / len(targets)
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


def test_dense_mask_losses_are_the_formulas_at_the_pictures_resolution() -> None:
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
    parts = loss(logits[:4], targets[:4], weights[:4]) + loss(logits[4:], targets[4:], weights[4:])
    torch.testing.assert_close(parts, loss(logits, targets, weights))
    exact = -(logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0] * weights.double()).sum()
    torch.testing.assert_close(parts.double(), exact)


def test_losses_of_nothing_are_zero_with_zero_gradients() -> None:
    logits, maps = torch.empty(0, 7, requires_grad=True), torch.empty(0, 4, 4, requires_grad=True)
    language = LanguageLoss()(logits, torch.empty(0, dtype=torch.int64), torch.empty(0))
    sums = MaskLoss()([maps], [torch.empty(0, 1, 1)])
    total = language + sums.bce + sums.dice
    assert total.item() == 0
    total.backward()
    assert logits.grad is not None and maps.grad is not None


def test_no_group_of_masks_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        MaskLoss()([], [])


def test_distillation_is_per_picture_and_resizes_the_teacher() -> None:
    student, teacher = torch.randn(3, 5, 4, 6), torch.randn(3, 5, 2, 3)
    losses = MSEDistillation()(student, teacher)
    for one, s, t in zip(losses, student, teacher, strict=True):
        torch.testing.assert_close(one, (s - resize(t, (4, 6))).square().mean())


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    logits, masks = torch.randn(2, 4, 4).bfloat16(), random_masks(2, 4, 4)
    sums = MaskLoss()([logits], [masks])
    assert sums.bce.dtype == torch.float32
    torch.testing.assert_close(sums.bce, MaskLoss()([logits.float()], [masks]).bce)
    words = torch.randn(5, 7).bfloat16()
    assert LanguageLoss()(words, torch.zeros(5, dtype=torch.int64), torch.ones(5)).dtype == torch.float32
