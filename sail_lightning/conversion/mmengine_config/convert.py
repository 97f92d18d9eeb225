"""Converts an official config: model, data and training, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sail_lightning.conversion.mmengine_config import data, model, report, training
from sail_lightning.conversion.mmengine_config.ledger import Entry, Fate, Ledger, normalized, shown
from sail_lightning.conversion.mmengine_config.reading import OfficialConfig


@dataclass(frozen=True)
class Imported:
    """The result of converting an official config.

    Args:
        source: The official file.
        config: The converted config, for `sail-lightning fit -c`.
        entries: The fate of each key of the official config, and the keys that were added.
        notes: Sentences about what to do or know before training.
    """

    source: Path
    config: dict[str, Any]
    entries: list[Entry]
    notes: list[str]

    def command(self, name: str) -> str:
        """Returns the command that trains with the config in a file of this name."""
        steps = "" if "max_steps" in self.config["trainer"] else " --trainer.max_steps=STEPS"
        return f"sail-lightning fit -c {name}{steps}"

    def yaml(self, name: str) -> str:
        """Returns the config as YAML, with the command that trains with a file of this name in its first line."""
        head = (
            f"# {self.command(name)}\n#\n"
            f"# Imported from {self.source}; what was not carried over is in the report of `configs import`.\n"
        )
        return head + yaml.safe_dump(self.config, sort_keys=False, width=120, default_flow_style=None)

    def report(self) -> str:
        """Returns the report on each key of the official config, as text."""
        return report.text(self.source, self.entries, self.notes)


def convert(official: OfficialConfig) -> Imported:
    """Converts an official config of Pixel-SAIL.

    Raises:
        SailError: The config has no model, or a model that is not Pixel-SAIL.
    """
    ledger = Ledger(normalized(official.content))
    settings = model.convert(ledger, str(official.path))
    data.convert(ledger, settings)
    training.convert(ledger)
    ledger.close()
    for name, value in official.variables.items():
        uses = official.uses.get(name)
        if uses is None:
            note = "it comes from a base config"
        elif uses:
            note = f"part of {', '.join(uses)}, reported there"
        else:
            note = "no key that training reads is made with it, so it had no effect there either"
        ledger.entries.append(Entry(name, shown(value), Fate.NAME, note))
    return Imported(official.path, ledger.config, ledger.entries, ledger.notes)
