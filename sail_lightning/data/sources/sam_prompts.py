"""A data source that asks for detailed descriptions of objects in SAM's images, given as visual prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from sail_lightning.data.prompting import described
from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import data_path, read_json
from sail_lightning.data.sources.prompted import PromptedSource
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample

_HIGHLIGHT = re.compile(
    r"\b(?:highlighted|highlight|by a yellow edge|by a yellow contour|yellow contour|yellow edge|yellow outline)\b",
    re.IGNORECASE,
)
_SPACE_BEFORE_MARK = re.compile(r" +(?=[.,;:!?])")


@register
class SamPrompts(PromptedSource):
    """Reads a JSON list of images with described objects. A record is up to `objects` objects of an image.

    An image with more objects makes several records, so that a pass asks about each object once.

    Args:
        annotations: The JSON file.
        images: Folder of the images.
        kwargs: Arguments of `PromptedSource`.
    """

    def __init__(self, annotations: str = layout.SAM_PROMPTS, images: str = layout.SAM_IMAGES, **kwargs: Any) -> None:
        super().__init__(files=[annotations], **kwargs)
        self.images = data_path(images)

    def settings(self) -> Any:
        return [str(self.images), self.prompting.objects]

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(read_json(self.files[0])):
            record = item if isinstance(item, dict) else {}
            name = str(record.get("image_name", f"record {number}"))
            row: Row = {"id": f"{name}/{number}", "image": str(self.images / name)}
            objects = record.get("object_annotations")
            if not isinstance(objects, list):
                yield row
                continue
            for part, some in enumerate(self._parts(objects, number)):
                yield {**row, "id": f"{row['id']}.{part}", "object_annotations": some}

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        objects = []
        for item in sampler.sample(row["object_annotations"]):
            encoded = item["segmentation"]
            objects.append((Segmentation((encoded,), rle_size(encoded)), without_highlight(item["caption"])))
        turn = described(sampler, prompt_templates.DESCRIBE_IN_FULL)
        return self.prompting.build_conversation(
            objects, turn, sampler, image=row["image"], source=str(self.files[0]), id=row["id"]
        )

    def _parts(self, objects: list[Any], number: int) -> list[list[Any]]:
        """Returns the objects of image `number`, shuffled in the same way in each run and split into conversations."""
        mixed = [objects[place] for place in np.random.default_rng(number).permutation(len(objects))]
        most = self.prompting.objects
        return [mixed[start : start + most] for start in range(0, len(mixed), most)]


def without_highlight(caption: str) -> str:
    """Returns a caption without mentions of the mark that its writer saw around the object."""
    return _SPACE_BEFORE_MARK.sub("", " ".join(_HIGHLIGHT.sub(" ", caption).split()))


def rle_size(encoded: Any) -> tuple[int, int]:
    """Returns the (height, width) that an RLE contains, for files that do not give the size of the image.

    Raises:
        SailError: The value is not an RLE with a size.
    """
    if not isinstance(encoded, dict) or len(encoded.get("size", ())) != 2:
        raise SailError(f"a mask must be an RLE with its size, not {str(encoded)[:40]}")
    height, width = encoded["size"]
    return int(height), int(width)
