"""Sources written for an earlier version: the old names of methods work, and a warning names the new ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sail_lightning.data.sources import IndexedSource, Mixture, Source
from sail_lightning.sample import Sample


class Numbers(Source):
    """A source that says by its ids which method was called."""

    def __getitem__(self, index: int) -> Sample:
        return Sample(None, (), id=str(index))

    @property
    def length(self) -> int:
        return 3


def test_a_source_that_overrides_old_names_is_read_under_the_new_ones() -> None:
    with pytest.warns(FutureWarning) as caught:

        class Old(Numbers):
            def draw(self, index: int, rng: np.random.Generator) -> Sample:
                return Sample(None, (), id=f"drawn {index}")

            def whole(self, index: int) -> Sample:
                return Sample(None, (), id=f"whole {index}")

            def pictures(self) -> NDArray[np.uint64]:
                return np.array([7, 8, 9], np.uint64)

            @property
            def parts(self) -> Mapping[str, Source]:
                return {"a": Numbers()}

    messages = [str(warning.message) for warning in caught]
    for old, new in {
        "draw": "sample_record",
        "whole": "full_record",
        "pictures": "image_keys",
        "parts": "children",
    }.items():
        assert any(f"Old.{old} is now Old.{new};" in message for message in messages)
    source = Old()
    rng = np.random.default_rng(0)
    assert source.sample_record(1, rng).id == "drawn 1"
    assert source.full_record(1).id == "whole 1"
    assert source.image_keys().tolist() == [7, 8, 9]
    assert list(source.children) == ["a"]
    assert Mixture({"old": source}).sample_record(2, rng).id == "drawn 2"


def test_an_old_name_calls_the_new_one_and_warns() -> None:
    source: Any = Mixture({"numbers": Numbers()})
    with pytest.warns(FutureWarning, match=r"\.whole is now Source\.full_record"):
        assert source.whole(1).id == "1"
    with pytest.warns(FutureWarning, match=r"\.parts is now Source\.children"):
        assert list(source.parts) == ["numbers"]


def test_super_reaches_the_parents_definition_under_the_old_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAIL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.txt"
    path.write_text("a")

    class Rows(IndexedSource):
        def rows(self) -> Iterator[dict[str, Any]]:
            yield {"id": "row", "image": "x.png"}

        def sample(self, row: dict[str, Any], sampler: object) -> Sample:
            return Sample(row["image"], (), id=row["id"])

    with pytest.warns(FutureWarning):

        class Old(Rows):
            def draw(self, index: int, rng: np.random.Generator) -> Sample:
                return Sample(None, (), id="old " + super().draw(index, rng).id)  # type: ignore[misc]

            def picture(self, row: dict[str, Any]) -> str | None:
                return "y.png"

    with pytest.warns(FutureWarning, match=r"\.draw is now Source\.sample_record"):
        assert Old([path]).sample_record(0, np.random.default_rng(0)).id == "old row"
    assert Old([path]).image_keys().tolist() != Rows([path]).image_keys().tolist()


def test_a_source_with_the_new_names_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class New(Numbers):
            def full_record(self, index: int) -> Sample:
                return Sample(None, (), id=f"full {index}")

        assert New().full_record(0).id == "full 0"
        assert New().sample_record(0, np.random.default_rng(0)).id == "0"
