"""A study file: what it may say, and the sentence for what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from sail_lightning.ablation.study import Figure, parse_study
from sail_lightning.cli.configs import config_names, find_config, read_config
from sail_lightning.errors import SailUsageError

LEAST: dict[str, Any] = {
    "configs": ["quickstart"],
    "variants": {"plain": None, "other": {"model": {"upsampler": "IdentityUpsampler"}}},
    "steps": 10,
    "figures": ["refer/ciou"],
}


def test_what_is_left_out_has_a_default() -> None:
    study = parse_study(LEAST, "mine")
    assert (study.baseline, study.seeds, study.checks, study.minutes) == ("plain", (0, 1, 2), 8, None)
    assert study.variants["plain"] == {} and study.evaluate == {"test": {}}
    assert study.figures == (Figure("test", "refer", "ciou"),)
    assert str(study.figures[0]) == "test/refer/ciou"


def test_figures_name_their_evaluation_where_there_are_several() -> None:
    several = LEAST | {"evaluate": {"seen": None, "unseen": {"data": {}}}}
    study = parse_study(several | {"figures": ["seen/refer/ciou", "unseen/vres/pr@0.5"]}, "mine")
    assert study.figures[1] == Figure("unseen", "vres", "pr@0.5")
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
        ({"figures": ["ciou"]}, "'ciou' is not of the form BENCHMARK/METRIC"),
        ({"figures": ["held_out/refer/ciou"]}, "is of no evaluation; there are test"),
        ({"figures": []}, "figures must be a list such as"),
        ({"seeded": "data.train.seed"}, "seeded must be a list of settings"),
    ],
)
def test_what_cannot_be_is_told_by_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SailUsageError) as told:
        parse_study(LEAST | change, "mine")
    assert str(told.value).startswith("mine: ") and words in str(told.value)


@pytest.mark.parametrize("missing", ["configs", "variants", "steps", "figures"])
def test_what_must_be_there(missing: str) -> None:
    with pytest.raises(SailUsageError):
        parse_study({key: value for key, value in LEAST.items() if key != missing}, "mine")


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("study/")])
def test_packaged_studies_compare_seeds_at_equal_compute(name: str) -> None:
    study = parse_study(read_config(find_config(name)), name)
    assert len(study.seeds) >= 3 and study.steps is not None and study.minutes is None
    assert study.seeded == ("data.train.seed",), "seeds draw other training data too"
    assert len(study.variants) > 1 and {figure.evaluation for figure in study.figures} == set(study.evaluate)
