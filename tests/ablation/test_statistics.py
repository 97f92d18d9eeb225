"""The statistics of a study, against the formulas in float64 and against integrals of the density."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.ablation.statistics import holm, over_samples, over_seeds, spread


def test_spread_divides_by_one_less_than_the_number_of_seeds() -> None:
    found = spread([0.1, 0.2, 0.6])
    assert found.mean == pytest.approx(0.3)
    assert found.std == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert spread([0.4]).std is None


def test_paired_t_test_is_the_formula() -> None:
    first, second = [0.50, 0.53, 0.47], [0.56, 0.55, 0.55]
    differences = [0.06, 0.02, 0.08]
    mean = sum(differences) / 3
    error = math.sqrt(sum((one - mean) ** 2 for one in differences) / 2) / math.sqrt(3)
    reach = 0.95 / math.sqrt(2 * 0.975 * 0.025) * error  # the quantile of two degrees of freedom
    found = over_seeds(first, second)
    assert found is not None
    assert (found.difference, found.low, found.high) == pytest.approx((mean, mean - reach, mean + reach))
    t = mean / error
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_paired_t_test_turns_its_sign_with_the_sides(pairs: list[tuple[float, float]]) -> None:
    first, second = (list(side) for side in zip(*pairs, strict=True))
    one, other = over_seeds(first, second), over_seeds(second, first)
    assert one is not None and other is not None
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p == pytest.approx(other.p)
    assert 0 <= one.p <= 1 and one.low <= one.difference <= one.high


def test_interval_leaves_zero_out_just_where_p_is_below_five_percent() -> None:
    rng = np.random.default_rng(0)
    agreed = set()
    for _ in range(200):
        found = over_seeds([0.0] * 4, rng.normal(0.5, 0.5, 4).tolist())
        assert found is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        agreed.add(found.p < 0.05)
    assert agreed == {True, False}


def test_holms_correction_by_hand() -> None:
    # The smallest counts four times, the next three times, and so on; 0.03 twice would come out below 0.02 three times.
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.6, 0.001, 0.7]) == pytest.approx([1.0, 0.003, 1.0]), "no p is above 1"
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04]), "equal ones stay equal"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0.001, 0.5))
def test_holms_correction_rejects_what_stepping_down_by_hand_rejects(ps: list[float], level: float) -> None:
    rejected: set[int] = set()
    for place in sorted(range(len(ps)), key=ps.__getitem__):
        if (len(ps) - len(rejected)) * ps[place] > level:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(holm(ps)) if p <= level} == rejected


def test_one_seed_has_no_test_over_seeds() -> None:
    assert over_seeds([0.4], [0.5]) is None


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_differences_without_spread_are_certain(shift: float, p: float) -> None:
    found = over_seeds([0.25, 0.5, 0.75], [0.25 + shift, 0.5 + shift, 0.75 + shift])
    assert found is not None
    assert (found.difference, found.low, found.high, found.p) == (shift, shift, shift, p)


def test_bootstrap_p_is_twice_the_share_beyond_zero() -> None:
    draws = np.array([-0.1, *np.linspace(0.01, 0.5, 98), np.nan])
    found = over_samples(0.2, draws)
    assert found is not None
    assert found.p == pytest.approx(2 * (1 + 1) / (1 + 99))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws[:-1], [0.025, 0.975])))
    assert over_samples(0.0, np.array([np.nan])) is None
