"""Broken records are skipped, counted and told by name; too many stop the run (E35: crashes, silent resampling)."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sail import tiny

from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import Source
from sail_lightning.data.stream import PackedStream
from sail_lightning.errors import SailError
from sail_lightning.sample import Sample, Turn

BROKEN = (3, 7)
COUNT = 40


class Album(Source):
    """Images of which some are broken."""

    def __init__(self, folder: Path, broken: tuple[int, ...] = BROKEN) -> None:
        for index in range(COUNT):
            path = folder / f"{index}.png"
            Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(path)
            if index in broken:
                path.write_bytes(path.read_bytes()[:40])
        self.folder = folder

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.folder / f"{index}.png", (Turn("what is it?", "a square"),), source="album", id=str(index))

    @property
    def length(self) -> int:
        return COUNT


def stream(source: Source, rate: float, packing_buffer_size: int = 4) -> PackedStream:
    return PackedStream(source, tiny().encoder, 60, packing_buffer_size=packing_buffer_size, max_error_rate=rate)


def test_broken_records_are_skipped_and_each_is_told_with_the_batch_that_follows(tmp_path: Path) -> None:
    seen: list[str] = []
    result: list[str] = []
    for batch in stream(Album(tmp_path), 0.1):
        seen += [sample.id for sample in batch.samples]
        result += batch.faults
        if len(seen) >= COUNT - len(BROKEN):
            break
    assert sorted(map(int, seen[: COUNT - 2])) == [index for index in range(COUNT) if index not in BROKEN]
    assert len(result) >= 2 and all("is not a readable image" in fault for fault in result)
    assert {fault.split(":")[0] for fault in result[:2]} == {f"album {index}" for index in BROKEN}


def test_a_place_counts_what_was_skipped_as_read(tmp_path: Path) -> None:
    for batch in islice(stream(Album(tmp_path), 0.1, packing_buffer_size=1), COUNT):
        assert batch.cursor is not None and batch.cursor[1].waiting == ()


def test_the_first_broken_record_stops_a_run_that_allows_none(tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"album [37]: .*to skip such records, set data.max_error_rate"):
        list(islice(stream(Album(tmp_path), 0.0), COUNT))


def test_a_share_above_the_rate_stops_the_run_and_says_how_many(tmp_path: Path) -> None:
    album = Album(tmp_path, broken=tuple(range(0, COUNT, 2)))
    with pytest.raises(SailError, match=r"11 of the \d\d records read so far are broken, more than .*\(0.05\).*album"):
        list(islice(stream(album, 0.05), COUNT))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_tells_each_broken_record_once_and_counts_it(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import lightning as L

    data = SailDataModule(
        Album(tmp_path), token_budget=60, num_workers=workers, packing_buffer_size=2, max_error_rate=0.5
    )
    trainer = L.Trainer(
        max_steps=16, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with caplog.at_level(logging.WARNING, "sail_lightning.data.datamodule"):
        trainer.fit(tiny(), datamodule=data)
    lines = [record.getMessage() for record in caplog.records if "skipped a broken record" in record.getMessage()]
    assert len(lines) == data.faults >= 1
    assert all("album 3" in line or "album 7" in line for line in lines)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_stops_a_worker_is_one_sentence(workers: int, tmp_path: Path) -> None:
    import lightning as L

    data = SailDataModule(Album(tmp_path), token_budget=60, num_workers=workers, max_error_rate=0.0)
    trainer = L.Trainer(
        max_steps=40, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(SailError, match=r"^album [37]: .*set data.max_error_rate$"):
        trainer.fit(tiny(), datamodule=data)
