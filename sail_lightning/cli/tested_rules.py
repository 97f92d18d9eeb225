"""The rules by which `compare` scores two tests: those of their reports, unless options say otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.rescoring import ScoringOptions
from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:
    from sail_lightning.evaluate.stored_rules import StoredRules

_OPTIONS = {"protocol": "protocol", "no_target_from": "no_target", "combine": "combine"}
"""Names of options by the names of the rules that they set."""
_COMBINED = {"standard": "union", "official": "first"}
"""What a protocol does with several masks where nothing is said."""


@dataclass(frozen=True)
class TestedRules:
    """The rules of tests whose answers lie in `files`, each with a report.json beside it or without one."""

    __test__ = False  # not a test, for pytest

    files: Sequence[Path]

    def reports(self) -> dict[Path, StoredRules]:
        """Returns what the reports state, by file; a file that is not called as a test calls it has no report.

        Raises:
            SailError: A report.json is not the report of a test.
        """
        from sail_lightning.evaluate.answer_log import FILE
        from sail_lightning.evaluate.report import JSON
        from sail_lightning.evaluate.stored_rules import stored_rules

        read = {file: stored_rules(file.with_name(JSON)) for file in self.files if file.name == FILE}
        return {file: stored for file, stored in read.items() if stored is not None}

    def filled(self, options: ScoringOptions) -> ScoringOptions:
        """Returns the options with the rules of the reports where none were given.

        Raises:
            SailUsageError: The tests were scored by different rules, and no option says which to take.
        """
        stated = {file: dict(stored.rules) for file, stored in self.reports().items()}
        for rule, option in _OPTIONS.items():
            given = getattr(options, option)
            values = {file: rules[rule] for file, rules in stated.items()}
            if rule == "protocol":
                protocol: Any = given or _agreed(option, values) or "standard"
                options = replace(options, protocol=protocol)
                for rules in stated.values():  # what only followed from another protocol was not asked for
                    if rules["combine"] == _COMBINED.get(rules["protocol"]):
                        rules["combine"] = _COMBINED[protocol]
            elif given is None:
                options = replace(options, **{option: _agreed(option, values)})
        return options

    def own_metrics(self, options: ScoringOptions) -> dict[str, Any]:
        """Returns the user's own metrics: those of the options, else all that either test had.

        Raises:
            SailUsageError: One cannot be made, or is another in each test.
        """
        if options.metrics:
            return options.own_metrics()
        stored = self.reports()
        specs: dict[str, Any] = {}
        for name in dict.fromkeys(name for one in stored.values() for name in one.metrics):
            values = {file: one.metrics[name] for file, one in stored.items() if name in one.metrics}
            specs[name] = _agreed("metrics", values, f"metric {name}")
        if not specs:
            return {}
        from sail_lightning import registry
        from sail_lightning.evaluate import own

        registry.discover()
        return own.build(specs)


def _agreed(option: str, values: Mapping[Path, Any], what: str | None = None) -> Any:
    """Returns the value that all reports state, None if there is no report."""
    found = list(values.items())
    if any(value != found[0][1] for _, value in found):
        typed = option.replace("_", "-")
        said = " and ".join(f"{value} in {file.parent}" for file, value in found)
        raise SailUsageError(f"the tests were scored by different rules: {what or typed} is {said}; give --{typed}")
    return found[0][1] if found else None
