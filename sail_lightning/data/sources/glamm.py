"""GLaMM's grounded captions as data sources: GranD-f, OpenPSG, RefCOCOg and Flickr30k.

A sample has one question and one caption with a mask per phrase.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.images import UnsizedSegmentation, listed_image, required_image
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json, rows_of
from sail_lightning.data.sources.refcoco import as_phrase
from sail_lightning.data.sources.spans import Grounded, Grounding, found, grounded
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import MaskRef, Sample, Turn

FEWEST_WORDS, SHORTEST_SIDE = 3, 32
"""Smallest number of words in the caption of a Flickr image, and its smallest shorter side in pixels."""


class GroundedCaptions(IndexedSource):
    """Base of sources with one caption per image and masks for its phrases.

    Phrases that cannot be found in the caption are left out, and reported by `faults`.

    Args:
        annotations: The JSON file.
        images: Folder of the images.
    """

    image_name_key: ClassVar[str] = "file_name"
    """Key under which a record names its image."""

    def __init__(self, annotations: str, images: str) -> None:
        super().__init__([annotations])
        self.images = data_path(images)

    @abstractmethod
    def read(self, row: Row) -> Grounded:
        """Returns the caption of a row and the positions of its phrases."""

    def mask(self, row: Row, grounding: Grounding) -> MaskRef:
        """Returns the mask reference of a phrase."""
        return Segmentation(grounding.parts, (row["height"], row["width"]))

    def settings(self) -> Any:
        return str(self.images)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        caption = self.read(row)
        turn = Turn(
            sampler.choice(prompt_templates.GROUNDED), caption.answer, "caption", tuple(range(len(caption.groundings)))
        )
        masks = tuple(self.mask(row, grounding) for grounding in caption.groundings)
        return Sample(required_image(row, self.image_name_key), (turn,), masks, source=str(self.files[0]), id=row["id"])

    def faults(self, index: int) -> list[str]:
        try:
            return list(self.read(self.index[index]).faults)
        except (SailError, KeyError, TypeError, ValueError, IndexError, AttributeError):
            return []  # the record cannot be read, which its sample reports


@register
class GranDf(GroundedCaptions):
    """Reads the hand-annotated part of GranD-f: a list of captions with `groundings` by phrase.

    A phrase with a null grounding has no mask and stays plain text.

    Args:
        annotations: The JSON file.
        images: Folder of the images.
    """

    def __init__(
        self,
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/GranDf_HA_GCG_train.json",
        images: str = f"{layout.GLAMM_IMAGES}/grandf/train",
    ) -> None:
        super().__init__(annotations, images)

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(read_json(self.files[0])):
            yield from rows_of(f"record {number}", partial(self._row, item))

    def _row(self, item: Row) -> Iterator[Row]:
        kept: Row = {key: item[key] for key in ("caption", "groundings", "height", "width") if key in item}
        id = str(item.get("image_id", item.get("file_name")))
        yield {"id": id, "image": listed_image(self.images, item, self.image_name_key), **kept}

    def read(self, row: Row) -> Grounded:
        caption = row["caption"].strip('"').strip()
        return grounded(caption, [_annotated(*item) for item in row["groundings"].items() if item[1] is not None])


@register
class OpenPsgGCG(GranDf):
    """Reads OpenPSG with captions, which is laid out as GranD-f.

    Args:
        annotations: The JSON file.
        images: Folder that holds `train2017` and `val2017`, with which each `file_name` begins.
    """

    def __init__(
        self,
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/OpenPsgGCG_train.json",
        images: str = str(Path(layout.COCO_TRAIN2017).parent),
    ) -> None:
        super().__init__(annotations, images)


@register
class RefCOCOgGCG(GroundedCaptions):
    """Reads RefCOCOg with captions: a list of `{id: {"img_file_name", "caption", "refs"}}`.

    A ref's sentence is searched in the caption as whole words, ignoring case; one that is not found is left out with
    its mask (E10). The caption is in lower case, as in the official code.

    Args:
        annotations: The JSON file.
        images: Folder of the images of COCO train2014.
    """

    image_name_key = "img_file_name"

    def __init__(
        self,
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/RefCOCOg_GCG_train.json",
        images: str = layout.COCO_TRAIN2014,
    ) -> None:
        super().__init__(annotations, images)

    def rows(self) -> Iterator[Row]:
        for number, entry in enumerate(read_json(self.files[0])):
            yield from rows_of(f"record {number}", partial(self._rows, entry))

    def _rows(self, entry: Row) -> Iterator[Row]:
        for id, item in entry.items():
            kept = {key: item[key] for key in ("caption", "refs") if key in item}
            yield {"id": str(id), "image": listed_image(self.images, item, self.image_name_key), **kept}

    def read(self, row: Row) -> Grounded:
        caption = row["caption"].lower().strip()
        phrases = [as_phrase(ref["sentence"]) for ref in row["refs"]]
        spans = found(caption, phrases)
        groundings = [
            Grounding(phrase, span, (ref["segmentation"],))
            for phrase, span, ref in zip(phrases, spans, row["refs"], strict=True)
        ]
        return grounded(caption, groundings)

    def mask(self, row: Row, grounding: Grounding) -> MaskRef:
        return UnsizedSegmentation(grounding.parts, required_image(row, self.image_name_key))


@register
class FlickrGCG(GroundedCaptions):
    """Reads Flickr30k Entities with masks, a COCO file with a caption per image.

    As in the official code, an image is left out if its caption has fewer than three words or its shorter side is
    below 32 pixels, and an annotation if it is marked `ignore`, lies outside the image or covers nothing. The first of
    several spans is used; annotations of one span are united.

    Args:
        annotations: The JSON file.
        images: Folder of the images.
    """

    def __init__(
        self,
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/flickr_mergedGT_GCG_train.json",
        images: str = f"{layout.GLAMM_IMAGES}/flickr30k/Flickr30K",
    ) -> None:
        super().__init__(annotations, images)

    def rows(self) -> Iterator[Row]:
        content = read_json(self.files[0])
        by_image: dict[Any, list[Row]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation.get("image_id"), []).append(annotation)
        for item in content["images"]:
            caption, sides = item.get("caption") or "", (item.get("height") or 0, item.get("width") or 0)
            if len(caption.split(" ")) >= FEWEST_WORDS and min(sides) >= SHORTEST_SIDE:
                id = item.get("id")
                row = {"id": str(id), "image": listed_image(self.images, item, self.image_name_key), "caption": caption}
                yield row | {"height": sides[0], "width": sides[1], "annotations": by_image.get(id, [])}

    def read(self, row: Row) -> Grounded:
        used = [one for one in row["annotations"] if _covers(one, (row["height"], row["width"]))]
        marked: dict[tuple[int, int], Grounding] = {}
        for one in (_marked(one, row["caption"]) for one in used):
            assert one.span is not None
            first = marked.setdefault(one.span, one)
            if first is not one:  # "two dogs" has a mask for each: one phrase, their union
                marked[one.span] = replace(first, parts=first.parts + one.parts)
        return grounded(row["caption"], marked.values())


def _annotated(phrase: str, grounding: Row) -> Grounding:
    """Returns a phrase of GranD-f or OpenPSG; its masks are united."""
    first, last = grounding["token_positives"]
    return Grounding(phrase, (int(first), int(last)), tuple(grounding["rle_masks"]))


def _covers(annotation: Row, size: tuple[int, int]) -> bool:
    """Returns whether an annotation of Flickr is used."""
    left, top, width, height = annotation["bbox"]
    across = min(left + width, size[1]) - max(left, 0)
    down = min(top + height, size[0]) - max(top, 0)
    inside = max(across, 0) * max(down, 0) > 0
    return inside and not annotation.get("ignore") and annotation["area"] > 0 and width >= 1 and height >= 1


def _marked(annotation: Row, caption: str) -> Grounding:
    """Returns a phrase of Flickr, which is given by its span in the caption."""
    spans = annotation["tokens_positive"]
    if not spans:
        raise SailError(f"annotation {annotation['id']} has no span in `tokens_positive`; give it one or remove it")
    first, last = (int(number) for number in spans[0])
    return Grounding(caption[max(first, 0) : max(last, 0)], (first, last), (annotation["sam_mask"],))
