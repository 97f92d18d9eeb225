"""Your own masks in COCO's instance format."""

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
    """Masks of a COCO JSON file (`images`, `annotations`, `categories`), asked about by phrases or by category.

    Where every annotation has a phrase, the file needs no `categories`.

    With `phrase_key`, an annotation's phrase is what it holds under that key: a text, or a list of alternatives.
    Annotations of one photo with the same phrase are one answer, their union. Without a phrase the category speaks,
    unless other annotations of that category in the photo have phrases: `the dog` is the only one, `every dog` the
    union of several or of a crowd.

    Args:
        annotations: the JSON file.
        images: folder of the photos.
        phrase_key: such as `caption`; null is categories only.
        kwargs: arguments of `PhraseSource`.
    """

    version: ClassVar[int] = 2

    def __init__(self, annotations: str, images: str, phrase_key: str | None = None, **kwargs: Any) -> None:
        super().__init__(files=[annotations], **kwargs)
        self.images, self.phrase_key = data_path(images), phrase_key

    def settings(self) -> Any:
        return [str(self.images), self.phrase_key, self.part, self.val_share, self.separate]

    def rows(self) -> Iterator[Row]:
        content = read_json(self.files[0])
        # Without a key for phrases, a file without categories is wrong as a whole, not in each of its photos.
        categories = content["categories"] if self.phrase_key is None else content.get("categories") or []
        names = {category["id"]: category["name"] for category in categories}
        photos = {photo["id"]: photo for photo in content["images"]}
        by_photo: dict[Any, list[Row]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation.get("image_id") in photos:
                by_photo[annotation["image_id"]].append(annotation)
            else:
                fault = f"image_id {annotation.get('image_id')} is that of no photo; mend or remove the annotation"
                yield {"id": f"annotation {annotation.get('id')}", "wrong": fault}
        used = [photo for id, photo in photos.items() if by_photo[id]]
        for photo in kept(used, self.part, self.val_share, lambda one: str(one.get("file_name"))):
            row: Row = {"id": str(photo["id"]), "image": str(self.images / str(photo.get("file_name")))}
            row |= {side: photo[side] for side in ("height", "width") if side in photo}
            try:
                if "file_name" not in photo:
                    raise SailError("its entry in images has no file_name")
                row["objects"] = self._objects(by_photo[photo["id"]], names)
            except SailError as error:
                row["wrong"] = str(error)
            yield from separated(row) if self.separate and "wrong" not in row else [row]

    def _objects(self, annotations: list[Row], names: dict[Any, str]) -> list[Row]:
        """What can be asked about a photo; masks are the numbers of its annotations until they are united."""
        said: list[tuple[str, int]] = []
        silent: dict[Any, list[int]] = defaultdict(list)
        speaking = set()
        for place, annotation in enumerate(annotations):
            phrases = self._phrases(annotation)
            said += [(phrase, place) for phrase in phrases]
            if phrases:
                speaking.add(annotation.get("category_id"))
            else:
                silent[annotation.get("category_id")].append(place)
        for category, places in silent.items():
            own = annotations[places[0]].get("id")
            if category is None:
                raise SailError(f"annotation {own} has neither a phrase nor a category_id; give it one of them")
            if category in speaking:
                continue
            if category not in names:
                raise SailError(f"category_id {category} of annotation {own} is not among the categories")
            several = len(places) > 1 or annotations[places[0]].get("iscrowd")
            said += [(f"{'every' if several else 'the'} {names[category]}", place) for place in places]
        return [
            {"phrases": phrases, "segmentations": [annotations[place].get("segmentation") for place in places]}
            for phrases, places in objects_of(said)
        ]

    def _phrases(self, annotation: Row) -> list[str]:
        value = annotation.get(self.phrase_key) if self.phrase_key else None
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(phrase, str) for phrase in found):
            raise SailError(f"{self.phrase_key} of annotation {annotation.get('id')} is no text or list of texts")
        return [cleaned for phrase in found if (cleaned := clean(phrase))]

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        if fault := row.get("wrong"):
            raise SailError(fault)
        size = (row["height"], row["width"])
        turns, objects = self.wording.turns(row["objects"], sampler)
        masks = []
        for item in objects:
            if any(part is None for part in item["segmentations"]):
                raise SailError(f"an annotation of {item['phrases'][0]!r} has no segmentation")
            masks.append(Segmentation(tuple(item["segmentations"]), size))
        return Sample(row["image"], turns, tuple(masks), source=str(self.files[0]), id=row["id"])
