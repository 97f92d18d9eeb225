"""What `data stats` counts, and how it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sail_lightning.data.doctor import flatten_sources, gather
from sail_lightning.data.sources import GRefCOCO, LaboratorySource, Mixture, RefCOCO, Source
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.sample import Box, Sample, Turn
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory", num_prompts=4), patch_size=8, num_prompts=4, max_side=64)


class Squares(Source):
    """Record n has n masks of a quarter of the image, and a box; the image is 40 high and 10 * (n + 1) wide."""

    length = 4

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            raise SailError("record 3 is broken")
        size = (40, 10 * (index + 1))
        mask = np.zeros(size, bool)
        mask[:20, : size[1] // 2] = True
        answer = " ".join(["[SEG]"] * index) or "red"
        picture = np.zeros((*size, 3), np.uint8)
        return Sample(picture, (Turn("red", answer),), (mask,) * index, (Box(0, 0, 5, 5),), id=str(index))


def test_tokens_masks_areas_prompts_and_sizes_are_counted() -> None:
    (found,) = gather(flatten_sources("train", Squares()), 10, ENCODER).leaves
    assert (found.records, found.samples, found.skipped) == (4, 3, 1)
    assert found.values["masks"] == [0, 1, 2] and found.values["prompts"] == [1, 1, 1]
    assert found.values["mask_area"] == [0.25] * 3
    assert found.values["image_side"] == [40, 40, 40]
    assert found.values["tokens"] == [len(ENCODER.encode(Squares()[index])) for index in range(3)]


def test_without_a_model_all_but_tokens_is_counted() -> None:
    found = gather(flatten_sources("train", Squares()), 10)
    assert found.leaves[0].values["tokens"] == [] and found.to_dict()["sources"][0]["tokens"] is None
    assert found.to_dict()["sources"][0]["masks"] == {"count": 3, "mean": 1.0, "median": 1.0, "p95": 1.9, "max": 2.0}


def test_samples_are_drawn_from_all_of_a_source_and_the_same_in_every_run() -> None:
    read = flatten_sources("val", LaboratorySource(split="val", samples=60, size=32))
    done: list[tuple[int, int]] = []
    first = gather(read, 5, tell=lambda *so_far: done.append(so_far))
    assert first.leaves[0].samples == 5 and done == [(number, 5) for number in range(1, 6)]
    assert first.to_dict() == gather(read, 5).to_dict()
    assert first.leaves[0].records == 60


def test_a_mixture_is_counted_part_by_part(data_root: Path) -> None:
    sources: dict[str, Source | None] = {"one": RefCOCO(), "several": GRefCOCO(), "drawn": LaboratorySource(size=32)}
    mixture = Mixture(sources, weights=dict.fromkeys(sources, 1.0))
    lines = gather(flatten_sources("train", mixture), 3, ENCODER).to_text().splitlines()
    expected = [["one", "3", "3"], ["several", "3", "3"], ["drawn", "endless", "3"]]
    assert [line.split()[:3] for line in lines[1:]] == expected


def test_image_and_figures_are_written(tmp_path: Path) -> None:
    found = gather(flatten_sources("train", Squares()), 10, ENCODER)
    assert found.write(tmp_path / "a/stats.png") == [tmp_path / "a/stats.png", tmp_path / "a/stats.json"]
    with Image.open(tmp_path / "a/stats.png") as picture:
        assert min(picture.size) > 400 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert json.loads((tmp_path / "a/stats.json").read_text()) == found.to_dict()


def test_many_sources_are_nine_colours_and_the_others() -> None:
    named = gather(flatten_sources("train", Mixture({f"s{number}": Squares() for number in range(12)})), 10)
    parts = named._parts()
    assert len(parts) == 10 and parts[-1][0] == "3 others" and parts[-1][1]["masks"] == [0, 1, 2] * 3


def test_an_unknown_ending_is_told(tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"stats\.xyz: .*xyz"):
        gather(flatten_sources("train", Squares()), 10).draw(tmp_path / "stats.xyz")
