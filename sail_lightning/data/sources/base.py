"""What a source is: an indexable list of samples, finite or endless."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.records import image_hash
from sail_lightning.registry import swap_point
from sail_lightning.sample import Sample
from sail_lightning.settings.ranges import Checked


@swap_point("data.train, data.val, data.test")
class Source(Checked, ABC):
    """Reads one annotation format into `Sample` records. Mixing, repeating and packing happen outside it.

    A record may leave things open: which of several wordings, which objects. `draw` settles them at random,
    `source[index]` always alike, and `whole` takes everything there is.
    """

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """The record at an index; the same each time, and cheap: no pixel is decoded."""

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """The record as one reading in training sees it; wording and objects are drawn anew."""
        return self[index]

    def whole(self, index: int) -> Sample:
        """The record with all its objects, more perhaps than a model can be asked about at once: for checks."""
        return self[index]

    @property
    def length(self) -> int | None:
        """How many records there are; None if there is no end."""
        return None

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The order of one pass over a finite source: a permutation of its indices."""
        return rng.permutation(self.length or 0)

    def pictures(self) -> NDArray[np.uint64]:
        """What names each record's picture (`records.image_hash`), of a finite source; 0 where there is none."""

        def name(index: int) -> int:
            image = next(iter(self[index].images), None)
            return image_hash(image) if isinstance(image, str | Path) else 0

        return np.array([name(index) for index in range(self.length or 0)], np.uint64)

    def faults(self, index: int) -> list[str]:
        """What is wrong with a record beyond what its sample shows: one sentence each, with the mend."""
        return []

    @property
    def parts(self) -> Mapping[str, Source]:
        """The sources that this one is made of, by name; none if it reads files itself."""
        return {}
