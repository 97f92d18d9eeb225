"""Measures how many samples one worker reads from JPEG files per second, and where its time goes.

A sample is a photograph of 640 x 480 pixels (JPEG, quality 90) with three questions and three masks, two as COCO
run-length codes and one as a polygon; its patches are 16 x 16 pixels. The images are the packaged photographs, cut
and flipped, written to a folder that is removed again. Words go through the packaged word-level tokenizer: that of a
real decoder takes somewhat longer. What is left out is the way of a batch from the worker to the training process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco

from sail_lightning.data.sources.base import Source
from sail_lightning.data.stream import PackedStream
from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import Encoder
from sail_lightning.image.preprocessing import load_image, load_mask, patchify, resize_image
from sail_lightning.sample import BoolMask, Sample, Turn
from sail_lightning.sequence.tokenizer import SailTokenizer

WIDTH, HEIGHT = 640, 480
PATCH = 16
TOKEN_BUDGET = 16384
RESIZED = 512
"""Longest side of the images that are resized; 640 x 480 pixels fit the grid as they are."""
TURNS = (
    Turn("please segment the large red circle.", "it is [SEG].", "refer", (0,)),
    Turn("where is the small blue square to the left of the circle?", "it is [SEG].", "refer", (1,)),
    Turn("find the green cross.", "it is [SEG].", "refer", (2,)),
)


def measure(repetitions: int) -> dict[str, float]:
    """Measures the data path in this process, after a warm-up.

    Args:
        repetitions: how often each stage and the whole are measured; the medians are returned.

    Returns:
        `samples_per_s`: rate of one worker, from files to packed batches, with images at their own size.
        `samples_per_s_resized`: the same with images resized to a longest side of 512 pixels.
        `decode_jpeg_s`, `resize_s` (to 512), `patchify_s`, `tokenise_s` (and lay out), `masks_s`, `pack_s`: seconds for
        each sample by stage, at full size but for the resizing.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Photographs(Path(folder))
        encoder = Encoder(SailTokenizer(), PATCH)
        samples = [source[index] for index in range(len(source.files))]
        images = [load_image(path) for path in source.files]
        grid = patchify(images[0], PATCH)[1]
        encoded = [encoder.encode(sample) for sample in samples]
        stages: dict[str, Callable[[], Any]] = {
            "decode_jpeg_s": lambda: [load_image(path) for path in source.files],
            "resize_s": lambda: [resize_image(image, PATCH, RESIZED) for image in images],
            "patchify_s": lambda: [patchify(image, PATCH) for image in images],
            "tokenise_s": lambda: [encoder.lay_out(sample.turns, (grid,)) for sample in samples],
            "masks_s": lambda: [load_mask(mask) for sample in samples for mask in sample.masks],
            "pack_s": lambda: pack(encoded),
        }
        rates = {
            "samples_per_s": partial(_rate, source, encoder),
            "samples_per_s_resized": partial(_rate, source, replace(encoder, max_side=RESIZED)),
        }
        found = {name: median(rate() for _ in range(repetitions)) for name, rate in rates.items()}
        return found | {name: _seconds(stage, repetitions) / len(samples) for name, stage in stages.items()}


def _seconds(stage: Callable[[], Any], repetitions: int) -> float:
    stage()
    taken = []
    for _ in range(repetitions):
        start = time.perf_counter()
        stage()
        taken.append(time.perf_counter() - start)
    return median(taken)


def _rate(source: Source, encoder: Encoder, batches: int = 3) -> float:
    """Returns the samples per second of a stream that has begun."""
    stream = iter(PackedStream(source, encoder, TOKEN_BUDGET, packing_buffer_size=8))
    next(stream)
    start = time.perf_counter()
    samples = sum(len(batch.samples) for batch in islice(stream, batches))
    return samples / (time.perf_counter() - start)


class Photographs(Source):
    """The packaged photographs at one size, plain and flipped, as JPEG files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        with as_file(files("sail_lightning.data") / "photos") as photos:
            for path in sorted(photos.glob("*.jpg")):
                with Image.open(path) as opened:
                    plain = ImageOps.fit(opened.convert("RGB"), (WIDTH, HEIGHT))
                for kind, image in (("plain", plain), ("flipped", ImageOps.mirror(plain))):
                    self.files.append(folder / f"{path.stem}_{kind}.jpg")
                    image.save(self.files[-1], quality=90)
        self.masks = (_code(_ring(200, 180, 90)), _code(_ring(430, 300, 140)), partial(_drawn, _ring(330, 220, 60)))

    @property
    def length(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.files[index], TURNS, self.masks, source="photographs", id=str(index))


def _ring(x: float, y: float, radius: float) -> list[float]:
    """Returns a star-shaped polygon of 40 corners as x0, y0, x1, y1, ..."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = radius * (1 + 0.2 * np.sin(5 * angles))
    return np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1).ravel().tolist()


def _code(polygon: list[float]) -> dict[str, Any]:
    code: dict[str, Any] = coco.merge(coco.frPyObjects([polygon], HEIGHT, WIDTH))
    return code


def _drawn(polygon: list[float]) -> BoolMask:
    return load_mask(_code(polygon))
