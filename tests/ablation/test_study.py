"""A study file: what it may say, and the sentence for what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from sail_lightning.ablation.study import TableMetric, parse_study
from sail_lightning.cli.configs import config_names, find_config, read_config
from sail_lightning.errors import SailUsageError

LEAST: dict[str, Any] = {
    "configs": ["quickstart"],
    "variants": {"plain": None, "other": {"model": {"upsampler": "IdentityUpsampler"}}},
    "steps": 10,
    "metrics": ["refer/ciou"],
}


def test_what_is_left_out_has_a_default() -> None:
    study = parse_study(LEAST, "mine")
    assert (study.baseline, study.seeds, study.checks, study.minutes) == ("plain", (0, 1, 2), 8, None)
    assert study.variants["plain"] == {} and study.evaluate == {"test": {}}
    assert study.metrics == (TableMetric("test", "refer", "ciou"),)
    assert str(study.metrics[0]) == "test/refer/ciou"


def test_metrics_name_their_evaluation_where_there_are_several() -> None:
    several = LEAST | {"evaluate": {"seen": None, "unseen": {"data": {}}}}
    study = parse_study(several | {"metrics": ["seen/refer/ciou", "unseen/vres/pr@0.5"]}, "mine")
    assert study.metrics[1] == TableMetric("unseen", "vres", "pr@0.5")
    with pytest.raises(SailUsageError, match="EVALUATION/BENCHMARK/METRIC"):
        parse_study(several, "mine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"varants": {}}, "mine: no key varants; did you mean variants?"),
        ({"zebra": 1}, "no key zebra; there are configs, base, variants"),
        ({"variants": {}}, "variants must name at least one variant"),
        ({"variants": ["plain"]}, "variants must be a mapping of names to patches"),
        ({"variants": {"plain": "DeconvUpsampler"}}, "variants.plain must be a patch"),
        ({"variants": {"a/b": None}}, "'a/b' cannot name a folder"),
        ({"variants": {"..": None}}, "cannot name a folder"),
        ({"variants": {"plain": {"runs": "x"}}}, "variants.plain sets runs, which the study decides"),
        ({"base": {"ckpt_path": "x"}}, "base sets ckpt_path"),
        ({"baseline": "plane"}, "baseline must be one of the variants plain, other, not 'plane'"),
        ({"seeds": [0, 0]}, "seeds must be a list of different whole numbers"),
        ({"seeds": [True]}, "seeds must be"),
        ({"seeds": []}, "seeds must be"),
        ({"steps": 0}, "steps must be a whole number, 1 or more, not 0"),
        ({"steps": None}, "give steps, or minutes"),
        ({"minutes": "5"}, "minutes must be a number above 0, not '5'"),
        ({"checks": 0}, "checks must be"),
        ({"configs": "quickstart"}, "configs must be a list of configs"),
        ({"configs": []}, "configs must be"),
        ({"evaluate": {}}, "evaluate must be a mapping"),
        ({"evaluate": {"fit": None}}, "no evaluation may be called fit"),
        ({"metrics": ["ciou"]}, "'ciou' is not of the form BENCHMARK/METRIC"),
        ({"metrics": ["held_out/refer/ciou"]}, "names no evaluation of the study; there are test"),
        ({"metrics": []}, "metrics must be a list such as"),
        ({"seeded": "data.train.seed"}, "seeded must be a list of settings"),
    ],
)
def test_what_cannot_be_is_told_by_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SailUsageError) as result:
        parse_study(LEAST | change, "mine")
    assert str(result.value).startswith("mine: ") and words in str(result.value)


@pytest.mark.parametrize("missing", ["configs", "variants", "steps", "metrics"])
def test_what_must_be_there(missing: str) -> None:
    with pytest.raises(SailUsageError):
        parse_study({key: value for key, value in LEAST.items() if key != missing}, "mine")


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("study/")])
def test_packaged_studies_compare_seeds_at_equal_compute(name: str) -> None:
    study = parse_study(read_config(find_config(name)), name)
    assert len(study.seeds) >= 3 and study.steps is not None and study.minutes is None
    assert study.seeded == ("data.train.seed",), "seeds draw other training data too"
    assert len(study.variants) > 1 and {metric.evaluation for metric in study.metrics} == set(study.evaluate)


def test_the_old_key_figures_is_read_as_metrics_with_a_warning() -> None:
    old = {("figures" if key == "metrics" else key): value for key, value in LEAST.items()}
    with pytest.warns(FutureWarning, match="the key figures of a study is now metrics"):
        study = parse_study(old, "mine")
    assert study.metrics == parse_study(LEAST, "mine").metrics


def test_a_study_with_the_old_and_the_new_key_is_refused() -> None:
    with pytest.raises(SailUsageError, match="figures and metrics are one key"):
        parse_study(LEAST | {"figures": ["vres/giou"]}, "mine")


def test_the_old_name_of_the_class_warns() -> None:
    with pytest.warns(FutureWarning, match="TableMetric"):
        from sail_lightning.ablation.study import Figure
    assert Figure is TableMetric
