"""`Mixture`: several sources as one, without a state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data.sources import Mixture, RefCOCO, Source
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.sample import Sample, Turn


class Numbers(Source):
    """Records `name:0`, `name:1`, ...; endless without a count."""

    def __init__(self, name: str, count: int | None) -> None:
        self.name, self.count = name, count

    def __getitem__(self, index: int) -> Sample:
        assert self.count is None or 0 <= index < self.count
        return Sample(f"{index}.jpg", (Turn("?", "!"),), id=f"{self.name}:{index}")

    @property
    def length(self) -> int | None:
        return self.count


def two(**settings: Any) -> Mixture:
    return Mixture({"a": Numbers("a", 5), "b": Numbers("b", 3)}, **settings)


def ids(mixture: Mixture, count: int) -> list[str]:
    return [mixture[number].id for number in range(count)]


@given(st.integers(1, 4), st.integers(1, 4))
def test_a_pass_holds_each_record_as_often_as_it_is_repeated(a: int, b: int) -> None:
    mixture = two(repeats={"a": a, "b": b})
    assert mixture.length == 5 * a + 3 * b
    counted = Counter(ids(mixture, mixture.length))
    assert counted == {f"a:{i}": a for i in range(5)} | {f"b:{i}": b for i in range(3)}
    assert len(mixture.image_keys()) == mixture.length


@given(st.floats(0.05, 20), st.floats(0.05, 20))
def test_weights_are_shares_of_every_stretch_of_the_stream(a: float, b: float) -> None:
    found = ids(two(weights={"a": a, "b": b}), 2000)
    share = a / (a + b)
    for start in range(0, 2000, 250):  # evenly interleaved, not in runs
        got = sum(id.startswith("a") for id in found[start : start + 250])
        assert abs(got - 250 * share) <= 10


@pytest.mark.parametrize("shards", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0}, {"a": 5.0, "b": 2.0}])
def test_every_reader_of_a_weighted_mixture_sees_the_sources_in_their_shares(
    weights: dict[str, float], shards: int
) -> None:
    mixture = two(weights=weights)
    share = weights["a"] / sum(weights.values())
    for shard in range(shards):
        for start in (0, 1000):  # soon, and not only in the long run
            found = [mixture[shard + number * shards].id[0] for number in range(start, start + 500)]
            assert found.count("a") / 500 == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("weights", [[9998, 1, 1], [1e6, 1, 1, 1, 1], [1] * 7, [1e-9, 1, 2]])
def test_every_source_with_a_weight_is_read(weights: list[float]) -> None:
    names = [f"s{number}" for number in range(len(weights))]
    sources = {name: Numbers(name, 5) for name in names}
    mixture = Mixture(dict(sources), weights=dict(zip(names, weights, strict=True)))
    counted = Counter(mixture[number].id.split(":")[0] for number in range(997))
    assert sum(counted.values()) == 997
    for name, weight in zip(names, weights, strict=True):
        assert counted[name] >= 1
        assert counted[name] == pytest.approx(997 * weight / sum(weights), abs=len(weights))


def test_a_weighted_source_is_read_in_whole_passes_in_a_new_order_each() -> None:
    mixture = two(weights={"a": 1, "b": 1})
    read = [id for id in ids(mixture, 100) if id.startswith("a")]
    passes = [tuple(read[start : start + 5]) for start in range(0, 45, 5)]
    assert all(set(one) == {f"a:{i}" for i in range(5)} for one in passes)
    assert len(set(passes)) > 1


def test_numbers_mean_the_same_records_in_any_order_of_asking() -> None:
    forward, backward = two(weights={"a": 2, "b": 1}), two(weights={"a": 2, "b": 1})
    assert ids(forward, 60) == [backward[number].id for number in reversed(range(60))][::-1]


def test_a_source_without_an_end_can_be_weighted_and_not_repeated() -> None:
    sources: dict[str, Source | None] = {"a": Numbers("a", 5), "endless": Numbers("endless", None)}
    found = ids(Mixture(sources, weights={"a": 1, "endless": 1}), 100)
    endless = [id for id in found if id.startswith("e")]
    assert endless == [f"endless:{number}" for number in range(len(endless))] and 40 <= len(endless) <= 60
    with pytest.raises(SailUsageError, match="endless is endless; give the mixture weights"):
        Mixture(sources).length  # noqa: B018


def test_limits_are_the_same_random_records_in_every_run() -> None:
    first, second, other = two(limits={"a": 2}), two(limits={"a": 2}), two(limits={"a": 2}, seed=3)
    assert first.length == 5
    assert ids(first, 5) == ids(second, 5)
    assert {tuple(ids(two(limits={"a": 2}, seed=seed), 2)) for seed in range(9)} != {tuple(ids(other, 2))}


def test_images_of_held_out_sets_are_left_out_of_all_sources() -> None:
    mixture = two(exclude={"val": Numbers("val", 2)})
    assert set(ids(mixture, mixture.length)) == {"a:2", "a:3", "a:4", "b:2"}


def test_coco_images_are_the_same_under_either_name(data_root: Path) -> None:
    class Coco2017(Numbers):
        def __getitem__(self, index: int) -> Sample:
            return Sample(f"coco/train2017/{100 + index:012d}.jpg", (), id=str(index))

    held_out = RefCOCO("refcoco", split="val")  # COCO_train2014_000000000100.jpg to ...102.jpg
    mixture = Mixture({"coco": Coco2017("", 5)}, exclude={"refcoco": held_out})
    assert ids(mixture, mixture.length) == ["3", "4"]


def test_a_source_that_is_excluded_whole_is_told() -> None:
    with pytest.raises(SailError, match="b has no records that exclude leaves; drop it"):
        two(exclude={"val": Numbers("val", 3)}).length  # noqa: B018


def test_null_drops_a_source_that_an_earlier_config_named() -> None:
    assert Mixture({"a": Numbers("a", 5), "b": None}, repeats={"b": 4}).length == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": {"c": 2}}, "repeats names c, but the sources are a, b"),
        ({"repeats": {"a": 0}}, "Mixture: repeats.a must be 1 or more, not 0"),
        ({"weights": {"a": -1.0}}, "Mixture: weights.a must be 0 or more, not -1"),
        ({"weights": {"a": 1.0}, "repeats": {"a": 2}}, "repeats or weights, not both"),
        ({"weights": {"a": 0.0}}, "the weights leave no source"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        two(**settings)


def test_every_reading_of_a_repeated_record_is_drawn_anew(data_root: Path) -> None:
    mixture = Mixture({"refcoco": RefCOCO("refcoco")}, repeats={"refcoco": 4})
    read = [mixture.sample_record(number, np.random.default_rng(number)) for number in range(0, 12, 3)]
    assert len({sample.id for sample in read}) == 1 and len({sample.turns for sample in read}) > 1


class InBlocks(Numbers):
    """Wants its records in runs of four, as shards are read."""

    def order(self, rng: np.random.Generator) -> np.ndarray:
        assert self.count is not None
        return np.concatenate([rng.permutation(4) + 4 * block for block in rng.permutation(self.count // 4)])


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "shards": 2.0}])
def test_a_source_keeps_the_order_that_it_wants(weights: dict[str, float] | None) -> None:
    mixture = Mixture({"a": Numbers("a", 20), "shards": InBlocks("shards", 40)}, weights=weights)
    order = range(120) if mixture.length is None else mixture.order(np.random.default_rng(0))
    read = [int(id.partition(":")[2]) for id in (mixture[int(n)].id for n in order) if id.startswith("shards")][:40]
    assert sorted(read) == list(range(40))
    assert all(len({number // 4 for number in read[start : start + 4]}) == 1 for start in range(0, 40, 4))


@given(st.integers(1, 3), st.integers(0, 99))
def test_an_order_holds_every_record_of_a_pass_once(repeats: int, seed: int) -> None:
    mixture = two(repeats={"a": repeats}, limits={"b": 2})
    order = mixture.order(np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(5 * repeats + 2))
