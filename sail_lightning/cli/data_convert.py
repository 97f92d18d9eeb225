"""`sail-lightning data convert`: any source as a JSONL file of our own format, or as shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.cli.folders import output_folder
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:
    from sail_lightning.data.jsonl_writer import JsonlWriter
    from sail_lightning.data.sources import Source
    from sail_lightning.data.webdataset.writer import ShardWriter
    from sail_lightning.sample import Sample

EXAMPLES = """\
Each record is read once, always alike: --passes 4 reads it four times, with wording and objects drawn anew. Masks are
written as RLE. Nothing is left half-written. Read the result with JsonlSource or ShardSource.

examples:
  sail-lightning data convert -c data/laboratory --split val --out val.jsonl --copy-images
  sail-lightning data convert -c my_data.yaml --shards my_shards --shard-size 512MB --passes 4"""


def run(args: list[str]) -> int:
    """Converts; returns the exit code."""
    parser = Parser(
        prog="sail-lightning data convert",
        description="Writes a data set as a JSONL file (docs/own_data.md) or as WebDataset shards.",
        epilog=EXAMPLES,
    )
    parser.add_argument("-c", "--config", action="append", required=True, help="as for fit; may be repeated")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--out", metavar="FILE", help="write a JSONL file")
    parser.add_argument("--copy-images", action="store_true", help="copy the pictures to a folder beside it")
    parser.add_argument("--shards", metavar="FOLDER", help="write shards to a folder or an fsspec address")
    parser.add_argument("--shard-size", metavar="SIZE", help="of a shard at most (512MB)")
    parser.add_argument("--count", type=int, help="the first so many records (all)")
    parser.add_argument("--passes", type=int, default=1, help="readings of each record (1)")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken records out, each told by name")
    parser.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    given, rest = parser.parse_known_args(args)
    if (given.out is None) == (given.shards is None):
        raise SailUsageError("data convert writes --out FILE or --shards FOLDER; give one of them")
    for option, name, owner in (("copy_images", "--copy-images", "out"), ("shard_size", "--shard-size", "shards")):
        if getattr(given, option) and getattr(given, owner) is None:
            raise SailUsageError(f"{name} belongs to --{owner}")
    for name, value in (("--count", given.count), ("--passes", given.passes)):
        if value is not None and value < 1:
            raise SailUsageError(f"{name} must be 1 or more, not {value}")

    from sail_lightning.cli.data_config import read_source
    from sail_lightning.data.jsonl_writer import JsonlWriter  # after --help: it takes seconds
    from sail_lightning.data.webdataset.store import is_remote
    from sail_lightning.data.webdataset.writer import ShardWriter, as_bytes

    source = read_source(given.config, given.split, comma_list(given.plugins), rest, "convert")
    records = _count(source, given.count)
    size = as_bytes(given.shard_size or "512MB")
    place = given.out or given.shards
    if not is_remote(place):
        output_folder(Path(place).parent, "--out" if given.out else "--shards")
    try:
        with JsonlWriter(place, given.copy_images) if given.out else ShardWriter(place, size) as writer:
            written, skipped = _convert(source, records, given.passes, writer, given.skip_broken)
            if not written:
                raise SailError(f"data.{given.split} has no record{' that is not broken' if skipped else ''} to write")
    except OSError as error:
        raise SailError(
            f"{place} cannot be written ({error.strerror or error}); nothing half-written is left"
        ) from None
    left = f", {skipped} broken ones left out" if skipped else ""
    print(f"{place}: {written} samples of data.{given.split}{left}")
    return 0


def _count(source: Source, count: int | None) -> int:
    length = source.length
    if length is None and count is None:
        raise SailUsageError(f"{type(source).__name__} has no end; say how many records to write with --count")
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
                _add(source[index] if turn == 0 else source.draw(index, rng), writer)
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
