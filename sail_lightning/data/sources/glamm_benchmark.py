"""GLaMM's benchmark of grounded captions as a data source: the val and test splits of GranD-f."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json
from sail_lightning.data.sources.spans import Grounding, found, grounded
from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.sequence.chat_template import PHRASE_END, PHRASE_START, SEG


@register
class GranDfBenchmark(IndexedSource):
    """Reads the GranD-f benchmark: one question per image, as asked in training (official code: differently, E20).

    The true answers are in two COCO files, `SPLIT_gcg_coco_caption_gt.json` with a caption and its phrases (`labels`)
    per image, and `SPLIT_gcg_coco_mask_gt.json` with their masks in the same order. No phrase is dropped: one that is
    not in the caption, or overlaps another, follows the caption. `Sample.meta["caption"]` is the caption without marks.

    Args:
        split: `val` or `test`.
        annotations: Folder of the two files.
        images: Folder of the images of both splits.
    """

    def __init__(
        self,
        split: Literal["val", "test"] = "val",
        annotations: str = f"{layout.GLAMM_ANNOTATIONS}/gcg_val_test",
        images: str = f"{layout.GLAMM_IMAGES}/grandf/val_test",
    ) -> None:
        folder = Path(annotations)
        super().__init__([folder / f"{split}_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask")])
        self.images = data_path(images)

    def settings(self) -> Any:
        return str(self.images)

    def rows(self) -> Iterator[Row]:
        captions, masks = (read_json(file) for file in self.files)
        by_image: dict[Any, list[Any]] = {}
        for annotation in masks["annotations"]:
            by_image.setdefault(annotation.get("image_id"), []).append(annotation.get("segmentation"))
        names = {item["id"]: item.get("file_name") or f"{item['id']}.jpg" for item in captions["images"]}
        for annotation in captions["annotations"]:
            id = annotation.get("image_id")
            kept = {key: annotation[key] for key in ("caption", "labels") if key in annotation}
            image = str(self.images / names.get(id, f"{id}.jpg"))
            yield {"id": str(id), "image": image, "masks": by_image.get(id, []), **kept}

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        caption, phrases, masks = row["caption"].strip(), row["labels"], row["masks"]
        if len(phrases) != len(masks):
            raise SailError(f"{len(phrases)} phrases in the caption file but {len(masks)} masks in the mask file")
        spans = found(caption, phrases)
        all_of_them = [Grounding(*one) for one in zip(phrases, spans, ((mask,) for mask in masks), strict=True)]
        marked = grounded(caption, all_of_them)
        after = [one for one in all_of_them if not any(one is kept for kept in marked.groundings)]
        answer = " ".join([marked.answer, *(f"{PHRASE_START} {one.phrase} {PHRASE_END} {SEG}" for one in after)])
        order = [*marked.groundings, *after]
        turn = Turn(prompt_templates.GROUNDED[0], answer, "caption", tuple(range(len(order))))
        targets = tuple(Segmentation(one.parts, tuple(one.parts[0]["size"])) for one in order)
        meta = {"caption": caption}
        return Sample(row["image"], (turn,), targets, source=str(self.files[0]), id=row["id"], meta=meta)
