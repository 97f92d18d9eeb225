"""Answers on disk while a test runs: what a kill leaves, and how the next run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate.answer_log import FILE, HEAD, AnswerLog, whole_lines

TEST = {"benchmark": "refcoco_val", "weights": {"path": "x.ckpt", "sha256": "ab"}}


def lines(*numbers: int) -> list[dict[str, Any]]:
    return [{"number": number, "text": f"façade {number}"} for number in numbers]


def begun(folder: Path, rank: int = 0, ranks: int = 1, head: dict[str, Any] = TEST) -> AnswerLog:
    log = AnswerLog(folder, rank, ranks)
    if rank == 0:
        log.begin(head)
    return log


def test_lines_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    log = begun(tmp_path)
    assert log.open() == []
    log.add(lines(0, 1))
    assert whole_lines(tmp_path / FILE) == lines(0, 1)
    log.close()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    log = begun(tmp_path)
    log.open()
    log.add(lines(0, 1, 2))
    log.close()
    written = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(written[:-cut])
    again = begun(tmp_path)
    assert again.open() == lines(0, 1)
    again.add(lines(2))
    again.close()
    assert whole_lines(tmp_path / FILE) == lines(0, 1, 2)


def test_files_of_ranks_are_joined_in_the_order_of_the_source(tmp_path: Path) -> None:
    logs = [begun(tmp_path, rank, 2) for rank in range(2)]
    for rank, log in enumerate(logs):
        assert log.open() == []
        log.add(lines(*range(4 + rank, -1, -2)))
        log.close()
    assert logs[0].join() == lines(0, 1, 2, 3, 4, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, HEAD]


def test_another_number_of_ranks_goes_on_with_what_the_first_ones_left(tmp_path: Path) -> None:
    for rank in range(2):
        log = begun(tmp_path, rank, 2)
        log.open()
        log.add(lines(rank, rank + 2))
        log.close()
    with (tmp_path / "per_sample-rank1.jsonl").open("a") as file:
        file.write('{"number": 5, "te')
    assert begun(tmp_path).open() == lines(0, 1, 2, 3)


def test_an_answer_that_two_files_hold_counts_once(tmp_path: Path) -> None:
    (tmp_path / HEAD).write_text(json.dumps(TEST))
    for name in (FILE, "per_sample-rank0.jsonl"):  # killed while they were joined
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines(0, 1)))
    assert begun(tmp_path).open() == lines(0, 1)


def test_answers_of_another_test_are_not_gone_on_with(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.open()
    log.add(lines(0))
    log.close()
    other = {**TEST, "weights": {"path": "x.ckpt", "sha256": "cd"}}
    with pytest.raises(SailUsageError, match=r"answers of another test \(weights differ\)"):
        begun(tmp_path, head=other)
    assert whole_lines(tmp_path / FILE) == lines(0)


@pytest.mark.parametrize("bad", ['{"number": 1, "te', '{"id": "x"}', '{"number": "1"}', "[1]"])
def test_a_damaged_line_is_named_by_file_and_line(bad: str, tmp_path: Path) -> None:
    (tmp_path / HEAD).write_text(json.dumps(TEST))
    (tmp_path / FILE).write_text(f'{{"number": 0}}\n{bad}\n{{"number": 2}}\n')
    with pytest.raises(SailUsageError, match=r"per_sample\.jsonl line 2 is damaged"):
        begun(tmp_path)


def test_answers_of_an_unknown_test_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(lines(0)[0]) + "\n")
    with pytest.raises(SailUsageError, match="no readable test.json"):
        begun(tmp_path)
