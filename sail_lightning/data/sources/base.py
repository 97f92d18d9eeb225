"""What a source is: an indexable list of samples, finite or endless."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sail_lightning.data.sample import Sample


class Source(ABC):
    """Reads one annotation format into `Sample` records. Mixing, repeating and packing happen outside it."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """The record at an index; the same each time, and cheap: no pixel is decoded."""

    @property
    def length(self) -> int | None:
        """How many records there are; None if there is no end."""
        return None
