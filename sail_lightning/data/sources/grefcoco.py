"""gRefCOCO as a data source: phrases that refer to one object of a COCO image, several, or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import FAULTS, IndexedSource, data_path
from sail_lightning.data.sources.refcoco import (
    BENCHMARK_QUESTION,
    as_phrase,
    image_rows,
    read_instances,
    read_refs,
    refs_file,
)
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import PositiveInt


@register
class GRefCOCO(IndexedSource):
    """Reads gRefCOCO: `grefs(unc).json` and `instances.json`.

    Several objects of a phrase are one mask, their union; no object is an empty mask. Crowds are left out of the union
    in training and in benchmarks (official code: in benchmarks only, E9), unless a phrase refers to nothing else.

    Args:
        split: `train`, `val`, `testA` or `testB`.
        annotations: Folder of the two files.
        images: Folder of the images.
        objects: Largest number of phrases per conversation.
        separate: Whether each record is one question about one phrase, as benchmarks ask.
    """

    def __init__(
        self,
        split: str = "train",
        annotations: str = f"{layout.REFERRING}/grefcoco",
        images: str = layout.COCO_TRAIN2014,
        objects: PositiveInt = 5,
        separate: bool = False,
    ) -> None:
        folder = Path(annotations)
        super().__init__([refs_file(folder, "grefs(unc)"), folder / "instances.json"])
        self.split, self.images, self.objects, self.separate = split, data_path(images), objects, separate

    def settings(self) -> Any:
        return [self.split, str(self.images), self.separate]

    def rows(self) -> Iterator[Row]:
        refs, (items, annotations) = read_refs(self.files[0], self.split), read_instances(self.files[1])
        by_image: dict[int, list[Row]] = {}
        for ref in refs:
            try:
                by_image.setdefault(ref["image_id"], []).append(_object(ref, annotations))
            except FAULTS as error:
                yield {
                    "id": f"ref {ref.get('ref_id')}",
                    "fault": f"the ref, or what it names, lacks {error}; fix the record",
                }
        for image_id, objects in by_image.items():
            yield from image_rows(items.get(image_id), image_id, self.images, objects, self.separate)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        size = (row["height"], row["width"])
        turns, masks = [], []
        for place, item in enumerate(sampler.sample(row["objects"], self.objects)):
            phrase = as_phrase(sampler.choice(item["phrases"]))
            if item["missing"]:
                raise SailError(f"the ref of {phrase!r} names {item['missing']}, which instances.json lacks")
            question = BENCHMARK_QUESTION if self.separate else sampler.choice(prompt_templates.SEGMENT)
            answer = (
                sampler.choice(prompt_templates.SEGMENT_ANSWERS)
                if item["targeted"]
                else prompt_templates.NO_TARGET_ANSWER
            )
            turns.append(Turn(question.format(phrase), answer, "refer", (place,)))
            masks.append(Segmentation(tuple(item["segmentations"]), size))
        return Sample(row["image"], tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])


def _object(ref: dict[str, Any], annotations: dict[int, dict[str, Any]]) -> Row:
    """Returns the object that a ref refers to, with the segmentations of its annotations."""
    ids = [id for id in ([ref["ann_id"]] if isinstance(ref["ann_id"], int) else ref["ann_id"]) if id != -1]
    known = [annotations[id] for id in ids if id in annotations]
    singles = [one for one in known if not one.get("iscrowd")]
    return {
        "ann_id": ref["ref_id"],
        "phrases": [sentence["sent"] for sentence in ref["sentences"]],
        "missing": [id for id in ids if id not in annotations],
        "targeted": bool(ids),
        "segmentations": [one["segmentation"] for one in singles or known],
    }
