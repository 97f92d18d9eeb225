"""State of a check on disk, from which a stopped check resumes."""

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
    """Results of consecutive records of one leaf source.

    Args:
        number: Number of the chunk among those of all leaf sources.
        counts: Sums, in the order of `COUNTS`.
        faults: Faults of its records.
        keys: `Finding.key` of each record.
        images: `Finding.images` of each record.
        contents: `Finding.contents` of each record.
    """

    number: int
    counts: tuple[int, ...]
    faults: tuple[Fault, ...]
    keys: tuple[str, ...]
    images: tuple[tuple[int, ...], ...]
    contents: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, number: int, findings: Sequence[Finding]) -> Chunk:
        """Sums up the results of records."""
        sums = (sum(getattr(finding, name) for finding in findings) for name in COUNTS[1:])
        return cls(
            number,
            (len(findings), *sums),
            tuple(fault for finding in findings for fault in finding.faults),
            tuple(finding.key for finding in findings),
            tuple(finding.images for finding in findings),
            tuple(finding.contents for finding in findings),
        )

    def to_json(self) -> str:
        """Returns the chunk as one line of JSON."""
        return json.dumps(
            {
                "chunk": self.number,
                "counts": self.counts,
                "faults": [fault.to_dict() for fault in self.faults],
                "keys": self.keys,
                "images": self.images,
                "contents": self.contents,
            }
        )

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> Chunk:
        """Returns the chunk that `to_json` wrote."""
        return cls(
            line["chunk"],
            tuple(line["counts"]),
            tuple(Fault(**fault) for fault in line["faults"]),
            tuple(line["keys"]),
            tuple(map(tuple, line["images"])),
            tuple(map(tuple, line["contents"])),
        )


class State:
    """Finished chunks in a file, one line each.

    An existing file is continued if it belongs to the same check and that was stopped; a check that was completed
    starts anew, as files may have been fixed since.

    Args:
        folder: Folder of the file; made if missing.
        fingerprint: Hash of the settings and files of the check.
        restart: Whether to discard an existing file.

    Raises:
        SailError: The folder cannot be made or written to.
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
        self.path.write_text(
            "\n".join(kept) + "\n", encoding="utf-8"
        )  # without the incomplete last line of a killed process

    def add(self, chunk: Chunk) -> None:
        """Stores a chunk; it is in the file when this returns."""
        self.done[chunk.number] = chunk
        self._append(chunk.to_json())

    def end(self) -> None:
        """Marks the check as completed."""
        self._append(json.dumps({"end": True}))

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _whole_lines(path: Path) -> list[Any]:
    """Returns the lines of a file as JSON, up to the first incomplete one."""
    found: list[Any] = []
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # `splitlines` also cuts at U+2028
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
