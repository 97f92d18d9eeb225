"""Osprey-724K as a data source: conversations about regions of COCO images, in five files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sail_lightning.data.prompting import NEGATIVE, Region, described, negative_turn, with_names
from sail_lightning.data.records import Row, image_name
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import data_path, read_json
from sail_lightning.data.sources.llava import conversation
from sail_lightning.data.sources.prompted import PromptedSource
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import refuse_empty

Kind = Literal["conversation", "part_level", "positive_negative", "short_form", "detail_description"]
FILES: dict[Kind, str] = {
    "conversation": "osprey_conversation.json",
    "part_level": "osprey_part_level.json",
    "positive_negative": "osprey_lvis_positive_negative.json",
    "short_form": "osprey_short_form.json",
    "detail_description": "osprey_detail_description.json",
}
IMAGES = (layout.COCO_TRAIN2014, layout.COCO_VAL2014, layout.COCO_TRAIN2017, layout.COCO_VAL2017)
_KEYS = ("file_name", "height", "width", "annotation", "conversations", "description")


@register
class Osprey(PromptedSource):
    """Reads one file of Osprey-724K. Its regions, `<region1>` and so on in the texts, become visual prompts.

    A conversation keeps all its regions; conversations with more than `num_prompts` regions are left out. `short_form`
    asks for a word or phrase. `detail_description` has one description per region, of which one to `objects` are asked
    for.

    An image is searched when the file is indexed, and again when its record is read if it has moved since. One that is
    in none of the folders is reported then (official defects E34, E35: images are searched in folders that are not
    COCO's, and a missing one is silently replaced by another record).

    Args:
        kind: Name of one of the five files.
        annotations: Folder of the files.
        images: Folders of the images, which are searched in this order; null is COCO's four.
        kwargs: Arguments of `PromptedSource`; `objects` is used by `detail_description` only.
    """

    def __init__(
        self,
        kind: Kind = "conversation",
        annotations: str = layout.OSPREY,
        images: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_empty(self, images=images)
        super().__init__(files=[Path(annotations) / FILES[kind]], **kwargs)
        self.kind, self.images = kind, [data_path(folder) for folder in images or IMAGES]

    def settings(self) -> Any:
        return [self.kind, [str(folder) for folder in self.images], self.prompting.num_prompts]

    def image_path(self, row: Row) -> str | None:
        return row.get("image") or row.get("file_name")

    def rows(self) -> Iterator[Row]:
        listed = {folder: frozenset(os.listdir(folder) if folder.is_dir() else ()) for folder in self.images}
        for number, item in enumerate(read_json(self.files[0])):
            record = item if isinstance(item, dict) else {}
            name, regions = str(record.get("file_name", "record")), record.get("annotation")
            many = isinstance(regions, list) and len(regions) > self.prompting.num_prompts
            if many and self.kind != "detail_description":
                continue
            row = {key: record[key] for key in _KEYS if key in record}
            row["id"] = f"{image_name(name)}/{number}"
            if found := next((folder for folder in self.images if name in listed[folder]), None):
                row["image"] = str(found / name)
            yield row

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        image = self._image(row)
        size = (int(row["height"]), int(row["width"]))
        masks = [Segmentation((one["segmentation"],), size) for one in row["annotation"]]
        if self.kind != "detail_description":
            return self._conversation(row, image, masks, sampler)
        texts = [_without_regions(text) for text in row["description"]]
        if len(texts) != len(masks):
            raise SailError(f"{len(texts)} descriptions of {len(masks)} regions; give one for each")
        pairs = [(mask, text) for mask, text in zip(masks, texts, strict=True) if text]
        return self.prompting.build_conversation(
            self.prompting.sample_objects(pairs, sampler),
            described(sampler),
            sampler,
            image=image,
            source=str(self.files[0]),
            id=row["id"],
        )

    def _conversation(self, row: Row, image: str, masks: list[Segmentation], sampler: Sampler) -> Sample:
        regions, unused = self.prompting.regions([(mask, "") for mask in masks], sampler)
        turns = [self._turn(question, answer, regions) for question, answer in conversation(row["conversations"])]
        meta: dict[str, Any] = {}
        if negative := self.prompting.sample_negative_prompt(len(regions), unused, sampler):
            turns.append(negative_turn(described(sampler), negative[1]))
            meta[NEGATIVE] = [negative[1]]
        prompts = tuple(region.prompt for region in regions)
        return Sample(image, tuple(turns), prompts=prompts, source=str(self.files[0]), id=row["id"], meta=meta)

    def _turn(self, question: str, answer: str, regions: list[Region]) -> Turn:
        ending = prompt_templates.SHORT_ANSWER if self.kind == "short_form" else ""
        return Turn(with_names(question, regions) + ending, with_names(answer, regions))

    def _image(self, row: Row) -> str:
        """Returns the image of a row: the indexed path if it still exists, or else one that is searched anew.

        Raises:
            SailError: The image is in none of the folders.
        """
        indexed: str | None = row.get("image")
        if indexed is not None and os.path.isfile(indexed):
            return indexed
        name = row["file_name"]
        found = next((str(folder / name) for folder in self.images if (folder / name).is_file()), indexed)
        if found is not None:  # loading an image that is gone names its path
            return found
        raise SailError(f"no image {name} in {', '.join(map(str, self.images))}; copy it there, or set images")


def _without_regions(description: str) -> str:
    """Returns a description without its parts that name regions, such as `<region1>:`."""
    kept = (part for part in description.split(":") if not ("<" in part and ">" in part))
    return ":".join(kept).strip()
