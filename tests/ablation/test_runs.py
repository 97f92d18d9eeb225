"""A run that was done is known by what it was done with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from sail_lightning.ablation.cost import Cost
from sail_lightning.ablation.runs import Result, Run, finished

COST = Cost(**dict.fromkeys(Cost.__dataclass_fields__, 1.0))


def test_a_result_is_kept_when_its_variant_gets_another_name_and_not_when_its_config_changes(tmp_path: Path) -> None:
    run = Run("old", 3, tmp_path, {"model": {"max_side": 64}}, {"test": {}})
    assert finished(run) is None
    found = Result("old", 3, {"test": {"refer": {"ciou": 0.5}}}, COST, "fit/metrics.csv", {"test": "test/x.jsonl"})
    (tmp_path / "result.json").write_text(json.dumps({"fingerprint": run.whole, **asdict(found)}))
    assert finished(run) == found
    assert finished(replace(run, variant="new")) == replace(found, variant="new")
    assert finished(replace(run, config={"model": {"max_side": 32}})) is None
