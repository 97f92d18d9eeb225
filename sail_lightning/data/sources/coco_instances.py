"""A data source of your own masks in COCO's instance format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.indexed import data_path, read_json
from sail_lightning.data.sources.phrases import PhraseSource, clean, kept, objects_of, separated
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample


@register
class CocoInstances(PhraseSource):
    """Reads masks of a COCO JSON file (`images`, `annotations`, `categories`) that phrases or categories ask about.

    Where every annotation has a phrase, the file needs no `categories`.

    With `phrase_key`, an annotation's phrase is the value under that key: a text, or a list of alternatives.
    Annotations of one image with the same phrase are one answer, their union. An annotation without a phrase is asked
    about by its category, unless other annotations of that category in the image have phrases: `the dog` means a
    single one, `every dog` the union of several or of a crowd.

    Args:
        annotations: COCO JSON file.
        images: Folder of the images.
        phrase_key: Key of an annotation's phrase, such as `caption`; null asks by categories only.
        kwargs: Arguments of `PhraseSource`.
    """

    version: ClassVar[int] = 3

    def __init__(self, annotations: str, images: str, phrase_key: str | None = None, **kwargs: Any) -> None:
        super().__init__(files=[annotations], **kwargs)
        self.images, self.phrase_key = data_path(images), phrase_key

    def settings(self) -> Any:
        return [str(self.images), self.phrase_key, self.part, self.val_share, self.separate]

    def rows(self) -> Iterator[Row]:
        content = read_json(self.files[0])
        # Without a key for phrases, a file without categories is wrong as a whole, not in each of its images.
        categories = content["categories"] if self.phrase_key is None else content.get("categories") or []
        names = {category["id"]: category["name"] for category in categories}
        items = {item["id"]: item for item in content["images"]}
        by_image: dict[Any, list[Row]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation.get("image_id") in items:
                by_image[annotation["image_id"]].append(annotation)
            else:
                fault = f"image_id {annotation.get('image_id')} belongs to no image; fix or remove the annotation"
                yield {"id": f"annotation {annotation.get('id')}", "fault": fault}
        used = [item for id, item in items.items() if by_image[id]]
        for item in kept(used, self.part, self.val_share, lambda one: str(one.get("file_name"))):
            row: Row = {"id": str(item["id"]), "image": str(self.images / str(item.get("file_name")))}
            row |= {side: item[side] for side in ("height", "width") if side in item}
            try:
                if "file_name" not in item:
                    raise SailError("its entry in images has no file_name")
                row["objects"] = self._objects(by_image[item["id"]], names)
            except SailError as error:
                row["fault"] = str(error)
            yield from separated(row) if self.separate and "fault" not in row else [row]

    def _objects(self, annotations: list[Row], names: dict[Any, str]) -> list[Row]:
        """Returns the objects of an image, each with its phrases and the segmentations that make up its mask."""
        phrases_of: list[tuple[str, int]] = []
        unnamed: dict[Any, list[int]] = defaultdict(list)
        with_phrases = set()
        for place, annotation in enumerate(annotations):
            phrases = self._phrases(annotation)
            phrases_of += [(phrase, place) for phrase in phrases]
            if phrases:
                with_phrases.add(annotation.get("category_id"))
            else:
                unnamed[annotation.get("category_id")].append(place)
        for category, places in unnamed.items():
            own = annotations[places[0]].get("id")
            if category is None:
                raise SailError(f"annotation {own} has neither a phrase nor a category_id; give it one of them")
            if category in with_phrases:
                continue
            if category not in names:
                raise SailError(f"category_id {category} of annotation {own} is not among the categories")
            several = len(places) > 1 or annotations[places[0]].get("iscrowd")
            phrases_of += [(f"{'every' if several else 'the'} {names[category]}", place) for place in places]
        return [
            {"phrases": phrases, "segmentations": [annotations[place].get("segmentation") for place in places]}
            for phrases, places in objects_of(phrases_of)
        ]

    def _phrases(self, annotation: Row) -> list[str]:
        value = annotation.get(self.phrase_key) if self.phrase_key else None
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(phrase, str) for phrase in found):
            raise SailError(
                f"{self.phrase_key} of annotation {annotation.get('id')} is neither a text nor a list of texts"
            )
        return [cleaned for phrase in found if (cleaned := clean(phrase))]

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        size = (row["height"], row["width"])
        turns, objects = self.wording.turns(row["objects"], sampler)
        masks = []
        for item in objects:
            if any(part is None for part in item["segmentations"]):
                raise SailError(f"an annotation of {item['phrases'][0]!r} has no segmentation")
            masks.append(Segmentation(tuple(item["segmentations"]), size))
        return Sample(row["image"], turns, tuple(masks), source=str(self.files[0]), id=row["id"])
