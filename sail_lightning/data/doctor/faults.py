"""Kinds of faults of records, each with a fixed name and a fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "unreadable_source": "put the files where docs/data.md says, or drop the source",
    "broken_record": "fix the record in its annotation file, or remove it",
    "empty_record": "give the record a question and an answer, or remove it",
    "missing_image": "put the image there, or remove the record",
    "corrupt_image": "copy the image again, or remove the record",
    "turned_image": "store its pixels as they are seen, without an orientation, and check that its masks fit",
    "image_size": "use the image that was annotated, or correct the size that the annotation file says",
    "mask_size": "draw the mask at the image's size",
    "undecodable_mask": "encode the mask again (polygons, COCO RLE or PNG), or remove it",
    "empty_mask": "give the object's mask, or answer 'No target [SEG].'",
    "seg_count": "give one mask per [SEG], in the order of the text",
    "absent_prompt": "give the region that the text names, or correct the <PromptK>",
    "prompt_id_range": "count prompts from 0, or check with the config of a model that has more of them",
    "prompt_id_twice": "give each prompt an id of its own",
    "empty_prompt": "draw the region inside the image",
    "source_fault": "fix the record as its message says",
    "reserved_token": "remove the token from the text: it lays out the sequence",
    "too_long": "shorten the text, lower model.max_side or raise model.max_tokens",
    "duplicate_record": "remove one of the two",
    "leaked_image": "name the held-out set under the mixture's `exclude`, or remove the record",
}
"""Kinds of faults, each with its fix."""


@dataclass(frozen=True)
class Fault:
    """A fault of a record or of a source.

    Args:
        kind: A key of `KINDS`.
        file: File to fix: the image for faults of an image, else the annotation file.
        record: Id of the record; empty for a fault of a whole source.
        index: Index of the record in its source; None for a fault of a whole source.
        message: Description of the fault.
    """

    kind: str
    file: str
    record: str
    index: int | None
    message: str

    def __post_init__(self) -> None:
        """Replaces lone surrogates, which occur in texts of data sets and cannot be printed, by their numbers."""
        for name in ("file", "record", "message"):
            text = str(getattr(self, name))
            object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    @property
    def fix(self) -> str:
        """Fix for faults of this kind."""
        return KINDS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
