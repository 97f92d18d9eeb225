"""The interface of a data source: an indexable list of samples, finite or endless."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.records import image_hash
from sail_lightning.registry import swap_point
from sail_lightning.sample import Sample
from sail_lightning.settings.ranges import Checked
from sail_lightning.settings.renames import RenamedAttribute, adopt_old_names


@swap_point("data.train, data.val, data.test")
class Source(Checked, ABC):
    """Reads one annotation format into `Sample` records. Mixing, repeating and packing happen outside it.

    A record may leave things open, such as which of several phrases or objects to ask about. `sample_record` draws
    them at random, `source[index]` always chooses the same ones, and `full_record` takes all of them.

    Only `__getitem__` and, for a finite source, `length` have to be written. Records are read in any order and in
    several processes, so a source must be picklable and `__getitem__` must not depend on earlier calls.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_names(cls)

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Returns the record at an index. It is the same each time, and cheap: no pixel is decoded.

        Raises:
            SailError: The record cannot be read. The message names the file and the record, and says what to do.
        """

    def sample_record(self, index: int, rng: np.random.Generator) -> Sample:
        """Returns the record for one training step, with its open choices drawn from `rng`."""
        return self[index]

    def full_record(self, index: int) -> Sample:
        """Returns the record with all its objects, possibly more than a model can be asked about."""
        return self[index]

    @property
    def length(self) -> int | None:
        """Number of records; None if the source is endless."""
        return None

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns the order of one pass over a finite source: a permutation of its indices."""
        return rng.permutation(self.length or 0)

    def image_keys(self) -> NDArray[np.uint64]:
        """Returns a hash of the first image's file name for each record of a finite source, to find images again.

        It is `records.image_hash` of the path, and 0 where a record has no image file.
        """

        def key(index: int) -> int:
            image = next(iter(self[index].images), None)
            return image_hash(image) if isinstance(image, str | Path) else 0

        return np.array([key(index) for index in range(self.length or 0)], np.uint64)

    def faults(self, index: int) -> list[str]:
        """Returns faults of a record that its sample does not show: one sentence each that also says how to fix it."""
        return []

    @property
    def children(self) -> Mapping[str, Source]:
        """Sources that this one is made of, by name; empty if it reads files itself."""
        return {}

    draw = RenamedAttribute("sample_record")
    whole = RenamedAttribute("full_record")
    pictures = RenamedAttribute("image_keys")
    parts = RenamedAttribute("children")
