"""`EvaluationWriter`: what a line of per_sample.jsonl says. Whole tests: `tests/cli/test_evaluation.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
from callback_harness import tiny_model
from torch.utils.data import DataLoader

from sail_lightning.callbacks import EvaluationWriter
from sail_lightning.callbacks.evaluation import to_line
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.encoding.batch import OpaqueBatch
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import EvalRecord, score
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import Box, Sample, Turn

MakeTrainer = Callable[..., L.Trainer]
LEFT, RIGHT, NONE = np.zeros((3, 4, 6), bool)
LEFT[:, :3], RIGHT[:, 3:] = True, True


def written(
    turn: Turn, text: str = "it is [SEG].", masks: Any = (LEFT,), benchmark: Any = None, **more: Any
) -> dict[str, Any]:
    """The line of one answer, as it is read again."""
    sample = Sample(**({"image": "photos/a.jpg", "turns": (turn,), "masks": (LEFT, RIGHT, NONE), "id": "7"} | more))
    picture = np.zeros((4, 6, 3), np.uint8)
    answer = Prediction(text, np.array(masks).reshape(-1, 4, 6), picture, turn.question, sample.prompts)
    item: Any = SimpleNamespace(sample=sample, image_size=(4, 6))
    line: dict[str, Any] = json.loads(json.dumps(to_line(12, benchmark, item, answer)))
    assert EvalRecord.from_json(line).extra["number"] == 12
    return line


def iou(line: dict[str, Any]) -> float:
    return float(next(iter(score([EvalRecord.from_json(line)], bootstrap=0).values())).per_sample[0]["iou"])


def test_a_referring_answer_holds_its_masks_and_their_truth() -> None:
    line = written(Turn("segment the left one.", "It is [SEG].", "refer", (0,)))
    assert (line["id"], line["benchmark"], line["task"], line["size"]) == ("7", "refer", "refer", [4, 6])
    assert line["question"] == "segment the left one." and line["image"] == "photos/a.jpg"
    assert (load_mask(line["pred"][0]) == LEFT).all() and line["pred"] == line["target"]
    assert line["ignore"] is None and iou(line) == 1


def test_an_empty_truth_says_that_nothing_is_meant() -> None:
    assert written(Turn("q", "No target [SEG].", "refer", (2,)))["target"] == []
    assert written(Turn("q", "no target.", "refer"))["target"] == []


def test_every_true_mask_of_a_visual_text_question_is_kept_in_order() -> None:
    line = written(Turn("q", "[SEG] and [SEG]", "vres", (1, 2)), benchmark="perbench_vres")
    assert [int(load_mask(mask).sum()) for mask in line["target"]] == [12, 0]


def test_e16_what_is_to_be_ignored_is_a_mask_of_its_own() -> None:
    turn = Turn("q", "It is [SEG].", "refer", (0,))
    line = written(turn, masks=(LEFT | RIGHT,), meta={"ignore": [RIGHT, None, None]}, benchmark="reasonseg_val")
    assert (load_mask(line["ignore"]) == RIGHT).all() and iou(line) == 1
    assert written(turn, meta={"ignore": [None, RIGHT, None]})["ignore"] is None


def test_words_are_kept_beside_their_truth() -> None:
    choice = written(Turn("which?", "red.", "choice", choices=("red", "blue")), "blue.", ())
    assert (choice["choices"], choice["answer"], choice["text"]) == (["red", "blue"], "red.", "blue.")
    result = written(Turn("describe", "a red dot", "describe"), "a blue dot", (), benchmark="region_caption")
    assert result["reference"] == "a red dot" and "pred" not in result and result["benchmark"] == "region_caption"


def test_a_caption_keeps_the_phrases_of_both_sides() -> None:
    turn = Turn("describe", "<p> a dog </p> [SEG] and <p> a cat </p> [SEG].", "caption", (0, 1))
    line = written(turn, "<p> a cow </p> [SEG]", (LEFT,), meta={"caption": "a dog and a cat."})
    assert line["benchmark"] == "gcg" and line["reference"] == "a dog and a cat."
    assert (line["phrases"], line["reference_phrases"]) == (["a cow"], ["a dog", "a cat"])
    assert len(line["pred"]) == 1 and len(line["target"]) == 2


def test_prompts_are_kept_as_predictions_hold_them() -> None:
    line = written(Turn("segment <Prompt3>.", "[SEG]", "vres", (0,)), prompts=(Box(1, 0, 3, 2, id=3),))
    assert line["prompts"] == [{"id": 3, "box": [1, 0, 3, 2]}]


def test_a_record_without_an_id_is_called_by_its_number() -> None:
    assert written(Turn("q", "[SEG]", "refer", (0,)), id="")["id"] == "12"


def test_a_benchmark_may_be_named_for_each_task() -> None:
    names = {"refer": "mine_val"}
    assert written(Turn("q", "[SEG]", "refer", (0,)), benchmark=names)["benchmark"] == "mine_val"
    assert written(Turn("q", "[SEG]", "vres", (0,)), benchmark=names)["benchmark"] == "vres"


def test_a_question_that_nothing_can_judge_does_not_end_the_test() -> None:
    line = written(Turn("what do you see?", task="chat"), "a dog.", ())
    assert line["text"] == "a dog." and iou(line) == 1


@pytest.mark.parametrize("setting", [{"bootstrap": -1}, {"gallery": -1}])
def test_negative_numbers_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(SailUsageError, match="0 or more"):
        EvaluationWriter(**setting)


def test_a_second_test_of_one_writer_starts_anew(trainer: MakeTrainer, tmp_path: Path) -> None:
    model, counts, writer = tiny_model(), [], EvaluationWriter(bootstrap=0, gallery=0)
    for samples in (5, 3):
        writer.out = str(tmp_path / str(samples))
        source = LaboratorySource("test", samples=samples, tasks={"refer": 1.0})
        trainer(writer).test(model, datamodule=SailDataModule(test=source, eval_batch_size=2), verbose=False)
        assert writer.folder is not None
        counts.append(len((writer.folder / "per_sample.jsonl").read_text().splitlines()))
    assert counts == [5, 3]


def test_other_loaders_than_ours_are_left_alone(trainer: MakeTrainer, tmp_path: Path) -> None:
    model, writer = tiny_model(), EvaluationWriter(out=str(tmp_path / "out"))
    encoder, source = model.encoder, LaboratorySource("test", samples=2, tasks={"refer": 1.0})
    batch = [encoder.encode(source[index], answers=False) for index in range(2)]
    model.on_before_batch_transfer = lambda sealed, index: sealed.content  # type: ignore[method-assign,attr-defined]
    loader: Any = DataLoader([batch], batch_size=None, collate_fn=OpaqueBatch)
    trainer(writer).test(model, loader, verbose=False)
    assert writer.folder is None and not (tmp_path / "out").exists()


def test_another_test_of_the_same_data_asks_everything(trainer: MakeTrainer, tmp_path: Path) -> None:
    model, writer = tiny_model(), EvaluationWriter(out=str(tmp_path), bootstrap=0, gallery=0)
    data = SailDataModule(test=LaboratorySource("test", samples=5, tasks={"refer": 1.0}), eval_batch_size=2)
    trainer(writer).test(model, datamodule=data, verbose=False)
    trainer().test(model, datamodule=data, verbose=False)
    assert sorted(number for batch in data.batch_indices for number in batch) == list(range(5))


def test_a_test_that_broke_off_lets_its_data_go(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Breaks(L.Callback):
        def on_test_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    model, writer = tiny_model(), EvaluationWriter(out=str(tmp_path), bootstrap=0, gallery=0)
    data = SailDataModule(test=LaboratorySource("test", samples=5, tasks={"refer": 1.0}), eval_batch_size=2)
    with pytest.raises(ZeroDivisionError):
        trainer(writer, Breaks()).test(model, datamodule=data, verbose=False)
    assert any(metric._update_count for metric in model.judge.logged.values())
    figures = trainer().test(model, datamodule=data, verbose=False)[0]
    assert sorted(number for batch in data.batch_indices for number in batch) == list(range(5))
    assert figures == trainer().test(model, datamodule=data, verbose=False)[0], "the first batch is not counted twice"


def test_a_mask_of_another_size_than_its_image_is_named(trainer: MakeTrainer) -> None:
    class Wrong(LaboratorySource):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index), masks=(np.ones((3, 5), bool),) * 9, source="mine", id=str(index))

    data = SailDataModule(val=Wrong("val", samples=2, tasks={"refer": 1.0}), eval_batch_size=2)
    with pytest.raises(SailError, match=r"^mine 0: a mask of \(3, 5\) pixels \(height, width\), but the image has"):
        trainer(limit_val_batches=1).validate(tiny_model(), datamodule=data, verbose=False)


def test_questions_that_are_fewer_than_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SailDataModule(val=LaboratorySource("val", samples=3))
    data.trainer = SimpleNamespace(global_rank=0, world_size=4)  # type: ignore[assignment]
    with pytest.raises(SailUsageError, match="3 questions are too few for 4 processes"):
        data.val_dataloader()
