"""Optimiser groups, Muon with AdamW, and the schedule."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from sail_lightning.training.optim import MuonAdamW, WarmupCosine, parameter_groups


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.inside = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.kernel = nn.Conv2d(4, 4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.inside(self.table(ids))
        return self.lm_head(hidden).sum() + self.kernel(hidden[:, :, None, None].expand(-1, -1, 3, 3)).sum()


def roles(model: nn.Module) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["role"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(model)}


def test_every_parameter_is_in_one_group_by_its_role() -> None:
    assert roles(Toy()) == {
        "hidden": {"inside.weight"},
        "outer": {"lm_head.weight", "kernel.weight"},
        "plain": {"table.weight", "inside.bias", "kernel.bias"},
    }


def test_a_tied_table_is_an_embedding_and_counted_once() -> None:
    model = Toy()
    model.lm_head.weight = model.table.weight
    found = roles(model)
    assert "table.weight" in found["plain"] and found["outer"] == {"kernel.weight"}


def test_norms_biases_and_tables_do_not_decay() -> None:
    decay = {group["role"]: group.get("weight_decay") for group in parameter_groups(Toy())}
    assert decay == {"hidden": None, "outer": None, "plain": 0.0}


def test_muon_adamw_equals_its_two_parts() -> None:
    torch.manual_seed(0)
    joint, apart = Toy(), Toy()
    apart.load_state_dict(joint.state_dict())
    optimizer = MuonAdamW(parameter_groups(joint), lr=0.02, adamw_lr=0.01, weight_decay=0.1)
    inside = [apart.inside.weight]
    muon = torch.optim.Muon(inside, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    decayed = [apart.lm_head.weight, apart.kernel.weight]
    kept = [apart.table.weight, apart.inside.bias, apart.kernel.bias]
    adamw = torch.optim.AdamW(
        [{"params": decayed}, {"params": kept, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1
    )
    for _ in range(4):
        for model, steps in ((joint, [optimizer]), (apart, [muon, adamw])):
            model.zero_grad()
            model(torch.tensor([1, 2, 5])).square().backward()
            for each in steps:
                each.step()
    for ours, expected in zip(joint.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_muon_adamw_resumes_from_its_state() -> None:
    torch.manual_seed(0)
    whole = Toy()
    first = MuonAdamW(parameter_groups(whole))

    def train(model: Toy, optimizer: MuonAdamW) -> None:
        model.zero_grad()
        model(torch.tensor([1, 2, 5])).square().backward()
        optimizer.step()

    for _ in range(3):
        train(whole, first)
    resumed = Toy()
    resumed.load_state_dict(whole.state_dict())
    second = MuonAdamW(parameter_groups(resumed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        train(whole, first)
        train(resumed, second)
    for ours, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_schedule_reaches_both_parts() -> None:
    optimizer = MuonAdamW(parameter_groups(Toy()), lr=0.02, adamw_lr=0.01)
    before = [group["lr"] for group in optimizer.param_groups]
    WarmupCosine(optimizer, total_steps=100, warmup_ratio=0.1)
    for inner in optimizer._inner:
        assert all(group["lr"] == pytest.approx(group["initial_lr"] / 10) for group in inner.param_groups)
    assert sorted(before) == [0.01, 0.01, 0.02]


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)])
def test_warmup_then_half_a_cosine(step: int, expected: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupCosine(optimizer, total_steps=100, warmup_ratio=0.1, final_ratio=0.1)
    factor = schedule.lr_lambdas[0](step)
    assert math.isclose(factor, expected, abs_tol=1e-9)


def test_the_rate_comes_down_by_the_time_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("sail_lightning.training.optim.time.monotonic", lambda: now[0])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = WarmupCosine(optimizer, total_steps=1_000_000, warmup_ratio=0.0, minutes=8).lr_lambdas[0]
    assert factor(1) == pytest.approx(1.0)
    now[0] += 4 * 60
    assert factor(2) == pytest.approx(0.5, abs=1e-3)
    now[0] += 5 * 60
    assert factor(3) == 0.0


def test_the_time_before_a_resume_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("sail_lightning.training.optim.time.monotonic", lambda: now[0])

    def made() -> WarmupCosine:
        groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(3)]
        return WarmupCosine(torch.optim.SGD(groups, lr=1.0), total_steps=1_000_000, warmup_ratio=0.0, minutes=8)

    first = made()
    first.lr_lambdas[0](1)
    now[0] += 4 * 60
    first.lr_lambdas[0](2)
    now[0] += 3600  # until it is resumed
    again = made()
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert again.lr_lambdas[0](3) == pytest.approx(0.5, abs=1e-3)
    now[0] += 2 * 60
    assert again.lr_lambdas[0](4) == pytest.approx(0.5 * (1 + math.cos(math.pi * 6 / 8)), abs=1e-3)
