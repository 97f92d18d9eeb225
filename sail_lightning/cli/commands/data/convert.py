"""`sail-lightning data convert`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_lightning.cli.command import command
from sail_lightning.cli.folders import output_folder
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt

    from sail_lightning.data.jsonl_writer import JsonlWriter
    from sail_lightning.data.sources import Source
    from sail_lightning.data.webdataset.writer import ShardWriter
    from sail_lightning.sample import Sample


@command("data convert", section="data")
def convert(
    *overrides: str,
    config: list[Path],
    split: Literal["train", "val", "test"] = "train",
    out: str | None = None,
    copy_images: bool = False,
    shards: str | None = None,
    shard_size: str | None = None,
    count: PositiveInt | None = None,
    passes: PositiveInt = 1,
    skip_broken: bool = False,
) -> None:
    """Writes a data set as a JSONL file (docs/own_data.md) or as WebDataset shards.

    Each record is read once, in a fixed wording; --passes 4 reads it four times, with wording and objects drawn anew.
    Masks are written as RLE. An interrupted command leaves no incomplete file. Read the result with JsonlSource or
    ShardSource.

    Examples:
        sail-lightning data convert -c data/laboratory --split val --out val.jsonl --copy-images
        sail-lightning data convert -c my_data.yaml --shards my_shards --shard-size 512MB --passes 4

    Args:
        config: A config, as for fit; may be repeated.
        split: Part of the data.
        out: JSONL file to write.
        copy_images: Copy the images to a folder beside it.
        shards: Folder or fsspec address that shards are written to.
        shard_size: Largest size of a shard; 512MB if left out.
        count: Number of records, the first ones; all if left out.
        passes: Number of times each record is read.
        skip_broken: Skip records with a fault, and name each.
    """
    target = _target(out, shards, copy_images, shard_size)

    from sail_lightning.cli.data_config import read_source
    from sail_lightning.data.jsonl_writer import JsonlWriter  # after --help: it takes seconds
    from sail_lightning.data.webdataset.store import is_remote
    from sail_lightning.data.webdataset.writer import ShardWriter, as_bytes

    source = read_source([path.as_posix() for path in config], split, [], overrides, "convert")
    records = _count(source, count)
    size = as_bytes(shard_size or "512MB")
    if not is_remote(target):
        output_folder(Path(target).parent, "--out" if out else "--shards")
    try:
        with JsonlWriter(target, copy_images) if out else ShardWriter(target, size) as writer:
            written, skipped = _convert(source, records, passes, writer, skip_broken)
            if not written:
                raise SailError(f"data.{split} has no {'usable ' if skipped else ''}record to write")
    except OSError as error:
        raise SailError(f"{target} cannot be written ({error.strerror or error}); no incomplete file is left") from None
    left = f", {skipped} with a fault left out" if skipped else ""
    print(f"{target}: {written} samples of data.{split}{left}")


def _target(out: str | None, shards: str | None, copy_images: bool, shard_size: str | None) -> str:
    """Returns the file or the folder to write.

    Raises:
        SailUsageError: None or both are given, or an option of the other is.
    """
    target = out or shards
    if target is None or (out and shards):
        raise SailUsageError("data convert writes --out FILE or --shards FOLDER; give one of them")
    for given, name, owner, there in (
        (copy_images, "--copy-images", "--out", out),
        (shard_size, "--shard-size", "--shards", shards),
    ):
        if given and there is None:
            raise SailUsageError(f"{name} belongs to {owner}")
    return target


def _count(source: Source, count: int | None) -> int:
    length = source.length
    if length is None and count is None:
        raise SailUsageError(f"{type(source).__name__} has no end; set the number of records with --count")
    return min(n for n in (length, count) if n is not None)


def _convert(
    source: Source, records: int, passes: int, writer: JsonlWriter | ShardWriter, skip: bool
) -> tuple[int, int]:
    """Adds the samples to a writer; returns how many, and how many were skipped."""
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("convert"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    skipped = 0
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for number in progress.track(range(records * passes)):
            turn, index = divmod(number, records)
            try:
                rng = np.random.default_rng([turn, index])
                _add(source[index] if turn == 0 else source.sample_record(index, rng), writer)
            except SailUsageError:
                raise
            except SailError as error:
                if not skip:
                    raise SailError(f"{error}; --skip-broken leaves such records out") from None
                skipped += 1
                progress.console.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
    return records * passes - skipped, skipped


def _add(sample: Sample, writer: JsonlWriter | ShardWriter) -> None:
    try:
        writer.add(sample)
    except SailError as error:
        raise type(error)(f"{sample.source} {sample.id}: {error}") from None
