"""How far a check has come, on disk: a check that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_lightning.data.doctor.checks import Finding
from sail_lightning.data.doctor.faults import Fault
from sail_lightning.errors import SailError

FILE = "state.jsonl"
COUNTS = ("records", "turns", "masks", "prompts")


@dataclass(frozen=True)
class Chunk:
    """What was seen of some records of one leaf that follow each other.

    Args:
        number: of the chunk, of all leaves.
        counts: as `COUNTS` names them.
        faults: of single records.
        keys: `Finding.key` of each record.
        pictures: `Finding.pictures` of each record.
        contents: `Finding.contents` of each record.
    """

    number: int
    counts: tuple[int, ...]
    faults: tuple[Fault, ...]
    keys: tuple[str, ...]
    pictures: tuple[tuple[int, ...], ...]
    contents: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, number: int, findings: Sequence[Finding]) -> Chunk:
        """The sum of what was seen."""
        sums = (sum(getattr(finding, name) for finding in findings) for name in COUNTS[1:])
        return cls(
            number,
            (len(findings), *sums),
            tuple(fault for finding in findings for fault in finding.faults),
            tuple(finding.key for finding in findings),
            tuple(finding.pictures for finding in findings),
            tuple(finding.contents for finding in findings),
        )

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "chunk": self.number,
                "counts": self.counts,
                "faults": [fault.to_dict() for fault in self.faults],
                "keys": self.keys,
                "pictures": self.pictures,
                "contents": self.contents,
            }
        )

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> Chunk:
        """What `to_json` wrote."""
        return cls(
            line["chunk"],
            tuple(line["counts"]),
            tuple(Fault(**fault) for fault in line["faults"]),
            tuple(line["keys"]),
            tuple(map(tuple, line["pictures"])),
            tuple(map(tuple, line["contents"])),
        )


class State:
    """Chunks that are done, one line each, as they come.

    What is there is kept if it belongs to the same check and that was stopped; a check that came to its end is begun
    anew, as files may have been mended since.

    Args:
        folder: where the file is, and is made.
        fingerprint: of the check: settings and files.
        restart: forget what is there.

    Raises:
        SailError: the folder cannot be made, or not be written to.
    """

    def __init__(self, folder: Path, fingerprint: str, restart: bool = False) -> None:
        self.path = folder / FILE
        self.done: dict[int, Chunk] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(fingerprint, restart)
        except OSError as error:
            raise SailError(
                f"the report cannot be written to the folder {folder} ({error.strerror or error}); name another"
            ) from None

    def _begin(self, fingerprint: str, restart: bool) -> None:
        lines = [] if restart else _whole_lines(self.path)
        if lines and lines[0] == {"check": fingerprint} and lines[-1] != {"end": True}:
            self.done = {line["chunk"]: Chunk.from_dict(line) for line in lines[1:]}
        header = json.dumps({"check": fingerprint})
        kept = [header, *(chunk.to_json() for chunk in self.done.values())]
        self.path.write_text("\n".join(kept) + "\n", encoding="utf-8")  # without the half line of a kill

    def add(self, chunk: Chunk) -> None:
        """Keeps a chunk; the file holds it when this returns."""
        self.done[chunk.number] = chunk
        self._append(chunk.to_json())

    def end(self) -> None:
        """Says that the check came to its end."""
        self._append(json.dumps({"end": True}))

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _whole_lines(path: Path) -> list[Any]:
    """The lines of a file as JSON, up to the first that was not written to its end."""
    found: list[Any] = []
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # `splitlines` also cuts at U+2028
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
