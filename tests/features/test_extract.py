"""`extract`: each image once, as the student sees it, in any number of processes, resumed where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_sail import picture
from torch import Tensor

from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.transform import Encoder
from sail_lightning.features.extract import Extraction, extract, settings_for
from sail_lightning.features.images import locate_images
from sail_lightning.features.store import FeatureStore, FeatureWriter, image_key
from sail_lightning.image.preprocessing import resize_image
from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.sample import ImageRef, Sample, Turn
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory", 4), patch_size=8, max_side=48)


class Album(Source):
    """Given images, one or several a record."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], (Turn("what is it?", "a picture."),), source="album", id=str(index))

    @property
    def length(self) -> int:
        return len(self.images)


class Averages(Teacher):
    """Averages pixels of 4 x 4; counts the images, and stops like a killed process after `stop` of them."""

    stop: int | None = None

    def build(self, dims: Dims) -> Dims:
        self.channels, self.count = 3, 0
        return dims

    def forward(self, images: Tensor) -> Tensor:
        self.count += len(images)
        if self.stop is not None and self.count > self.stop:
            raise KeyboardInterrupt
        return F.avg_pool2d(images.float() / 255, 4)


@pytest.fixture
def album(tmp_path: Path) -> Album:
    """Five files of two sizes, some of them in several records; an array twice; a pair; words alone."""
    files: list[ImageRef] = []
    for number, (height, width) in enumerate([(40, 24), (40, 24), (24, 40), (100, 60), (40, 24)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture(height, width, number)).save(path)
        files.append(path)
    array = picture(16, 16)
    images = [files[0], files[1], files[0], None, array, (files[2], files[3]), array.copy(), str(files[4]), files[3]]
    return Album(images)


def run(album: Source, folder: Path, teacher: Averages | None = None, **settings: Any) -> tuple[Averages, Extraction]:
    teacher = teacher or Averages()
    teacher.build(Dims())
    stored_as, stride = settings.pop("stored_as", "float16"), settings.pop("stride", None)
    wanted, _ = locate_images(album, album.length or 0, "album", lambda *_: None)
    with FeatureWriter(folder, settings_for(teacher, ENCODER, stored_as, stride), shard_size=300) as writer:
        return teacher, extract(album, ENCODER, teacher, writer, wanted, batch_size=2, **settings)


def as_seen(image: ImageRef) -> np.ndarray:
    array = image if isinstance(image, np.ndarray) else np.asarray(Image.open(image))  # type: ignore[arg-type]
    return resize_image(array, 8, 48).transpose(2, 0, 1)


def test_e47_each_image_is_looked_at_once_as_the_student_sees_it(album: Album, tmp_path: Path) -> None:
    teacher, done = run(album, tmp_path / "f")
    assert teacher.count == done.computed == 6
    stored = FeatureStore(tmp_path / "f")
    assert len(stored) == 6
    flat = [
        one for image in album.images if image is not None for one in (image if isinstance(image, tuple) else [image])
    ]
    for pixels in map(as_seen, flat):
        entry = stored.read(image_key(pixels))
        assert entry is not None
        expected = F.avg_pool2d(torch.from_numpy(pixels.copy())[None].float() / 255, 4)[0]
        torch.testing.assert_close(entry.decoded(), expected, atol=1e-3, rtol=0)


def test_processes_that_read_change_nothing(album: Album, tmp_path: Path) -> None:
    run(album, tmp_path / "alone")
    run(album, tmp_path / "two", workers=2)
    alone, two = FeatureStore(tmp_path / "alone"), FeatureStore(tmp_path / "two")
    assert alone._where.keys() == two._where.keys()
    for key in alone._where:
        one, other = alone.read(key), two.read(key)
        assert one is not None and other is not None and torch.equal(one.values, other.values)


def test_a_run_that_was_stopped_goes_on_where_it_was(album: Album, tmp_path: Path) -> None:
    first = Averages()
    first.stop = 2
    with pytest.raises(KeyboardInterrupt):
        run(album, tmp_path / "f", first)
    kept = len(FeatureStore(tmp_path / "f"))
    assert kept == 2
    again, done = run(album, tmp_path / "f", Averages())
    assert (again.count, done.computed) == (4, 4)
    third, done = run(album, tmp_path / "f", Averages())
    assert (third.count, done.computed, done.known) == (0, 0, 7)
    run(album, tmp_path / "whole")
    assert FeatureStore(tmp_path / "f")._where.keys() == FeatureStore(tmp_path / "whole")._where.keys()


def test_files_that_are_done_are_not_read_again(album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(album, tmp_path / "f")

    def refuse(image: ImageRef) -> np.ndarray:
        raise AssertionError(f"{image} was read again")

    monkeypatch.setattr("sail_lightning.features.images.load_image", refuse)
    run(album, tmp_path / "f")


def test_broken_images_are_told_and_left_out(album: Album, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("no picture")
    album.images[1:1] = [tmp_path / "missing.png", tmp_path / "broken.jpg"]
    _, done = run(album, tmp_path / "f")
    assert done.computed == 6
    assert [fault.split("/")[-1].split()[0] for fault in done.faults] == ["missing.png", "broken.jpg"]


def test_features_at_the_students_stride_give_the_same_loss_in_less_room(album: Album, tmp_path: Path) -> None:
    run(album, tmp_path / "own")
    run(album, tmp_path / "strided", stride=8)
    own, strided = FeatureStore(tmp_path / "own"), FeatureStore(tmp_path / "strided")
    for key in own._where:
        full, small = own.read(key), strided.read(key)
        assert full is not None and small is not None
        grid = small.values.shape[1:]
        assert [2 * side for side in grid] == list(full.values.shape[1:])
        once = F.interpolate(full.decoded()[None], grid, mode="bilinear", align_corners=False)
        twice = F.interpolate(small.decoded()[None], grid, mode="bilinear", align_corners=False)
        torch.testing.assert_close(twice, once, atol=1e-3, rtol=0)


def test_a_stride_finer_than_the_teachers_changes_nothing(album: Album, tmp_path: Path) -> None:
    run(album, tmp_path / "own")
    run(album, tmp_path / "strided", stride=2)
    own, strided = FeatureStore(tmp_path / "own"), FeatureStore(tmp_path / "strided")
    for key in own._where:
        one, other = own.read(key), strided.read(key)
        assert one is not None and other is not None and torch.equal(one.values, other.values)


def test_what_is_told_reaches_the_number_of_all(album: Album, tmp_path: Path) -> None:
    result: list[tuple[int, int]] = []
    run(album, tmp_path / "f", tell=lambda done, total: result.append((done, total)))
    assert result[-1] == (7, 7)
    assert [done for done, _ in result] == sorted(done for done, _ in result)
    result.clear()
    run(album, tmp_path / "f", tell=lambda done, total: result.append((done, total)))
    assert result == [(7, 7)]


def test_when_and_how_much_a_teacher_teaches_does_not_change_its_features() -> None:
    from sail_lightning.plugins.teachers import SAM2Teacher

    one = settings_for(SAM2Teacher("x", weight=0.5, every_n_steps=4, tasks=["refer"]), ENCODER, "int8", None)
    assert one == settings_for(SAM2Teacher("x"), ENCODER, "int8", None)
    assert one != settings_for(SAM2Teacher("x", dtype="bfloat16"), ENCODER, "int8", None)
