"""GLaMM's grounded captions: GranD-f, OpenPSG, RefCOCOg and Flickr30k. One question, one caption, a mask per phrase."""

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
from sail_lightning.data.sources.images import UnsizedSegmentation, picture_of, picture_path
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json, rows_of
from sail_lightning.data.sources.refcoco import as_phrase
from sail_lightning.data.sources.spans import Grounded, Grounding, found, grounded
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import MaskRef, Sample, Turn

FEWEST_WORDS, SHORTEST_SIDE = 3, 32
"""Of a Flickr photo's caption, and of the photo in pixels."""


class GroundedCaptions(IndexedSource):
    """A caption per photo, whose phrases have masks. Phrases that cannot be marked are left out, and told by `faults`.

    Args:
        annotations: the JSON file.
        images: folder of the photos.
    """

    picture_key: ClassVar[str] = "file_name"
    """Where a record names its photo."""

    def __init__(self, annotations: str, images: str) -> None:
        super().__init__([annotations])
        self.images = data_path(images)

    @abstractmethod
    def read(self, row: Row) -> Grounded:
        """The caption of a row, and where its phrases stand."""

    def mask(self, row: Row, grounding: Grounding) -> MaskRef:
        """The mask of a phrase."""
        return Segmentation(grounding.parts, (row["height"], row["width"]))

    def settings(self) -> Any:
        return str(self.images)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        told = self.read(row)
        turn = Turn(
            sampler.choice(prompt_templates.GROUNDED), told.answer, "caption", tuple(range(len(told.groundings)))
        )
        masks = tuple(self.mask(row, grounding) for grounding in told.groundings)
        return Sample(picture_of(row, self.picture_key), (turn,), masks, source=str(self.files[0]), id=row["id"])

    def faults(self, index: int) -> list[str]:
        try:
            return list(self.read(self.index[index]).faults)
        except (SailError, KeyError, TypeError, ValueError, IndexError, AttributeError):
            return []  # of a record that cannot be read, which its sample tells


@register
class GranDf(GroundedCaptions):
    """GranD-f, annotated by hand: a list of captions with `groundings`, by phrase.

    A phrase with a null grounding has no mask and stays plain text.

    Args:
        annotations: the JSON file.
        images: folder of the photos.
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
        yield {"id": id, "image": picture_path(self.images, item, self.picture_key), **kept}

    def read(self, row: Row) -> Grounded:
        caption = row["caption"].strip('"').strip()
        return grounded(caption, [_annotated(*item) for item in row["groundings"].items() if item[1] is not None])


@register
class OpenPsgGCG(GranDf):
    """OpenPSG with captions, laid out as GranD-f.

    Args:
        annotations: the JSON file.
        images: the folder above `train2017` and `val2017`, with which each `file_name` begins.
    """

    def __init__(
        self,
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/OpenPsgGCG_train.json",
        images: str = str(Path(layout.COCO_TRAIN2017).parent),
    ) -> None:
        super().__init__(annotations, images)


@register
class RefCOCOgGCG(GroundedCaptions):
    """RefCOCOg with captions: a list of `{id: {"img_file_name", "caption", "refs"}}`.

    A ref's sentence is looked up in the caption as whole words, whatever its case; one that is not there is left out
    with its mask (E10). The caption is in lower case, as the official code has it.

    Args:
        annotations: the JSON file.
        images: folder of the photos, COCO's of train2014.
    """

    picture_key = "img_file_name"

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
            yield {"id": str(id), "image": picture_path(self.images, item, self.picture_key), **kept}

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
        return UnsizedSegmentation(grounding.parts, picture_of(row, self.picture_key))


@register
class FlickrGCG(GroundedCaptions):
    """Flickr30k Entities with masks, laid out as a COCO file whose images have captions.

    As in the official code, photos are left out whose caption has fewer than three words or whose shorter side is
    below 32 pixels, and annotations that say `ignore`, lie outside the photo, or cover nothing. Of several spans the
    first counts; annotations of one span are united.

    Args:
        annotations: the JSON file.
        images: folder of the photos.
    """

    def __init__(
        self,
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/flickr_mergedGT_GCG_train.json",
        images: str = f"{layout.GLAMM_IMAGES}/flickr30k/Flickr30K",
    ) -> None:
        super().__init__(annotations, images)

    def rows(self) -> Iterator[Row]:
        content = read_json(self.files[0])
        by_photo: dict[Any, list[Row]] = {}
        for annotation in content["annotations"]:
            by_photo.setdefault(annotation.get("image_id"), []).append(annotation)
        for photo in content["images"]:
            caption, sides = photo.get("caption") or "", (photo.get("height") or 0, photo.get("width") or 0)
            if len(caption.split(" ")) >= FEWEST_WORDS and min(sides) >= SHORTEST_SIDE:
                id = photo.get("id")
                row = {"id": str(id), "image": picture_path(self.images, photo, self.picture_key), "caption": caption}
                yield row | {"height": sides[0], "width": sides[1], "annotations": by_photo.get(id, [])}

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
    """A phrase of GranD-f or OpenPSG. The union of its masks is one mask."""
    first, last = grounding["token_positives"]
    return Grounding(phrase, (int(first), int(last)), tuple(grounding["rle_masks"]))


def _covers(annotation: Row, size: tuple[int, int]) -> bool:
    """Whether an annotation of Flickr is to be used."""
    left, top, width, height = annotation["bbox"]
    across = min(left + width, size[1]) - max(left, 0)
    down = min(top + height, size[0]) - max(top, 0)
    inside = max(across, 0) * max(down, 0) > 0
    return inside and not annotation.get("ignore") and annotation["area"] > 0 and width >= 1 and height >= 1


def _marked(annotation: Row, caption: str) -> Grounding:
    """A phrase of Flickr, which its span alone names."""
    spans = annotation["tokens_positive"]
    if not spans:
        raise SailError(f"annotation {annotation['id']} has no span in `tokens_positive`; give it one or remove it")
    first, last = (int(number) for number in spans[0])
    return Grounding(caption[max(first, 0) : max(last, 0)], (first, last), (annotation["sam_mask"],))
