"""Config sections that were renamed: old names work for one version, with a warning that gives the new one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sail_lightning.cli.compose import Option
from sail_lightning.errors import SailUsageError
from sail_lightning.settings.renames import warn

SECTIONS = {"answers": "evaluation"}
"""Old names to new ones."""


def rename_sections(layer: dict[str, Any]) -> dict[str, Any]:
    """A config with the new names.

    Raises:
        SailUsageError: It has a section under both names.
    """
    for old, new in SECTIONS.items():
        if old in layer:
            if new in layer:
                raise SailUsageError(f"a config has both {old} and {new}, which is its new name; use {new}")
            warn(f"the config section {old}", new)
            layer = {SECTIONS.get(key, key): value for key, value in layer.items()}
    return layer


def rename_options(options: Iterable[Option]) -> list[Option]:
    """Options with the new names."""
    return [_renamed(option) for option in options]


def _renamed(option: Option) -> Option:
    section, dot, rest = option.name.partition(".")
    if section not in SECTIONS:
        return option
    warn(f"the config section {section}", SECTIONS[section])
    return replace(option, name=f"{SECTIONS[section]}{dot}{rest}")
