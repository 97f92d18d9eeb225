"""The rules by which a test was scored, as its report.json states them, so that its answers are scored alike again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_lightning.errors import SailError
from sail_lightning.evaluate import own
from sail_lightning.evaluate.metric import Metric
from sail_lightning.evaluate.report import OWN_METRICS

RULES = ("protocol", "no_target_from", "combine")
"""The rules that a report states, by the names of `Rules`."""


@dataclass(frozen=True)
class StoredRules:
    """What a report states: `rules` by the names in `RULES`, and `metrics`, the config of each metric of the user's
    own, by name."""

    rules: Mapping[str, Any]
    metrics: Mapping[str, Any]

    def own_metrics(self) -> dict[str, Metric]:
        """Builds the metrics of the user's own.

        Raises:
            SailUsageError: One cannot be made, for instance because its plugin file is not loaded.
        """
        return own.build(self.metrics)


def stored_rules(report: Path) -> StoredRules | None:
    """Reads the rules of a test from its report.json, or returns None if there is no such file.

    Raises:
        SailError: The file is not the report of a test.
    """
    if not report.is_file():
        return None
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        return StoredRules({name: content[name] for name in RULES}, dict(content.get(OWN_METRICS) or {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SailError(
            f"{report} does not state {', '.join(RULES)}, so it is no report of a test; remove it, or test again"
        ) from None
