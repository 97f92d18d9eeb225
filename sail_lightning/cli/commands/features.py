"""`sail-lightning features`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_lightning.cli.command import command
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from sail_lightning.cli.data_config import DataConfig
    from sail_lightning.data.sources import Source
    from sail_lightning.encoding.transform import Encoder
    from sail_lightning.features.images import ImageLocation
    from sail_lightning.features.store import Summary
    from sail_lightning.interfaces import Teacher

MEASURED = 16
"""Number of images that --measure uses."""


@command(section="teachers")
def features(
    *overrides: str,
    config: list[Path],
    out: Path,
    split: Literal["train", "val", "test"] = "train",
    teacher: str | None = None,
    dtype: Literal["float16", "int8"] = "float16",
    stride: PositiveInt | None = None,
    count: PositiveInt | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    batch: PositiveInt = 8,
    workers: NonNegativeInt | None = None,
    measure: bool = False,
) -> None:
    """Computes a teacher's features of all images of a data set once, for CachedTeacher.

    Each image is computed once, resized as the config's model resizes it, and stored in OUT under a hash of its pixels.
    A run that was stopped resumes when the command is given again. OUT/features.json describes the features, their size
    per image, and their error against the teacher's own. Train with --model.teachers.NAME=CachedTeacher
    --model.teachers.NAME.folder=OUT, and the same data and sizes.

    Examples:
        sail-lightning features -c quickstart -c ablation/teacher_student --teacher mask_features --count 200 --out f
        sail-lightning features -c my_config.yaml --out features --dtype int8 --device cuda --workers 8 --measure

    Args:
        config: A config, as for fit; may be repeated.
        out: Folder, made if missing; features are added to it.
        split: Part of the data.
        teacher: Name in model.teachers, if there are several.
        dtype: Type in which features are stored (int8: with a scale for each channel).
        stride: Resize features to one per so many pixels, such as the student's stride; no resizing if left out.
        count: Number of records, the first ones; all if left out.
        device: Device of the teacher.
        batch: Images of one size in a batch.
        workers: Processes that read; one less than the number of cores if left out.
        measure: Also time both teachers on 16 images.
    """
    from sail_lightning.cli.data_progress import progress
    from sail_lightning.features.extract import extract, settings_for
    from sail_lightning.features.images import locate_images
    from sail_lightning.features.store import FeatureWriter

    described, source, encoder = _read(config, split, overrides, device)
    readers = max(1, (os.cpu_count() or 1) - 1) if workers is None else workers
    records = _records(source, count)
    made = _teacher(described, teacher, encoder)
    with progress("records") as report:
        wanted, faults = locate_images(source, records, described.described()["data"], report)
    settings = settings_for(made, encoder, dtype, stride)
    with FeatureWriter(out, settings) as writer, progress("images") as report:
        done = extract(source, encoder, made, writer, wanted, device, readers, batch, report)
    for fault in (*faults, *done.faults):
        sys.stderr.write(f"left out: {fault}\n")
    summary = writer.written
    if not summary.images:
        raise SailError(f"data.{split} has no image that can be read")
    print(f"{out}: {summary.images} images, {done.computed} of them new; {dtype}, {_sizes(summary)}")
    if measure:
        print(_measured(out, device, source, encoder, made, wanted, summary.bytes_per_image))


def _read(
    config: Sequence[Path], split: str, overrides: Sequence[str], device: str
) -> tuple[DataConfig, Source, Encoder]:
    """Returns what the configs describe, the source of a split, and the encoder of the model.

    Raises:
        SailUsageError: There is no such device or no model, or a config or an option is wrong.
    """
    import torch

    from sail_lightning.cli.data_config import DataConfig

    if device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave out --device")
    names = [path.as_posix() for path in config]
    takes = f"features takes --data.{split}.ARGUMENT=VALUE and --model.ARGUMENT=VALUE"
    described = DataConfig(names, [], overrides, takes=takes)
    source, encoder = described.source(split), described.encoder()
    if encoder is None:
        raise SailUsageError(f"{', '.join(names)} has no model, which sets how images are resized; add one")
    return described, source, encoder


def _sizes(summary: Summary) -> str:
    """Returns the sizes and errors of stored features as text."""
    return (
        f"{summary.bytes_per_image / 1e6:.3f} MB an image, {summary.bytes / 1e6:.1f} MB in all; largest error "
        f"{summary.error.largest:.2g}, relative error {summary.error.relative:.2g}"
    )


def _records(source: Source, count: int | None) -> int:
    if source.length is None and count is None:
        raise SailUsageError(f"{type(source).__name__} has no end; set the number of records with --count")
    return min(n for n in (source.length, count) if n is not None)


def _teacher(config: DataConfig, name: str | None, encoder: Encoder) -> Teacher:
    """The teacher of a config, built."""
    from sail_lightning.cli.config_validation import check_value
    from sail_lightning.cli.data_config import instances
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
    teacher: Teacher = instances({"teacher": named[name]}, {"teacher": Teacher})["teacher"]
    contract.build(teacher, Dims(patch_size=encoder.patch_size))
    return teacher


def _measured(
    out: Path,
    device: str,
    source: Source,
    encoder: Encoder,
    teacher: Teacher,
    wanted: Sequence[ImageLocation],
    bytes_per_image: float,
) -> str:
    from sail_lightning.features.images import load_images
    from sail_lightning.features.measure import measure
    from sail_lightning.interfaces import Dims
    from sail_lightning.plugins.teachers import CachedTeacher

    cached = CachedTeacher(str(out))
    cached.build(Dims())
    images = [one.pixels for one in load_images(source, encoder, wanted[:MEASURED], 0) if one.pixels is not None]
    return measure(teacher, cached, images, bytes_per_image, device).to_text()
