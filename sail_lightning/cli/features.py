"""`sail-lightning features`: a teacher's features of all pictures of a data set, computed once, for `CachedTeacher`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.arguments import Parser, comma_list
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.data.sources import Source
    from sail_lightning.encoding.transform import Encoder
    from sail_lightning.features.images import Place
    from sail_lightning.interfaces import Teacher

EXAMPLES = """\
Each picture is seen once, resized as the config's model resizes it, and kept under a hash of its pixels in DIR, in
shards that are whole or not there: a run that was stopped goes on where it was when it is run again. DIR/features.json
says what the features are, how much room a picture takes, and how far they are from the teacher's own.
Train with --model.teachers.NAME=CachedTeacher --model.teachers.NAME.folder=DIR, and the same data and picture sizes.

examples:
  sail-lightning features -c quickstart -c ablation/teacher_student --teacher mask_features --count 200 --out features
  sail-lightning features -c my_config.yaml --out features --dtype int8 --device cuda --workers 8 --measure"""
MEASURED = 16
"""Pictures that --measure takes."""


def run(args: list[str]) -> int:
    """Computes features; returns the exit code."""
    given, overrides = _parser().parse_known_args(args)
    for option in ("count", "stride", "batch", "workers"):
        value, least = getattr(given, option), 0 if option == "workers" else 1
        if value is not None and value < least:
            raise SailUsageError(f"--{option} must be {least} or more, not {value}")

    import torch

    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.cli.data_progress import progress
    from sail_lightning.features.extract import extract, settings_for
    from sail_lightning.features.images import places
    from sail_lightning.features.store import FeatureWriter

    if given.device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave --device out")
    takes = f"features takes --data.{given.split}.ARGUMENT=VALUE and --model.ARGUMENT=VALUE"
    config = DataConfig(given.config, comma_list(given.plugins), overrides, takes=takes)
    source, encoder = config.source(given.split), config.encoder()
    if encoder is None:
        raise SailUsageError(f"{', '.join(given.config)} has no model, which says how pictures are resized; add one")
    records = _records(source, given.count)
    teacher = _teacher(config, given.teacher, encoder)
    with progress("records") as tell:
        wanted, faults = places(source, records, config.described()["data"], tell)
    settings = settings_for(teacher, encoder, given.dtype, given.stride)
    with FeatureWriter(Path(given.out), settings) as writer, progress("pictures") as tell:
        done = extract(source, encoder, teacher, writer, wanted, given.device, given.workers, given.batch, tell)
    for fault in (*faults, *done.faults):
        sys.stderr.write(f"left out: {fault}\n")
    summary = writer.written
    if not summary.pictures:
        raise SailError(f"data.{given.split} has no picture that can be read")
    print(
        f"{given.out}: {summary.pictures} pictures, {done.computed} of them new; {given.dtype}, "
        f"{summary.bytes_per_picture / 1e6:.3f} MB a picture, {summary.bytes / 1e6:.1f} MB in all; largest error "
        f"{summary.error.largest:.2g}, relative error {summary.error.relative:.2g}"
    )
    if given.measure:
        print(_measured(given, source, encoder, teacher, wanted, summary.bytes_per_picture))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="sail-lightning features",
        description="Writes a teacher's features of all pictures of a data set, for CachedTeacher.",
        epilog=EXAMPLES,
    )
    parser.add_argument("-c", "--config", action="append", required=True, help="as for fit; may be repeated")
    parser.add_argument("--out", required=True, metavar="DIR", help="made if missing; features are added to it")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--teacher", metavar="NAME", help="of model.teachers, if there are several")
    parser.add_argument(
        "--dtype", choices=("float16", "int8"), default="float16", help="stored (int8: scale a channel)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="resize to N pixels a feature, as the student's (never)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="the first so many records (all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that the teacher computes on")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures of one size at once (8)")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 1) - 1), metavar="N", help="processes that read"
    )
    parser.add_argument("--measure", action="store_true", help=f"then time both teachers on {MEASURED} pictures")
    parser.add_argument("--plugins", action="append", metavar="FILE", help="your own file or module; may be repeated")
    return parser


def _records(source: Source, count: int | None) -> int:
    if source.length is None and count is None:
        raise SailUsageError(f"{type(source).__name__} has no end; say how many records to read with --count")
    return min(n for n in (source.length, count) if n is not None)


def _teacher(config: DataConfig, name: str | None, encoder: Encoder) -> Teacher:
    """The teacher of a config, built."""
    from jsonargparse import ArgumentError, ArgumentParser

    from sail_lightning.cli.errors import check_value, explain
    from sail_lightning.interfaces import Dims, Teacher
    from sail_lightning.model import contract

    described: dict[str, Any] = config.described().get("model", {}).get("teachers") or {}
    named = {key: node for key, node in described.items() if node is not None}
    if not named:
        raise SailUsageError("the config has no model.teachers; add one, such as -c ablation/teacher_student")
    if name is None and len(named) > 1:
        raise SailUsageError(f"the config has the teachers {', '.join(sorted(named))}; choose with --teacher")
    name = name or next(iter(named))
    if name not in named:
        raise SailUsageError(f"the config has no teacher {name}; there are {', '.join(sorted(named))}")
    check_value(Teacher, named[name], f"model.teachers.{name}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Teacher, "teacher", required=True)
    try:
        teacher: Teacher = parser.instantiate(parser.parse_object({"teacher": named[name]}))["teacher"]
    except ArgumentError as error:
        raise SailUsageError(explain(str(error))) from None
    contract.build(teacher, Dims(patch_size=encoder.patch_size))
    return teacher


def _measured(
    given: Namespace,
    source: Source,
    encoder: Encoder,
    teacher: Teacher,
    wanted: Sequence[Place],
    bytes_per_picture: float,
) -> str:
    from sail_lightning.features.images import read
    from sail_lightning.features.measure import measure
    from sail_lightning.interfaces import Dims
    from sail_lightning.plugins.teachers import CachedTeacher

    cached = CachedTeacher(given.out)
    cached.build(Dims())
    pictures = [one.pixels for one in read(source, encoder, wanted[:MEASURED], 0) if one.pixels is not None]
    return measure(teacher, cached, pictures, bytes_per_picture, given.device).to_text()
