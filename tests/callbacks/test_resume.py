"""Exact resume: a run that was stopped sees the batches that an uninterrupted one would have seen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from callback_harness import tiny_data, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from sail_lightning.data.sources import LaboratorySource
from sail_lightning.data.stream import PackedStream, Progress, Windows

MakeTrainer = Callable[..., L.Trainer]
MODEL = tiny_model()


class Seen(L.Callback):
    """Ids, and the window's counts, of each batch that was trained on."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, _: int):
        self.batches.append((*(sample.id for sample in batch.samples), batch.window))


def fit(trainer: MakeTrainer, steps: int, resume: Path | None = None, **settings: Any) -> tuple[list[Any], Any, Any]:
    seen = Seen()
    data = {key: settings.pop(key) for key in ("train", "num_workers") if key in settings}
    module, runner = tiny_data(), trainer(seen, *settings.pop("callbacks", ()), max_steps=steps, **settings)
    module.num_workers = data.get("num_workers", 0)
    module.train = data.get("train", module.train)
    model = tiny_model()
    runner.fit(model, datamodule=module, ckpt_path=resume)
    return seen.batches, model.state_dict(), runner


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_steps_and_three_more_equal_six(
    workers: int, accumulate: int, trainer: MakeTrainer, tmp_path: Path
) -> None:
    common = {"num_workers": workers, "accumulate_grad_batches": accumulate}
    whole, weights, _ = fit(trainer, 6, **common)
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    first, _, _ = fit(trainer, 3, callbacks=[saver], **common)
    second, resumed, _ = fit(trainer, 6, resume=tmp_path / "last.ckpt", **common)
    assert len(whole) == 6 * accumulate and len({batch[:-1] for batch in whole}) == len(whole)
    assert first + second == whole
    for name, value in weights.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)


def test_a_checkpoint_written_within_a_window_drops_no_batch_and_keeps_windows_with_their_steps(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_progress.current.processed == 3:  # one of the second window's two
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole, _, _ = fit(trainer, 3, accumulate_grad_batches=2, callbacks=[Save()])
    resumed, _, runner = fit(trainer, 3, resume=tmp_path / "middle.ckpt", accumulate_grad_batches=2)
    assert [batch[:-1] for batch in resumed] == [batch[:-1] for batch in whole[3:]]
    assert [batch[-1] for batch in resumed[1:]] == [batch[-1] for batch in whole[4:]]
    assert runner.global_step == 3


def test_a_step_that_failed_is_read_again(trainer: MakeTrainer, tmp_path: Path) -> None:
    class Fail(L.Callback):
        def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise KeyError("power")

        def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "failed.ckpt")

    whole, _, _ = fit(trainer, 4)
    with pytest.raises(KeyError, match="power"):
        fit(trainer, 4, callbacks=[Fail()])
    resumed, _, _ = fit(trainer, 4, resume=tmp_path / "failed.ckpt")
    assert resumed == whole[2:]


def test_an_epoch_of_limited_length_goes_on_where_the_last_one_ended(trainer: MakeTrainer) -> None:
    whole, _, _ = fit(trainer, 6)
    parts, _, _ = fit(trainer, 6, limit_train_batches=2)
    assert parts == whole


def test_a_new_fit_with_the_same_data_begins_at_the_beginning(trainer: MakeTrainer) -> None:
    data, runs = tiny_data(), []
    for _ in range(2):
        seen = Seen()
        trainer(seen, max_steps=2).fit(tiny_model(), datamodule=data)
        runs.append(seen.batches)
    assert runs[0] == runs[1]


def test_other_numbers_of_workers_go_on_at_about_the_same_sample(
    trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    first, _, _ = fit(trainer, 4, callbacks=[saver], num_workers=0)
    second, _, _ = fit(trainer, 6, resume=tmp_path / "last.ckpt", num_workers=2)
    assert "resumed with 2 readers instead of 1" in caplog.text
    seen = {name for batch in first for name in batch[:-1]}
    # Readers stand at equal places: at most one sample for each is read twice.
    assert len(seen & {name for batch in second for name in batch[:-1]}) <= 2


def ids(batches: Any) -> list[tuple[str, ...]]:
    return [tuple(sample.id for sample in batch.samples) for batch in batches]


@settings(max_examples=15)
@given(samples=st.sampled_from([None, 5, 11]), done=st.integers(0, 7), ranks=st.integers(1, 3), data=st.data())
def test_a_stream_begins_at_its_progress(samples: int | None, done: int, ranks: int, data: Any) -> None:
    rank = data.draw(st.integers(0, ranks - 1))
    source = LaboratorySource(samples=samples, questions=1)
    stream = PackedStream(source, MODEL.encoder, 300, seed=1, rank=rank, world_size=ranks)
    batches = list(islice(stream, done + 2))
    for batch in batches[:done]:
        stream.progress = stream.progress.advanced(batch, workers=1)
    assert ids(islice(stream, 2)) == ids(batches[done:])


def test_a_finite_source_is_read_whole_in_each_pass_in_a_new_order() -> None:
    stream = PackedStream(LaboratorySource(samples=7), MODEL.encoder, 300, seed=3)
    order = list(islice(stream._order(0, 1), 21))
    passes = [order[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_shards_share_the_stream_out() -> None:
    stream = PackedStream(LaboratorySource(samples=7), MODEL.encoder, 300, seed=3)
    whole = list(islice(stream._order(0, 1), 30))
    for shard in range(3):
        assert list(islice(stream._order(shard, 3), 10)) == whole[shard::3]


def test_workers_take_turns_from_the_one_that_is_next() -> None:
    batches = list(islice(PackedStream(LaboratorySource(questions=1), MODEL.encoder, 300, rank=1, world_size=2), 1))
    progress = Progress({3: 8}, 1).advanced(batches[0], workers=2)
    shard, place = batches[0].cursor
    assert (shard, place) == (1, len(batches[0].samples))
    assert progress == Progress({3: 8, 1: place}, 0)


def test_a_window_begun_before_is_finished_first() -> None:
    batches = list(islice(PackedStream(LaboratorySource(questions=1), MODEL.encoder, 300), 5))
    windows = Windows(batches, 3, begun=2)
    assert [batch.window for batch in windows] == [
        batches[0].counts,
        *[batches[1].counts + batches[2].counts + batches[3].counts] * 3,
        batches[4].counts,
    ]
    assert next(iter(windows)).window == batches[0].counts + batches[1].counts + batches[2].counts
