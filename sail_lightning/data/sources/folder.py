"""A folder of pictures, a folder of PNG masks, and a file that says in words what each mask shows."""

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
    """The union of PNG masks of one size; of each, all that is neither zero nor transparent is on.

    Raises, when called:
        SailError: a file that is missing or unreadable, or of another size than the first.
    """

    paths: tuple[str, ...]

    def __call__(self) -> BoolMask:
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
    """Your own pictures and masks.

    A mask belongs to the picture NAME if it is `NAME.png`, `NAME_anything.png` or `NAME/anything.png`; if several
    pictures fit, to the one with the longest name. Folders within the folders are searched.

    Phrases are a text file with lines of a mask's name, a tab and a phrase; or a JSON file in which mask names stand
    for a phrase or a list of phrases. A mask's name is its path in `masks` without the ending. Several phrases of one
    mask are alternatives, of which training draws one. Masks of one picture with the same phrase are one answer, their
    union. Pictures and masks of which nothing is said are not used.

    Args:
        images: folder of the pictures.
        masks: folder of the PNG masks, of the pictures' sizes; all that is neither zero nor transparent is on. It
            may lie in `images`: what is in it is no picture.
        phrases: the text or JSON file.
        kwargs: arguments of `PhraseSource`.

    Raises:
        SailUsageError: one folder for both, or as `Wording`.
    """

    version: ClassVar[int] = 3

    def __init__(self, images: str, masks: str, phrases: str, **kwargs: Any) -> None:
        super().__init__(files=[phrases], **kwargs)
        self.images, self.masks = data_path(images), data_path(masks)
        if self.images.resolve() == self.masks.resolve():
            raise SailUsageError(
                f"images and masks are one folder, {self.images}, where a mask cannot be told from a picture; "
                "put the masks into a folder of their own"
            )

    def settings(self) -> Any:
        names = "\n".join(str(path) for folder in (self.images, self.masks) for path in _files(folder))
        listing = hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()
        return [str(self.images), str(self.masks), self.part, self.val_share, self.separate, listing]

    def rows(self) -> Iterator[Row]:
        pictures = _by_name(self.images, IMAGE_SUFFIXES, self.masks)
        masks = {name: paths[0] for name, paths in _by_name(self.masks, (".png",)).items()}
        said: dict[str, list[tuple[str, str]]] = {}
        for name, phrase, place in _phrases(self.files[0]):
            fault, mask = "", name.replace("\\", "/").removesuffix(".png")
            owner = _owner(mask, pictures)
            if phrase is None:
                fault = f"{place} of {self.files[0].name} has no phrase; write a mask's name, a tab and a phrase"
            elif mask not in masks:
                fault = f"{place} of {self.files[0].name} names a mask that is absent, {self.masks / mask}.png"
            elif owner is None:
                fault = f"the mask {masks[mask]} belongs to no picture of {self.images}; call it as its picture"
            elif len(pictures[owner]) > 1:
                named = " or ".join(map(str, pictures[owner]))
                fault = f"the mask {masks[mask]} may belong to {named}; rename one of them"
            if fault:
                yield {"id": name, "wrong": fault}
            elif owner is not None and phrase is not None:
                said.setdefault(owner, []).append((clean(phrase), str(masks[mask])))
        silent = _silent(masks, pictures, said)
        for picture in kept(sorted(said), self.part, self.val_share):
            objects = [{"phrases": names, "masks": paths} for names, paths in objects_of(said[picture])]
            row: Row = {"id": picture, "image": str(pictures[picture][0]), "objects": objects}
            told = {"silent": silent[picture]} if picture in silent else {}
            first, *others = separated(row) if self.separate else [row]
            yield from ({**first, **told}, *others)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        if fault := row.get("wrong"):
            raise SailError(fault)
        turns, objects = self.wording.turns(row["objects"], sampler)
        masks = tuple(PngUnion(tuple(item["masks"])) for item in objects)
        return Sample(row["image"], turns, masks, source=str(self.files[0]), id=row["id"])

    def faults(self, index: int) -> list[str]:
        return [
            f"nothing is said of the mask {path}; add its phrase to {self.files[0].name} or remove it"
            for path in self.index[index].get("silent", [])
        ]


def _files(folder: Path) -> list[Path]:
    """All files of a folder, in alphabetical order.

    Raises:
        SailError: no such folder.
    """
    if not folder.is_dir():
        raise SailError(f"no folder {folder}")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _by_name(folder: Path, endings: tuple[str, ...], without: Path | None = None) -> dict[str, list[Path]]:
    """Files by their path in a folder without the ending; those in the folder `without` are left out."""
    found = [path for path in _files(folder) if path.suffix.lower() in endings]
    if without is not None and without.resolve().is_relative_to(folder.resolve()):
        apart = folder / without.resolve().relative_to(folder.resolve())
        found = [path for path in found if not path.is_relative_to(apart)]
    named: dict[str, list[Path]] = {}
    for path in found:
        named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return named


def _owner(mask: str, pictures: Collection[str]) -> str | None:
    """The picture with the longest name that a mask's name begins with."""
    cuts = [match.start() for match in re.finditer("[_/]", mask)]
    return next((mask[:end] for end in [len(mask), *reversed(cuts)] if mask[:end] in pictures), None)


def _silent(
    masks: Mapping[str, Path], pictures: Collection[str], said: Mapping[str, list[tuple[str, str]]]
) -> dict[str, list[str]]:
    """Masks without a phrase, of pictures of which something else is said."""
    found: dict[str, list[str]] = {}
    for name, path in masks.items():
        owner = _owner(name, pictures)
        if owner is not None and owner in said and str(path) not in {mask for _, mask in said[owner]}:
            found.setdefault(owner, []).append(str(path))
    return found


def _phrases(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Of each phrase: the mask's name, the phrase (None if there is none), and where in the file it stands."""
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if not isinstance(content, dict):
            raise SailError(f'{path} must be an object such as {{"mask name": "phrase"}}')
        for name, phrases in content.items():
            for phrase in phrases if isinstance(phrases, list) and phrases else [phrases]:
                told = isinstance(phrase, str) and bool(clean(phrase))
                yield name, phrase if told else None, json.dumps(name, ensure_ascii=False)
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` also cuts at U+2028
    except UnicodeDecodeError as error:
        raise SailError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, phrase = line.partition("\t")
            yield name.strip(), phrase if clean(phrase) else None, f"line {number}"
