"""What we take from torchmetrics beyond its plain use."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from torchmetrics import CatMetric, MeanMetric, MetricCollection

from sail_lightning.compat import torchmetrics as compat

NAMED = f"torchmetrics {version('torchmetrics')}"


def test_what_was_added_to_a_metric_can_be_put_back() -> None:
    metric = MeanMetric()
    metric.update(torch.tensor([1.0, 2.0, 6.0]))
    sums = compat.added(metric)
    assert sorted(sums.tolist()) == [3, 9], NAMED
    other = MeanMetric()
    compat.set_added(other, 2 * sums)
    assert float(other.compute()) == 3 and np.array_equal(compat.added(other), 2 * sums), NAMED


def test_a_value_that_was_computed_before_is_forgotten() -> None:
    metric = MeanMetric()
    metric.update(torch.tensor([4.0, 4.0]))
    sums = compat.added(metric)
    metric.update(torch.tensor(1.0))
    assert float(metric.compute()) == 3, NAMED
    compat.set_added(metric, sums)
    assert float(metric.compute()) == 4, NAMED


def test_only_states_that_are_summed_make_a_metric_additive() -> None:
    assert compat.is_additive(MeanMetric()), NAMED
    assert not compat.is_additive(CatMetric()), NAMED


def test_a_copy_that_stands_alone_syncs_nowhere_and_leaves_the_metric_as_it_is() -> None:
    whole = MetricCollection({"mean": MeanMetric()})["mean"]
    copied = compat.alone(whole)
    assert [one.sync_on_compute for one in compat.all_metrics(copied)] == [False], NAMED
    assert whole.sync_on_compute and whole._to_sync and not copied._to_sync, NAMED
