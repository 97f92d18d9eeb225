"""A folder of features: whole shards or none, resumed, refused where it is of something else, known when damaged."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import teacher_folders
import torch
from tiny_sail import picture

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.features import store
from sail_lightning.features.codec import Error, encode
from sail_lightning.features.store import FeatureStore, FeatureWriter, Settings, image_key

SETTINGS = Settings({"class_path": "Expert", "init_args": {"a": 1}}, 2, "vision", "int8", None, 8, 64, "longest")


def pictures(count: int) -> list[np.ndarray]:
    return [picture(16, 24, seed).transpose(2, 0, 1) for seed in range(count)]


def feature(number: int) -> torch.Tensor:
    return torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(number))


def add(writer: FeatureWriter, numbers: range) -> None:
    for number in numbers:
        key = image_key(pictures(number + 1)[number])
        writer.add(key, *encode(feature(number), writer.settings.stored_as), f"file {number}")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f", SETTINGS, shard_size=40) as writer:
        add(writer, range(7))
    stored = FeatureStore(tmp_path / "f")
    assert len(stored) == 7 and stored.settings == SETTINGS
    assert len(list((tmp_path / "f").glob("*.safetensors"))) > 2
    for number, pixels in enumerate(pictures(7)):
        entry = stored.read(image_key(pixels))
        assert entry is not None and image_key(pixels) in stored
        assert torch.equal(entry.decoded(), encode(feature(number), "int8")[0].decoded())
    assert stored.read(image_key(picture(8, 8).transpose(2, 0, 1))) is None


def test_an_image_is_known_by_its_size_and_pixels() -> None:
    pixels = picture(16, 24).transpose(2, 0, 1)
    other = pixels.copy()
    other[2, 7, 9] ^= 1
    keys = {image_key(pixels), image_key(other), image_key(pixels.reshape(3, 24, 16))}
    assert len(keys) == 3
    assert image_key(np.ascontiguousarray(pixels)) == image_key(pixels), "however it lies in memory"


def test_a_run_that_was_killed_leaves_whole_shards_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    real = store.save_file

    def killed_in_the_third(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata=metadata)
        if len(list(folder.glob("*.safetensors"))) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_file", killed_in_the_third)
    writer = FeatureWriter(folder, SETTINGS, shard_size=40)
    writer._lock.release()  # as the system does when the process is killed
    with pytest.raises(KeyboardInterrupt):
        add(writer, range(9))
    monkeypatch.setattr(store, "save_file", real)
    before = FeatureStore(folder)
    assert 0 < len(before) < 9
    with FeatureWriter(folder, SETTINGS, shard_size=40) as again:
        assert len(again.names) == len(again.keys) == len(before)
        add(again, range(len(before), 9))
    assert len(FeatureStore(folder)) == 9
    assert not list(folder.glob(".*")), "nothing half-written is left"


def test_a_damaged_shard_that_was_removed_costs_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with FeatureWriter(folder, SETTINGS, shard_size=1) as writer:
        add(writer, range(3))
    (folder / "features-00000.safetensors").unlink()
    with FeatureWriter(folder, SETTINGS, shard_size=1) as writer:
        assert len(writer.keys) == 2
        add(writer, range(1))
    assert len(FeatureStore(folder)) == 3


def test_a_shard_that_was_kept_under_another_name_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with FeatureWriter(folder, SETTINGS, shard_size=1) as writer:
        add(writer, range(2))
    (folder / "features-00000.safetensors").rename(folder / "features-00000-bad.safetensors")
    with FeatureWriter(folder, SETTINGS, shard_size=1) as writer:
        assert len(writer.keys) == 1
    assert len(FeatureStore(folder)) == 1


def test_a_writer_that_is_refused_holds_nothing(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f", SETTINGS) as writer:
        add(writer, range(1))
    with pytest.raises(SailUsageError) as caught:
        FeatureWriter(tmp_path / "f", replace(SETTINGS, stride=4))
    with FeatureWriter(tmp_path / "f", SETTINGS) as writer:
        assert caught.value and len(writer.keys) == 1


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f", SETTINGS) as writer:
        with pytest.raises(SailUsageError, match="another process writes features to .*; wait for it"):
            FeatureWriter(tmp_path / "f", SETTINGS)
        add(writer, range(2))
    with FeatureWriter(tmp_path / "f", SETTINGS) as writer:
        assert len(writer.keys) == 2


def test_a_fault_or_an_interrupt_loses_nothing_that_was_computed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), FeatureWriter(tmp_path / "f", SETTINGS) as writer:
        add(writer, range(3))
        raise ZeroDivisionError
    assert len(FeatureStore(tmp_path / "f")) == 3


def test_the_summary_adds_up_over_runs(tmp_path: Path) -> None:
    for numbers in (range(3), range(3, 5)):
        with FeatureWriter(tmp_path / "f", SETTINGS) as writer:
            add(writer, numbers)
    errors = [encode(feature(number), "int8")[1] for number in range(5)]
    whole = sum(errors, Error())
    content = json.loads((tmp_path / "f" / "features.json").read_text())
    size = sum(path.stat().st_size for path in (tmp_path / "f").glob("*.safetensors"))
    assert content["summary"] == {
        "images": 5,
        "bytes": size,
        "bytes_per_image": round(size / 5),
        "largest_error": pytest.approx(whole.largest),
        "relative_error": pytest.approx(whole.relative),
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stored_as": "float16"}, "dtype is int8, not float16"),
        ({"max_side": 128}, "max_side is 64, not 128"),
        ({"teacher": {"class_path": "Expert", "init_args": {"a": 2}}}, "other settings .teacher is "),
        ({"stride": 4}, "stride is None, not 4"),
    ],
)
def test_a_folder_of_other_features_is_not_added_to(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    FeatureWriter(tmp_path / "f", SETTINGS)
    with pytest.raises(SailUsageError, match=named):
        FeatureWriter(tmp_path / "f", replace(SETTINGS, **change))


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(SailUsageError, match=r"is not empty, and holds no features\.json; name another folder"):
        FeatureWriter(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(SailUsageError, match="cannot be made"):
        FeatureWriter(tmp_path / "letter.txt" / "f", SETTINGS)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"has no features\.json; write it with sail-lightning features --out"):
        FeatureStore(tmp_path)
    folder = teacher_folders.cache(tmp_path / "f", pictures(2))
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(SailError, match=r"features-00000\.safetensors is damaged; remove it"):
        FeatureStore(folder)
    (folder / "features.json").write_text("{}")
    with pytest.raises(SailError, match=r"features\.json is damaged"):
        FeatureStore(folder)


def test_other_processes_open_the_files_themselves(tmp_path: Path) -> None:
    stored = FeatureStore(teacher_folders.cache(tmp_path / "f", pictures(2)))
    message = pickle.dumps(stored)
    assert len(message) < 500
    key = image_key(pictures(1)[0])
    one, other = pickle.loads(message).read(key), stored.read(key)
    assert one is not None and other is not None and torch.equal(one.values, other.values)
