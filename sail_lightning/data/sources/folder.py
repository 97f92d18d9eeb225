"""A data source of your own images and PNG masks, with a file of phrases for the masks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.indexed import data_path, read_json
from sail_lightning.data.sources.phrases import PhraseSource, clean, kept, objects_of, separated
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import IMAGE_SUFFIXES, load_mask
from sail_lightning.registry import register
from sail_lightning.sample import BoolMask, Sample


@dataclass(frozen=True)
class PngUnion:
    """A mask reference: the union of PNG masks of one size.

    Attributes:
        paths: Paths of the PNG files; their pixels that are neither zero nor transparent are on.
    """

    paths: tuple[str, ...]

    def __call__(self) -> BoolMask:
        """Returns the mask (height, width) bool.

        Raises:
            SailError: A file is missing or unreadable, or its size is not that of the first.
        """
        union = load_mask(self.paths[0]).copy()
        for path in self.paths[1:]:
            mask = load_mask(path)
            if mask.shape != union.shape:
                raise SailError(
                    f"{path} has {mask.shape} pixels (height, width), but {self.paths[0]} has {union.shape}"
                )
            union |= mask
        return union


@register
class FolderSource(PhraseSource):
    """Reads a folder of images, a folder of PNG masks and a file of phrases.

    A mask belongs to the image NAME if it is `NAME.png`, `NAME_anything.png` or `NAME/anything.png`; if several
    images fit, it belongs to the one with the longest name. Subfolders are searched.

    Phrases are given in a text file with a mask's name, a tab and a phrase on each line, or in a JSON file that maps
    mask names to a phrase or a list of phrases. A mask's name is its path below `masks` without the suffix. Several
    phrases of one mask are alternatives, of which training draws one. Masks of one image with the same phrase are one
    answer, their union. Images and masks without a phrase are not used.

    Args:
        images: Folder of the images.
        masks: Folder of the PNG masks, which have the sizes of their images; pixels that are neither zero nor
            transparent are on. It may lie inside `images`; its files are then not taken for images.
        phrases: Text or JSON file with the phrases.
        kwargs: Arguments of `PhraseSource`.

    Raises:
        SailUsageError: `images` and `masks` are one folder, or a question or answer is refused by `Wording`.
    """

    version: ClassVar[int] = 4

    def __init__(self, images: str, masks: str, phrases: str, **kwargs: Any) -> None:
        super().__init__(files=[phrases], **kwargs)
        self.images, self.masks = data_path(images), data_path(masks)
        if self.images.resolve() == self.masks.resolve():
            raise SailUsageError(
                f"images and masks are one folder, {self.images}, where masks and images cannot be distinguished; "
                "move the masks into a folder of their own"
            )

    def settings(self) -> Any:
        names = "\n".join(str(path) for folder in (self.images, self.masks) for path in _files(folder))
        listing = hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()
        return [str(self.images), str(self.masks), self.part, self.val_share, self.separate, listing]

    def rows(self) -> Iterator[Row]:
        images = _by_name(self.images, IMAGE_SUFFIXES, self.masks)
        masks = {name: paths[0] for name, paths in _by_name(self.masks, (".png",)).items()}
        phrases_of: dict[str, list[tuple[str, str]]] = {}
        for name, phrase, place in _phrases(self.files[0]):
            fault, mask = "", name.replace("\\", "/").removesuffix(".png")
            owner = _owner(mask, images)
            if phrase is None:
                fault = f"{place} of {self.files[0].name} has no phrase; write a mask's name, a tab and a phrase"
            elif mask not in masks:
                fault = f"{place} of {self.files[0].name} names a mask that is absent, {self.masks / mask}.png"
            elif owner is None:
                fault = f"the mask {masks[mask]} belongs to no image of {self.images}; name it after its image"
            elif len(images[owner]) > 1:
                named = " or ".join(map(str, images[owner]))
                fault = f"the mask {masks[mask]} may belong to {named}; rename one of them"
            if fault:
                yield {"id": name, "fault": fault}
            elif owner is not None and phrase is not None:
                phrases_of.setdefault(owner, []).append((clean(phrase), str(masks[mask])))
        unused = _masks_without_phrase(masks, images, phrases_of)
        for image in kept(sorted(phrases_of), self.part, self.val_share):
            objects = [{"phrases": names, "masks": paths} for names, paths in objects_of(phrases_of[image])]
            row: Row = {"id": image, "image": str(images[image][0]), "objects": objects}
            left_out = {"unused": unused[image]} if image in unused else {}
            first, *others = separated(row) if self.separate else [row]
            yield from ({**first, **left_out}, *others)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        turns, objects = self.wording.turns(row["objects"], sampler)
        masks = tuple(PngUnion(tuple(item["masks"])) for item in objects)
        return Sample(row["image"], turns, masks, source=str(self.files[0]), id=row["id"])

    def faults(self, index: int) -> list[str]:
        return [
            f"the mask {path} has no phrase; add one to {self.files[0].name}, or remove the mask"
            for path in self.index[index].get("unused", [])
        ]


def _files(folder: Path) -> list[Path]:
    """Returns all files of a folder and its subfolders in alphabetical order.

    Raises:
        SailError: The folder does not exist.
    """
    if not folder.is_dir():
        raise SailError(f"no folder {folder}")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _by_name(folder: Path, endings: tuple[str, ...], without: Path | None = None) -> dict[str, list[Path]]:
    """Returns files by their path below a folder without the suffix; files in the folder `without` are left out."""
    found = [path for path in _files(folder) if path.suffix.lower() in endings]
    if without is not None and without.resolve().is_relative_to(folder.resolve()):
        apart = folder / without.resolve().relative_to(folder.resolve())
        found = [path for path in found if not path.is_relative_to(apart)]
    named: dict[str, list[Path]] = {}
    for path in found:
        named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return named


def _owner(mask: str, images: Collection[str]) -> str | None:
    """Returns the image with the longest name that a mask's name begins with; None if there is none."""
    cuts = [match.start() for match in re.finditer("[_/]", mask)]
    return next((mask[:end] for end in [len(mask), *reversed(cuts)] if mask[:end] in images), None)


def _masks_without_phrase(
    masks: Mapping[str, Path], images: Collection[str], phrases_of: Mapping[str, list[tuple[str, str]]]
) -> dict[str, list[str]]:
    """Returns masks without a phrase by image, for images that have other masks with phrases."""
    found: dict[str, list[str]] = {}
    for name, path in masks.items():
        owner = _owner(name, images)
        if owner is not None and owner in phrases_of and str(path) not in {mask for _, mask in phrases_of[owner]}:
            found.setdefault(owner, []).append(str(path))
    return found


def _phrases(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yields the mask's name, the phrase (None if there is none) and the position in the file, for each phrase."""
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if not isinstance(content, dict):
            raise SailError(f'{path} must be an object such as {{"mask name": "phrase"}}')
        for name, phrases in content.items():
            for phrase in phrases if isinstance(phrases, list) and phrases else [phrases]:
                usable = isinstance(phrase, str) and bool(clean(phrase))
                yield name, phrase if usable else None, json.dumps(name, ensure_ascii=False)
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` also cuts at U+2028
    except UnicodeDecodeError as error:
        raise SailError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, phrase = line.partition("\t")
            yield name.strip(), phrase if clean(phrase) else None, f"line {number}"
