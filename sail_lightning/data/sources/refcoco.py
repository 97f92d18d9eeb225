"""RefCOCO, RefCOCO+ and RefCOCOg as data sources: phrases that each refer to one object of a COCO image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from sail_lightning.data import plain_pickle
from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import FAULTS, IndexedSource, data_path, read_json
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import PositiveInt
from sail_lightning.settings.renames import renamed

BENCHMARK_QUESTION = "Please segment {} in this image."
"""Question that benchmarks ask about every phrase; one of those used in training."""


@register
class RefCOCO(IndexedSource):
    """Reads RefCOCO, RefCOCO+ or RefCOCOg from the files of `refer`: `instances.json`, `refs(SPLIT_BY).p` or `.json`.

    In training a record is an image with some of its objects, each with one of its phrases, drawn anew each time
    (official code: drawn once for the whole run, and an object several times in one conversation, E39).

    Args:
        name: Name of the data set.
        split: Split of the refs: `train`, `val`, `testA`, `testB` or `test`.
        split_by: Author of the split; null is `umd` for RefCOCOg and `unc` for the others.
        annotations: Folder of the two files; null is `ref_seg/NAME`.
        images: Folder of the images.
        objects: Largest number of objects per conversation.
        separate: Whether each record is one question about one phrase, as benchmarks ask.
    """

    def __init__(
        self,
        name: Literal["refcoco", "refcoco+", "refcocog"] = "refcoco",
        split: str = "train",
        split_by: Literal["unc", "umd", "google"] | None = None,
        annotations: str | None = None,
        images: str = layout.COCO_TRAIN2014,
        objects: PositiveInt = 5,
        separate: bool = False,
    ) -> None:
        by = split_by or ("umd" if name == "refcocog" else "unc")
        folder = Path(annotations or f"{layout.REFERRING}/{name}")
        super().__init__([refs_file(folder, f"refs({by})"), folder / "instances.json"])
        self.split, self.images, self.objects, self.separate = split, data_path(images), objects, separate

    def settings(self) -> Any:
        return [self.split, str(self.images), self.separate]

    def rows(self) -> Iterator[Row]:
        refs, (items, annotations) = read_refs(self.files[0], self.split), read_instances(self.files[1])
        by_image: dict[int, dict[int, Row]] = {}
        for ref in refs:
            try:
                phrases = [sentence["sent"] for sentence in ref["sentences"]]
                objects = by_image.setdefault(ref["image_id"], {})
                ann_id = ref["ann_id"]
            except FAULTS as error:
                yield {"id": f"ref {ref.get('ref_id')}", "fault": f"the ref lacks {error}; fix the record"}
                continue
            known = objects.setdefault(ann_id, {"ann_id": ann_id, "phrases": []})  # E39: refs are joined
            known["segmentation"] = annotations.get(ann_id, {}).get("segmentation")
            known["phrases"] += phrases
        for image_id, objects in by_image.items():
            yield from image_rows(items.get(image_id), image_id, self.images, list(objects.values()), self.separate)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        size = (row["height"], row["width"])
        turns, masks = [], []
        for place, item in enumerate(sampler.sample(row["objects"], self.objects)):
            phrase = as_phrase(sampler.choice(item["phrases"]))
            if item["segmentation"] is None:
                raise SailError(f"the ref of {phrase!r} names annotation {item['ann_id']}, which instances.json lacks")
            question = BENCHMARK_QUESTION if self.separate else sampler.choice(prompt_templates.SEGMENT)
            answer = sampler.choice(prompt_templates.SEGMENT_ANSWERS)
            turns.append(Turn(question.format(phrase), answer, "refer", (place,)))
            masks.append(Segmentation((item["segmentation"],), size))
        return Sample(row["image"], tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])


def refs_file(folder: Path, stem: str) -> Path:
    """Returns the path of the refs: a JSON file if it exists, or else the published pickle."""
    as_json = folder / f"{stem}.json"
    return as_json if data_path(as_json).exists() else folder / f"{stem}.p"


def read_refs(path: Path, split: str) -> list[dict[str, Any]]:
    """Returns the refs of a split.

    Raises:
        SailError: The file is missing, or has no such split.
    """
    refs = plain_pickle.load(path) if path.suffix == ".p" else read_json(path)
    found = [ref for ref in refs if ref["split"] == split]
    if not found:
        raise SailError(f"{path} has no split {split}; it has {', '.join(sorted({ref['split'] for ref in refs}))}")
    return found


def read_instances(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Returns the images and the annotations of a COCO file, both by id."""
    content = read_json(path)
    return {item["id"]: item for item in content["images"]}, {item["id"]: item for item in content["annotations"]}


def image_row(item: dict[str, Any], image_id: int, images: Path) -> Row:
    """Returns the part of a row that describes its image."""
    return {"id": str(image_id), "image": str(images / item["file_name"])} | {
        side: item[side] for side in ("height", "width") if side in item
    }


def image_rows(
    item: dict[str, Any] | None, image_id: int, images: Path, objects: list[Row], separate: bool
) -> Iterator[Row]:
    """Yields the rows of an image; one with a fault if instances.json lacks the image or its name."""
    if item is None or "file_name" not in item:
        lacks = "lacks" if item is None else "gives no file_name"
        yield {
            "id": str(image_id),
            "fault": f"the refs are about image {image_id}, which instances.json {lacks}; fix the record",
        }
        return
    row = image_row(item, image_id, images)
    yield from separated(row, objects) if separate else [{**row, "objects": objects}]


def separated(row: Row, objects: Iterable[Row]) -> Iterator[Row]:
    """Yields one row for each phrase of each object; rows of one image follow each other, so that it is read once."""
    for item in objects:
        for number, phrase in enumerate(item["phrases"]):
            one = {**item, "phrases": [phrase]}
            yield {**row, "id": f"{row['id']}/{item['ann_id']}/{number}", "objects": [one]}


def as_phrase(text: str) -> str:
    """Returns a phrase as questions use it, in training and in benchmarks (E19): lower case, without a full stop.

    Raises:
        SailError: The phrase is empty.
    """
    phrase = " ".join(text.lower().split()).removesuffix(".").strip()
    if not phrase:
        raise SailError("a phrase is empty; remove its sentence")
    return phrase


__getattr__ = renamed(__name__, {"photo_row": "image_row", "photo_rows": "image_rows"})
