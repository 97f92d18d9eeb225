"""Region captions from RefCOCO's phrases as data sources, for training and for the benchmark on RefCOCOg."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json
from sail_lightning.data.sources.prompted import PromptedSource
from sail_lightning.data.sources.refcoco import RefCOCO, as_phrase, image_row
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Mask, Sample, Turn
from sail_lightning.sequence.chat_template import prompt_token


@register
class RegionCaptions(PromptedSource, RefCOCO):
    """Asks for phrases that refer to given objects of an image; one to `objects` per conversation.

    Args:
        name: Name of the data set.
        kwargs: Arguments of `PromptedSource` and `RefCOCO`.
    """

    def __init__(self, name: Literal["refcoco", "refcoco+", "refcocog"] = "refcocog", **kwargs: Any) -> None:
        super().__init__(name=name, separate=False, **kwargs)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        size = (int(row["height"]), int(row["width"]))
        objects = []
        for item in self.prompting.sample_objects(row["objects"], sampler):
            phrase = as_phrase(sampler.choice(item["phrases"]))
            if item["segmentation"] is None:
                raise SailError(f"the ref of {phrase!r} names annotation {item['ann_id']}, which instances.json lacks")
            objects.append((Segmentation((item["segmentation"],), size), phrase))
        return self.prompting.build_conversation(
            objects, _short, sampler, image=row["image"], source=str(self.files[0]), id=row["id"]
        )


def _short(name: str, phrase: str) -> Turn:
    return Turn(prompt_templates.DESCRIBE_SHORT.format(name), f"{name}: {phrase}", "describe")


@register
class RegionCaptionBenchmark(IndexedSource):
    """Reads the benchmark of RefCOCOg region captions: one region per record, as `<Prompt0>`.

    The file is laid out as COCO's, with the caption at the image. Annotations find their image by `image_id`
    (official code: the annotation that has the id of the image).

    Args:
        annotations: The JSON file.
        images: Folder of the images.
    """

    def __init__(self, annotations: str = layout.REGION_CAPTIONS, images: str = layout.COCO_TRAIN2014) -> None:
        super().__init__([annotations])
        self.images = data_path(images)

    def settings(self) -> Any:
        return str(self.images)

    def rows(self) -> Iterator[Row]:
        content = read_json(self.files[0])
        regions: dict[Any, list[Row]] = {}
        for annotation in content["annotations"]:
            regions.setdefault(annotation.get("image_id"), []).append(annotation)
        for item in content["images"]:
            if "file_name" not in item:
                fault = "its entry in `images` has no file_name; give it one, or remove the entry"
                yield {"id": str(item.get("id", 0)), "fault": fault}
                continue
            row = image_row(item, item.get("id", 0), self.images)
            for number, region in enumerate(regions.get(item.get("id"), [{}])):
                caption = item.get("caption", region.get("caption"))
                id = f"{row['id']}/{number}" if number else row["id"]
                yield {**row, "id": id, "caption": caption, "segmentation": region.get("segmentation")}

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        if row["segmentation"] is None or row["caption"] is None:
            lacking = "mask" if row["segmentation"] is None else "caption"
            raise SailError(f"no {lacking}; give the image's annotation one, or remove the image")
        mask = Segmentation((row["segmentation"],), (int(row["height"]), int(row["width"])))
        turn = Turn(prompt_templates.DESCRIBE[0].format(prompt_token(0)), row["caption"], "describe")
        return Sample(row["image"], (turn,), prompts=(Mask(mask, 0),), source=str(self.files[0]), id=row["id"])
