"""Exact resume: a run that was stopped sees the batches that an uninterrupted one would have seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from sail_lightning.data.stream import AccumulationWindows, PackedStream, StreamState
from sail_lightning.encoding.batch import ShardCursor
from sail_lightning.sample import Turn

MakeTrainer = Callable[..., L.Trainer]
MODEL = tiny_model()


class Seen(L.Callback):
    """Ids, and the window's counts, of each batch that was trained on."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, _: int):
        self.batches.append((*(sample.id for sample in batch.samples), batch.accumulation_counts))


def fit(trainer: MakeTrainer, steps: int, resume: Path | None = None, **settings: Any) -> tuple[list[Any], Any, Any]:
    seen = Seen()
    data = {key: settings.pop(key) for key in ("train", "num_workers", "packing_buffer_size") if key in settings}
    module, runner = tiny_data(), trainer(seen, *settings.pop("callbacks", ()), max_steps=steps, **settings)
    module.num_workers = data.get("num_workers", 0)
    module.train = data.get("train", module.train)
    module.packing_buffer_size = data.get("packing_buffer_size", module.packing_buffer_size)
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


def samples_of(batches: list[Any]) -> list[str]:
    return [name for batch in batches for name in batch[:-1]]


def test_other_numbers_of_workers_go_on_with_the_same_samples(
    trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    first, _, _ = fit(trainer, 4, callbacks=[saver], num_workers=0)
    second, _, _ = fit(trainer, 6, resume=tmp_path / "last.ckpt", num_workers=2)
    assert "resumed with 2 readers instead of 1" in caplog.text
    assert not set(samples_of(first)) & set(samples_of(second)), "no sample is read twice"


def test_a_checkpoint_of_two_processes_holds_the_places_of_both(trainer: MakeTrainer, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    fit(trainer, 3, callbacks=[saver], strategy="ddp_fork", devices=2, accelerator="cpu")
    state = torch.load(tmp_path / "last.ckpt")["SailDataModule"]
    assert state["shards"] == 2
    source = tiny_data().train
    for rank in range(2):
        stream = PackedStream(source, MODEL.encoder, 300, 0, rank, 2, packing_buffer_size=32)
        *_, last = islice(stream, 3)
        assert state["places"][rank] == (last.cursor[1].next, list(last.cursor[1].waiting))
    resumed, _, _ = fit(trainer, 5, resume=tmp_path / "last.ckpt")
    waiting = {rank + 2 * number for rank, (_, left) in state["places"].items() for number in left}
    assert waiting and {source[number].id for number in waiting} & set(samples_of(resumed))


def test_a_checkpoint_from_before_samples_could_wait_goes_on_in_order(trainer: MakeTrainer, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    in_order = {"packing_buffer_size": 1}
    whole, _, _ = fit(trainer, 6, **in_order)
    fit(trainer, 3, callbacks=[saver], **in_order)
    stored = torch.load(tmp_path / "last.ckpt")
    state = stored["SailDataModule"]
    assert state["places"] == {0: (len(samples_of(whole[:3])), [])}
    state["places"] = {0: state["places"][0][0]}
    torch.save(stored, tmp_path / "old.ckpt")
    resumed, _, _ = fit(trainer, 6, resume=tmp_path / "old.ckpt", **in_order)
    assert resumed == whole[3:]


def ids(batches: Any) -> list[tuple[str, ...]]:
    return [tuple(sample.id for sample in batch.samples) for batch in batches]


@settings(max_examples=15)
@given(
    samples=st.sampled_from([None, 5, 11]),
    done=st.integers(0, 7),
    ranks=st.integers(1, 3),
    packing_buffer_size=st.sampled_from([1, 2, 6]),
    data=st.data(),
)
def test_a_stream_begins_at_its_state(
    samples: int | None, done: int, ranks: int, packing_buffer_size: int, data: Any
) -> None:
    rank = data.draw(st.integers(0, ranks - 1))
    source = LaboratorySource(samples=samples, questions=1)
    stream = PackedStream(source, MODEL.encoder, 300, 1, rank, ranks, packing_buffer_size)
    batches = list(islice(stream, done + 2))
    for batch in batches[:done]:
        stream.state = stream.state.advanced(batch, workers=1)
    resumed = list(islice(stream, 2))
    assert ids(resumed) == ids(batches[done:])
    assert [batch.cursor for batch in resumed] == [batch.cursor for batch in batches[done:]]


def test_a_finite_source_is_read_whole_in_each_pass_in_a_new_order() -> None:
    stream = PackedStream(LaboratorySource(samples=7), MODEL.encoder, 300, seed=3)
    order = [stream._index(number) for number in range(21)]
    passes = [order[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_source_without_an_end_is_read_in_its_own_order() -> None:
    stream = PackedStream(LaboratorySource(), MODEL.encoder, 300, seed=3)
    assert [stream._index(number) for number in (0, 5, 10**9)] == [0, 5, 10**9]


@pytest.mark.parametrize("packing_buffer_size", [1, 4])
def test_shards_share_the_stream_out(packing_buffer_size: int) -> None:
    source, shards = LaboratorySource(samples=7, questions=1), 3
    read: list[str] = []
    for shard in range(shards):
        stream = PackedStream(source, MODEL.encoder, 300, 3, shard, shards, packing_buffer_size)
        wanted = [source[stream._index(shard + number * shards)].id for number in range(60)]
        state, batch_ids = StreamState(), []
        for batch in islice(stream, 6):
            state = state.advanced(batch, 1)
            batch_ids += [sample.id for sample in batch.samples]
        place = state.cursors[shard]
        taken = [wanted[number] for number in range(place.next) if number not in place.waiting]
        assert sorted(batch_ids) == sorted(taken), "all but those that wait"
        read += batch_ids
    assert set(read) <= {sample.id for sample in (source[index] for index in range(7))}


def test_workers_take_turns_from_the_one_that_is_next() -> None:
    batches = list(islice(PackedStream(LaboratorySource(questions=1), MODEL.encoder, 300, rank=1, world_size=2), 1))
    state = StreamState({3: ShardCursor(8)}, 1).advanced(batches[0], workers=2)
    assert batches[0].cursor == (1, ShardCursor(len(batches[0].samples)))
    assert state == StreamState({3: ShardCursor(8), 1: batches[0].cursor[1]}, 0)


numbers = st.integers(0, 30)
places = st.lists(numbers, max_size=20, unique=True).map(lambda taken: ShardCursor().after(taken))


@given(st.lists(st.lists(numbers, min_size=1, max_size=5, unique=True), max_size=6))
def test_a_place_knows_every_sample_that_was_read_and_every_one_that_waits(groups: list[list[int]]) -> None:
    place, read = ShardCursor(), set[int]()
    for group in groups:
        group = [number for number in group if number not in read]
        place = place.after(group)
        read |= set(group)
        assert place.read == len(read)
        assert place.waiting == tuple(sorted(place.waiting))
        assert {number for number in range(place.next) if number not in place.waiting} == read


@given(places=st.lists(places, min_size=1, max_size=4), now=st.integers(1, 5))
def test_what_is_left_is_dealt_out_anew_to_another_number_of_readers(places: list[ShardCursor], now: int) -> None:
    before, horizon = len(places), 400

    def left(state: StreamState, shards: int) -> list[int]:
        found = []
        for shard in range(shards):
            place = state.cursors.get(shard, ShardCursor())
            own = [*place.waiting, *range(place.next, horizon)]
            found += [shard + number * shards for number in own]
        return sorted(number for number in found if number < horizon)

    old = StreamState({shard: place for shard, place in enumerate(places) if place != ShardCursor()}, turn=0)
    assert left(old.reshard(before, now), now) == left(old, before)


def test_each_rank_adds_the_places_of_its_own_shards() -> None:
    resumed = {0: ShardCursor(4, (1,)), 1: ShardCursor(4)}
    ranks = [
        resumed | {0: ShardCursor(4)},
        resumed | {1: ShardCursor(9, (2, 7))},
    ]  # a waiting sample read, and some more
    for places in ranks:
        assert StreamState(places, 1).merged(ranks) == StreamState({0: ShardCursor(4), 1: ShardCursor(9, (2, 7))}, 1)


class Long(LaboratorySource):
    """Its second record is long."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        if index != 1:
            return sample
        return replace(sample, turns=(Turn("red " * 400, "red"),), masks=(), prompts=())


def test_a_sample_over_the_budget_stands_alone_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stream = PackedStream(Long(samples=3, questions=1), MODEL.encoder, 300, packing_buffer_size=2)
    batches = list(islice(stream, 12))
    long = [batch for batch in batches if len(batch) > 300]
    assert len(long) > 1 and all(len(batch.samples) == 1 for batch in long)
    result = [record.getMessage() for record in caplog.records if "token_budget" in record.getMessage()]
    assert len(result) == 1
    sample = long[0].samples[0]
    assert result[0].startswith(f"{sample.source} {sample.id} has {len(long[0])} tokens, more than token_budget 300:")


def test_a_window_begun_before_is_finished_first() -> None:
    batches = list(islice(PackedStream(LaboratorySource(questions=1), MODEL.encoder, 300), 5))
    windows = AccumulationWindows(batches, 3, begun=2)
    assert [batch.accumulation_counts for batch in windows] == [
        batches[0].counts,
        *[batches[1].counts + batches[2].counts + batches[3].counts] * 3,
        batches[4].counts,
    ]
    assert next(iter(windows)).accumulation_counts == batches[0].counts + batches[1].counts + batches[2].counts
