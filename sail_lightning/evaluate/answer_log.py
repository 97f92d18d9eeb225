"""The answers of a test on disk while it runs: nothing that was answered is lost when the test is killed.

Each rank appends its answers, batch by batch, to a file of its own. A test that begins in a folder where another was
killed joins what lies there, leaves out the half-written line at an end, and goes on with the questions that are left.
Official code: results went to disk at the end only, and a restart dealt out other lists (E26).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from sail_lightning.errors import SailUsageError

FILE, HEAD = "per_sample.jsonl", "test.json"
NUMBER = "number"
"""Key of a line that holds the record's number in its source, by which a test knows what is answered."""

Line = dict[str, Any]


class AnswerLog:
    """The log of one test's answers: a file of JSON lines per process, in one folder.

    Args:
        folder: Folder of the files; it is made when the test begins.
        rank: Rank of the process that writes, from 0.
        world_size: Number of processes that answer.
    """

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1) -> None:
        self.folder, self.path = folder, folder / FILE
        self.own = self.path if world_size == 1 else folder / f"{self.path.stem}-rank{rank}.jsonl"
        self._file: TextIO | None = None

    def begin(self, head: Mapping[str, Any]) -> None:
        """Joins the answers that a killed test left; one process calls it, before any process calls `open`.

        Args:
            head: What identifies this test, as JSON; answers of another test are refused.

        Raises:
            SailUsageError: The folder holds answers of another test, or of a test that is not known.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._parts():
            self._check(json.loads(json.dumps(head)))
            self.join()
        (self.folder / HEAD).write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")

    def open(self) -> list[Line]:
        """Opens this process's own file, to which `add` then appends, and returns the lines that are already there."""
        lines = whole_lines(self.path) if self.path.exists() else []
        self._file = self.own.open("a", encoding="utf-8")
        return lines

    def add(self, lines: Iterable[Line]) -> None:
        """Appends lines to this process's file and flushes them, so that they outlive the process."""
        assert self._file is not None
        self._file.write(encoded(lines))
        self._file.flush()

    def close(self) -> None:
        """Closes this process's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def join(self) -> list[Line]:
        """Writes the lines of all processes into one file, in the order of their numbers, and returns them."""
        parts = self._parts()
        found: dict[int, Line] = {}
        for part in parts:
            for line in whole_lines(part):
                found.setdefault(line[NUMBER], line)
        lines = [found[number] for number in sorted(found)]
        write_lines(self.path, lines)
        for part in parts:
            if part != self.path:
                part.unlink()
        return lines

    def _parts(self) -> list[Path]:
        ranks = sorted(self.folder.glob(f"{self.path.stem}-rank*.jsonl"))
        return [self.path, *ranks] if self.path.exists() else ranks

    def _check(self, head: Line) -> None:
        try:
            before = dict(json.loads((self.folder / HEAD).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            raise SailUsageError(
                f"{self.folder} holds answers, but no readable {HEAD} that says of which test; choose another folder"
            ) from None
        if differing := [key for key in head if before.get(key) != head[key]]:
            raise SailUsageError(
                f"{self.folder} holds answers of another test ({', '.join(differing)} differ); choose another folder, "
                f"or remove its {FILE}"
            )


def whole_lines(path: Path) -> list[Line]:
    """Reads the lines of a file that were written completely; a half-written last line is left out.

    Raises:
        SailUsageError: A line is not a JSON object with a number; the message names file and line.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    return [_parsed(line, f"{path} line {place}") for place, line in enumerate(lines, 1) if line.strip()]


def _parsed(content: bytes, where: str) -> Line:
    try:
        line = json.loads(content)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or type(line.get(NUMBER)) is not int or line[NUMBER] < 0:
        raise SailUsageError(f"{where} is damaged: no JSON object with a whole {NUMBER}; remove it, or the whole file")
    return line


def encoded(lines: Iterable[Line]) -> str:
    """Returns lines as JSON text that UTF-8 can encode: lone surrogates, which JSON can escape, stay escaped."""
    return "".join(_encoded(line) + "\n" for line in lines)


def _encoded(line: Line) -> str:
    text = json.dumps(line, ensure_ascii=False)
    return json.dumps(line) if re.search("[\ud800-\udfff]", text) else text


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Writes a file of JSON lines atomically: it is written completely or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(encoded(lines), encoding="utf-8")
    os.replace(draft, path)
