"""Accounts for every key of an official config: what it became, or why it was not carried over.

Converters look at an official config only through a `Section`. A key that none of them has accounted for is found at
the end (`Ledger.close`), so nothing can be dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Tree = dict[str, Any]


class Fate(Enum):
    """The fate of a key; the value is its heading in the report."""

    CARRIED = "Carried over"
    SAME = "The same here without a setting"
    DROPPED = "Not carried over"
    ADDED = "Added: what the official code does and its config does not say"
    NAME = "Names that training does not read itself"


@dataclass(frozen=True)
class Entry:
    """One line of the report: a key, its value as text, its fate, and where it went or why it was not carried over."""

    key: str
    value: str
    fate: Fate
    note: str


@dataclass
class Ledger:
    """The new config during the conversion, and the fate of each key of the official one.

    Args:
        tree: The official content as nested dictionaries; lists of dictionaries are replaced by `normalized`.
    """

    tree: Tree
    config: Tree = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences about what to do or know before training."""

    def section(self, *path: str) -> Section:
        """Returns the part of the tree at a path, empty where there is none."""
        found: Any = self.tree
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return Section(self, path, found if isinstance(found, dict) else {})

    def put(self, target: str, value: Any) -> None:
        """Sets a key of the new config, such as `trainer.precision`."""
        *parents, last = target.split(".")
        place = self.config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value

    def add(self, target: str, value: Any, note: str) -> None:
        """Sets a key of the new config to which no key of the official one corresponds."""
        self.put(target, value)
        self.entries.append(Entry(target, shown(value), Fate.ADDED, note))

    def account(self, path: tuple[str, ...], value: Any, fate: Fate, note: str) -> None:
        """Records the fate of a key and of all keys below it."""
        self.entries.append(Entry(dotted(path), shown(value), fate, note))

    def close(self) -> None:
        """Records every key without a fate as not carried over."""
        known = {entry.key for entry in self.entries if entry.fate is not Fate.ADDED}
        for path, value in _leaves(self.tree):
            if not any(dotted(path[:depth]) in known for depth in range(1, len(path) + 1)):
                self.account(path, value, Fate.DROPPED, "this importer does not know the key")


@dataclass(frozen=True)
class Section:
    """One dictionary of an official config. Methods that account for a key do nothing where the key is absent."""

    ledger: Ledger
    path: tuple[str, ...]
    values: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, without accounting for it."""
        return self.values.get(key, default)

    def sub(self, key: str) -> Section:
        """Returns the dictionary of a key, empty if the key holds another value."""
        return self.ledger.section(*self.path, key)

    def subs(self) -> list[Section]:
        """Returns the dictionaries of a section that was a list of dictionaries."""
        return [self.sub(key) for key in self.values if key.startswith("[")]

    def carry(self, key: str, target: str, convert: Callable[[Any], Any] = lambda value: value, note: str = "") -> None:
        """Sets a key of the new config to the converted value."""
        if key in self:
            self.ledger.put(target, convert(self.values[key]))
            self.went(key, target + (f" ({note})" if note else ""))

    def went(self, key: str, note: str) -> None:
        """Records that a key was carried over to the place that the note names."""
        self._note(key, Fate.CARRIED, note)

    def same(self, key: str, wanted: Any, note: str, otherwise: str | None = None) -> None:
        """Records that a key has the value that always holds here; `otherwise` is the reason if it has another."""
        if key in self and self.values[key] == wanted:
            self._note(key, Fate.SAME, note)
        else:
            self.drop(key, otherwise or f"here it is always {shown(wanted)}: {note}")

    def agree(self, key: str, note: str) -> None:
        """Records that a key agrees with what always holds here, whatever its value."""
        self._note(key, Fate.SAME, note)

    def drop(self, key: str, reason: str) -> None:
        """Records that a key was not carried over."""
        self._note(key, Fate.DROPPED, reason)

    def drop_all(self, reason: str) -> None:
        """Records that nothing of this section was carried over."""
        if self.path and self.values:
            self.ledger.account(self.path, dict(self.values), Fate.DROPPED, reason)

    def _note(self, key: str, fate: Fate, note: str) -> None:
        if key in self:
            self.ledger.account((*self.path, key), self.values[key], fate, note)


def normalized(value: Any) -> Any:
    """Returns the same content with each list of dictionaries as a dictionary of them by their positions.

    Equal dictionaries occur once: `[a, b, a]` becomes `{"[0, 2]": a, "[1]": b}`.
    """
    if isinstance(value, dict):
        return {str(key): normalized(part) for key, part in value.items()}
    if isinstance(value, list | tuple) and value and all(isinstance(part, dict) for part in value):
        groups: list[tuple[Any, list[int]]] = []
        for position, part in enumerate(value):
            group = next((places for other, places in groups if other == part), None)
            if group is None:
                groups.append((part, [position]))
            else:
                group.append(position)
        return {str(places): normalized(part) for part, places in groups}
    return value


def dotted(path: tuple[str, ...]) -> str:
    """Returns a path as text: `train_dataloader.dataset.datasets[0, 3].type`."""
    return ".".join(path).replace(".[", "[")


def shown(value: Any) -> str:
    """Returns a value as short text; a dictionary as its type or size, a function as its name."""
    if isinstance(value, dict):
        return f"dict(type={short(value['type'])}, ...)" if "type" in value else f"dict of {len(value)}"
    if callable(value):
        return f"function {getattr(value, '__name__', '?')}"
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 70 else f"{text[:67]}..."


def short(name: Any) -> str:
    """Returns the class in a dotted name: `Model` of `projects.models.Model.from_pretrained`, "nothing" of None."""
    return "nothing" if name is None else str(name).removesuffix(".from_pretrained").rpartition(".")[2]


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Returns the paths and values of all nodes that are not dictionaries with content."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, (*path, key))
        else:
            found.append(((*path, key), value))
    return found
