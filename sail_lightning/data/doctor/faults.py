"""What can be wrong with a record: a fixed name for each kind of fault, and how it is mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "unreadable_source": "put the files where docs/data.md says, or drop the source",
    "broken_record": "mend the record in its annotation file, or remove it",
    "empty_record": "give the record a question and an answer, or remove it",
    "missing_picture": "put the picture there, or remove the record",
    "corrupt_picture": "copy the picture again, or remove the record",
    "turned_picture": "store its pixels as they are seen, without an orientation, and check that its masks fit",
    "picture_size": "use the picture that was annotated, or correct the size that the annotation file says",
    "mask_size": "draw the mask at the picture's size",
    "undecodable_mask": "encode the mask again (polygons, COCO RLE or PNG), or remove it",
    "empty_mask": "give the object's mask, or answer 'No target [SEG].'",
    "seg_count": "give one mask per [SEG], in the order of the text",
    "absent_prompt": "give the region that the text names, or correct the <PromptK>",
    "prompt_id_range": "count prompts from 0, or check with the config of a model that has more of them",
    "prompt_id_twice": "give each prompt an id of its own",
    "empty_prompt": "draw the region inside the picture",
    "source_fault": "mend the record as its message says",
    "reserved_token": "remove the token from the text: it lays out the sequence",
    "too_long": "shorten the text, lower model.max_side or raise model.max_tokens",
    "duplicate_record": "remove one of the two",
    "leaked_picture": "name the held-out set under the mixture's `exclude`, or remove the record",
}
"""Each kind of fault, and its mend."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: a key of `KINDS`.
        file: where to mend it: the picture for a picture's faults, else the annotation file.
        record: the record's id; empty where a whole source is meant.
        index: the record's number in its source; None where a whole source is meant.
        message: what is wrong.
    """

    kind: str
    file: str
    record: str
    index: int | None
    message: str

    def __post_init__(self) -> None:
        """Half a surrogate pair, which texts of data sets do hold, cannot be printed: it is told by its number."""
        for name in ("file", "record", "message"):
            text = str(getattr(self, name))
            object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    @property
    def mend(self) -> str:
        """How faults of this kind are mended."""
        return KINDS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
