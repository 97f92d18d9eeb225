"""What a figure was measured on: files and their sums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from sail_lightning.data.sources import LaboratorySource, Mixture, PerBench, ReasonSeg
from sail_lightning.evaluate.provenance import annotations_of, files_digest, questions_of, weights_of


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    for name in ("b.json", "a.json"):
        (tmp_path / name).write_text(json.dumps([name]))
    return [tmp_path / "b.json", tmp_path / "a.json"]


def test_the_sum_of_one_file_is_its_own(two: list[Path]) -> None:
    assert files_digest(two[:1]) == sha256(two[0])


def test_the_sum_of_several_files_follows_their_names_and_contents_not_their_order(two: list[Path]) -> None:
    before = files_digest(two)
    assert before == files_digest(two[::-1]) and before not in map(sha256, two)
    two[0].write_text("[1]")
    assert files_digest(two) != before


def test_annotations_of_a_mixture_are_those_of_its_parts(two: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "reason/val"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text("{}")
    (folder / "1.jpg").write_bytes(b"not read")
    parts = {"a": PerBench(annotations=str(two[0])), "b": ReasonSeg("val", str(tmp_path / "reason"))}
    found = annotations_of(Mixture(parts))
    assert found == {str(two[0]): sha256(two[0]), str(folder): sha256(folder / "1.json")}
    assert annotations_of(LaboratorySource("test", samples=2)) == {}


def test_two_sources_that_ask_other_questions_are_told_apart() -> None:
    result = questions_of(LaboratorySource("test", samples=9))
    assert (result["source"], result["questions"]) == ("LaboratorySource", 9)
    assert result == questions_of(LaboratorySource("test", samples=9))
    for other in (LaboratorySource("val", samples=9), LaboratorySource("test", samples=9, seed=1)):
        assert questions_of(other)["sha256"] != result["sha256"]


def test_weights_are_told_by_their_files(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"weights")
    assert weights_of(path, dict) == {"path": str(path), "sha256": sha256(path)}
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded/part").write_bytes(b"a part")
    assert weights_of(tmp_path / "sharded", dict)["sha256"] == sha256(tmp_path / "sharded/part")
    packaged = weights_of("sail-tiny", dict)
    assert packaged["path"] == "sail-tiny" and len(packaged["sha256"] or "") == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_weights_in_memory_are_told_by_their_values(dtype: torch.dtype) -> None:
    one, other = torch.zeros(3, dtype=dtype), torch.tensor([0, 1, 0], dtype=dtype)
    sums = {weights_of(None, lambda value=value: {"w": value})["sha256"] for value in (one, one.clone(), other)}
    assert len(sums) == 2
