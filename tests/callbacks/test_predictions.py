"""`PredictionWriter`: what lies in predictions.jsonl and overlays/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
from callback_harness import tiny_data, tiny_model
from PIL import Image
from pycocotools import mask as coco

from sail_lightning.callbacks import PredictionWriter
from sail_lightning.callbacks.predictions import to_record
from sail_lightning.generation.prediction import Prediction
from sail_lightning.sample import Box, Mask, Point, Sample, Scribble

MakeTrainer = Callable[..., L.Trainer]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, two of which have the same file name."""
    for name in ("photos/a/cat.png", "photos/b/cat.png", "photos/b/Dog.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (40, 56, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def read(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prediction(**changes: Any) -> Prediction:
    mask = np.zeros((1, 8, 12), bool)
    mask[0, 2:5, 3:7] = True
    defaults = {"text": "It is [SEG]", "masks": mask, "image": np.zeros((8, 12, 3), np.uint8), "source": "x/cat.png"}
    return Prediction(**(defaults | changes))


class Ranks:
    """As much of a Trainer as the writer asks of it, for one of several ranks."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.log_dir = self.default_root_dir = str(folder)
        self.global_rank, self.world_size, self.is_global_zero = rank, world_size, rank == 0
        self.strategy = SimpleNamespace(barrier=lambda name: None)


def write(writer: PredictionWriter, trainer: Any, *predictions: Prediction) -> None:
    batch: Any = [SimpleNamespace(sample=Sample(None, (), id="")) for _ in predictions]
    writer.on_predict_batch_end(trainer, Any, predictions, batch, 0)


def test_predict_writes_one_line_an_image_and_one_overlay_each(trainer: MakeTrainer, photos: Path) -> None:
    writer = PredictionWriter()
    data = tiny_data(images=str(photos), text="Please segment the red circle.", prompts=["box:1,2,20,30"])
    runner = trainer(writer)
    runner.predict(tiny_model(), datamodule=data, return_predictions=False)
    records = read(writer.path)
    assert writer.path == Path(runner.default_root_dir) / "predictions.jsonl"
    assert sorted(record["source"] for record in records) == sorted(str(path) for path in photos.rglob("*.png"))
    assert all(record["question"] == "Please segment the red circle." for record in records)
    assert all(record["size"] == [40, 56] and record["seconds"] > 0 for record in records)
    assert all(record["prompts"] == [{"id": 0, "box": [1.0, 2.0, 20.0, 30.0]}] for record in records)
    overlays = [record["overlay"] for record in records]
    assert sorted(overlays) == ["overlays/Dog.png", "overlays/cat-2.png", "overlays/cat.png"]
    assert all(Image.open(writer.path.parent / overlay).width >= 56 for overlay in overlays)


def test_a_new_run_starts_a_new_file_in_the_named_folder(trainer: MakeTrainer, photos: Path, tmp_path: Path) -> None:
    model, writer = tiny_model(), PredictionWriter(str(tmp_path / "out"), overlays=False)
    for folder in ("a", "b"):
        data = tiny_data(images=str(photos / folder), text="What is this?")
        trainer(writer).predict(model, datamodule=data, return_predictions=False)
    assert [Path(record["source"]).parent.name for record in read(tmp_path / "out/predictions.jsonl")] == ["b", "b"]
    assert not (tmp_path / "out/overlays").exists()


def test_masks_come_back_from_their_record() -> None:
    answer = prediction()
    record = json.loads(json.dumps(to_record(answer, "7")))
    assert record["id"] == "7" and record["size"] == [8, 12]
    (mask,) = record["masks"]
    np.testing.assert_array_equal(coco.decode(mask["segmentation"]), answer.masks[0])
    assert (mask["area"], mask["bbox"], mask["phrase"]) == (12, [3, 2, 4, 3], "")


def test_prompts_are_written_in_pixels_by_their_kind() -> None:
    drawn = np.eye(8, 12, dtype=bool)
    prompts = (Point(3, 4), Scribble(((1, 2), (3, 4)), id=5), Mask("region.png"), Mask(drawn), Box(0, 1, 2, 3))
    records = json.loads(json.dumps(to_record(prediction(prompts=prompts))))["prompts"]
    assert [record["id"] for record in records] == [0, 5, 2, 3, 4]
    assert records[0]["point"] == [3, 4] and records[1]["scribble"] == [[1, 2], [3, 4]]
    assert records[2]["mask"] == "region.png" and records[4]["box"] == [0, 1, 2, 3]
    np.testing.assert_array_equal(coco.decode(records[3]["mask"]), drawn)


def test_a_text_answer_has_no_size_and_no_overlay(tmp_path: Path) -> None:
    writer, trainer = PredictionWriter(), Ranks(tmp_path, 0, 1)
    writer.on_predict_start(trainer, Any)
    write(writer, trainer, prediction(text="Hello", masks=np.zeros((0, 0, 0), bool), image=None))
    (record,) = read(writer.path)
    assert record["size"] is None and record["overlay"] is None and record["masks"] == []


def test_what_was_answered_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    writer, trainer = PredictionWriter(overlays=False), Ranks(tmp_path, 0, 1)
    writer.on_predict_start(trainer, Any)
    write(writer, trainer, prediction(), prediction())
    assert len(read(writer.path)) == 2


def test_the_files_of_several_ranks_become_one_in_the_order_of_the_images(tmp_path: Path) -> None:
    (tmp_path / "predictions-rank7.jsonl").write_text("of an earlier run\n")
    ranks = [(PredictionWriter(), Ranks(tmp_path, rank, 2)) for rank in (0, 1)]
    for writer, trainer in ranks:
        writer.on_predict_start(trainer, Any)
    for name, (writer, trainer) in zip("abc", (*ranks, ranks[0]), strict=True):
        write(writer, trainer, prediction(source=f"{name}/cat.png"))
    for writer, trainer in reversed(ranks):
        writer.on_predict_end(trainer, Any)
    records = read(tmp_path / "predictions.jsonl")
    assert [record["source"] for record in records] == ["a/cat.png", "b/cat.png", "c/cat.png"]
    assert len({record["overlay"] for record in records}) == 3
    assert all((tmp_path / record["overlay"]).is_file() for record in records)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["predictions.jsonl"]


@pytest.mark.parametrize("source", ["laboratory val/12.5", "../../x", "", "a b?.jpg", "Grüße.png"])
def test_any_source_gives_a_file_name_inside_the_folder(source: str, tmp_path: Path) -> None:
    writer, trainer = PredictionWriter(), Ranks(tmp_path, 0, 1)
    writer.on_predict_start(trainer, Any)
    write(writer, trainer, prediction(source=source))
    assert len(list((tmp_path / "overlays").iterdir())) == 1


def test_answers_and_names_of_any_characters_are_one_line_each(tmp_path: Path) -> None:
    ranks = [(PredictionWriter(overlays=False), Ranks(tmp_path, rank, 2)) for rank in (0, 1)]
    for writer, trainer in ranks:
        writer.on_predict_start(trainer, Any)
        write(writer, trainer, prediction(text="one\u2028two\x85three", source="caf\udce9.jpg"))
    for writer, trainer in reversed(ranks):
        writer.on_predict_end(trainer, Any)
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    assert [(one["text"], one["source"]) for one in records] == [("one\u2028two\x85three", "caf\udce9.jpg")] * 2
