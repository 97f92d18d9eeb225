"""Checks one record at a time: its images, masks, prompts and text, and its length in tokens."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sail_lightning.data.doctor.faults import Fault
from sail_lightning.data.doctor.leaf_sources import first_file
from sail_lightning.data.prompting import SimulatedPrompt
from sail_lightning.data.records import image_hash
from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.images import UnsizedSegmentation
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.encoding import prompt_templates
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import load_image, load_mask, orientation, region_mask, resized_size
from sail_lightning.image.segmentations import Segmentation
from sail_lightning.sample import BoolMask, ImageRef, Mask, MaskRef, Prompt, Sample, Turn
from sail_lightning.sequence import chat_template

Size = tuple[int, int]
NO_TARGET = "no target"
"""Text that an answer with an empty mask contains, in upper or lower case."""
KNOWN_PROMPTS = 15
"""Number of prompt ids that is assumed if the config has no model; that of the paper."""
IMAGES_KEPT = 64
"""Number of images that a process remembers; consecutive records often share one."""
_PROMPT = re.compile(chat_template.prompt_token(0).replace("0", r"(\d+)"))


@dataclass
class Finding:
    """Result of checking one record.

    Attributes:
        turns: Number of turns.
        masks: Number of masks.
        prompts: Number of visual prompts.
        faults: Faults of the record.
        key: Hash of images, turns, masks and prompts, equal for duplicates; empty if a mask cannot be decoded.
        images: `image_hash` of each image that is a file.
        contents: Hash of the bytes of each image; 0 for one that is not a file or cannot be read.
    """

    turns: int = 0
    masks: int = 0
    prompts: int = 0
    faults: list[Fault] = field(default_factory=list)
    key: str = ""
    images: tuple[int, ...] = ()
    contents: tuple[int, ...] = ()


@dataclass(frozen=True)
class _LoadedImage:
    """Result of loading an image: its (height, width), None if it cannot be read; a fault; a hash of its file."""

    size: Size | None
    kind: str = ""
    message: str = ""
    content: int = 0


class _MaskFault(Exception):
    """Raised for a mask with a fault of a kind in `KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Checker:
    """Checks records.

    Args:
        encoder: Encoder of the model that will read them; without one, lengths are not checked.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.limit = encoder.max_tokens if encoder else sys.maxsize
        self.encoder = replace(encoder, max_tokens=sys.maxsize) if encoder else None
        self.num_prompts = encoder.num_prompts if encoder else KNOWN_PROMPTS
        self._seen: dict[str, _LoadedImage] = {}

    def look(self, source: Source, index: int) -> Finding:
        """Checks a record: masks and prompts of `Source.full_record`, and the length of `source[index]`."""
        finding = Finding()
        sample: Sample | None = None
        try:
            sample = source.full_record(index)
            finding = self._check_full(sample, index)
            for message in source.faults(index):
                finding.faults.append(_fault("source_fault", sample, index, message))
            self._check_encoded(source[index], index, finding)
        except Exception as error:  # whatever a source or a file raises, the next record is checked
            finding.faults.append(_broken(source, index, sample, error))
        file = first_file(source)
        finding.faults = [fault if fault.file else replace(fault, file=file) for fault in finding.faults]
        return finding

    # -- the full record ----------------------------------------------------------------------------------------

    def _check_full(self, sample: Sample, index: int) -> Finding:
        finding = Finding(len(sample.turns), len(sample.masks), len(sample.prompts))

        def add(kind: str, message: str, file: str = "") -> None:
            finding.faults.append(_fault(kind, sample, index, message, file))

        if not sample.turns:
            add("empty_record", "it has no turns")
        for kind, message in (*_counts(sample), *self._prompt_faults(sample, every=True)):
            add(kind, message)
        images = sample.images
        loaded = [self._load(image) for image in images]
        for image, found in zip(images, loaded, strict=True):
            if found.kind:
                add(found.kind, found.message, _file(image))
        size = loaded[0].size if loaded else None
        annotated = set(_annotated_sizes(sample))
        expected = next(iter(annotated)) if len(annotated) == 1 else size
        if size and expected and size != expected:
            message = f"the image is {_shown(size)} pixels, but its annotation says {_shown(expected)}"
            add("image_size", message, _file(images[0]))
        if not images and (sample.masks or sample.prompts):
            add("missing_image", "masks and prompts need an image, and the record names none")
        masks: list[BoolMask | None] = []
        for place, reference in enumerate(sample.masks):
            try:
                masks.append(_mask(reference, expected))
            except _MaskFault as fault:
                masks.append(None)
                add(fault.kind, f"mask {place}: {fault}")
        for place, turn in _owners(sample):
            mask = masks[place]
            if mask is not None and not mask.any() and NO_TARGET not in turn.answer.lower():
                add("empty_mask", f"mask {place} is empty, but its answer is {turn.answer[:60]!r}")
        for place, prompt in enumerate(sample.prompts):
            try:
                masks.append(_region(prompt, expected))
            except _MaskFault as fault:
                masks.append(None)
                add(fault.kind, f"prompt {place}: {fault}")
        known = [mask for mask in masks if mask is not None]
        finding.key = _key(sample, known) if len(known) == len(masks) else ""
        finding.images = tuple(image_hash(image) for image in images if isinstance(image, str | Path))
        finding.contents = tuple(found.content for found in loaded)
        return finding

    def _load(self, image: ImageRef) -> _LoadedImage:
        if not isinstance(image, str | Path):
            return _load_image(image)
        name = str(image)
        if name not in self._seen:
            if len(self._seen) >= IMAGES_KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[name] = _load_image(image)
        return self._seen[name]

    # -- what a model reads -------------------------------------------------------------------------------------------

    def _check_encoded(self, sample: Sample, index: int, finding: Finding) -> None:
        """Adds faults of a record as a model reads it, unless a fault of that kind is already known."""
        known = {fault.kind for fault in finding.faults}
        for kind, message in (*_counts(sample), *self._prompt_faults(sample, every=False), *self._length(sample)):
            if kind not in known:
                finding.faults.append(_fault(kind, sample, index, message))

    def _prompt_faults(self, sample: Sample, every: bool) -> Iterator[tuple[str, str]]:
        """Yields faults of prompt ids; with `every`, a record may have more prompts than a model has ids."""
        ids = [place if prompt.id is None else prompt.id for place, prompt in enumerate(sample.prompts)]
        known = max(self.num_prompts, len(ids) if every else 0)
        for id in dict.fromkeys(ids):
            if not 0 <= id < known:
                yield "prompt_id_range", f"prompt id {id} is out of range: 0 to {self.num_prompts - 1} are known"
            if ids.count(id) > 1:
                yield "prompt_id_twice", f"{ids.count(id)} prompts carry the id {id}"
        words = " ".join(f"{turn.question} {turn.answer}" for turn in sample.turns)
        answers = {turn.answer for turn in sample.turns}
        for id in dict.fromkeys(map(int, _PROMPT.findall(words))):
            denied = prompt_templates.NOT_THERE.format(chat_template.prompt_token(id)) in answers
            if id not in ids and not denied:
                names = ", ".join(map(chat_template.prompt_token, ids)) or "none"
                yield "absent_prompt", f"the text names {chat_template.prompt_token(id)}, but the prompts are {names}"

    def _length(self, sample: Sample) -> Iterator[tuple[str, str]]:
        sizes = [self._load(image).size for image in sample.images]
        if self.encoder is None or None in sizes:
            return
        patch = self.encoder.patch_size
        resized = [resized_size(size, patch, self.encoder.max_side, self.encoder.resize) for size in sizes if size]
        try:
            grids = tuple((height // patch, width // patch) for height, width in resized)
            length = len(self.encoder.lay_out(sample.turns, grids))
        except SailUsageError as error:
            yield "reserved_token", str(error)
            return
        if length > self.limit:
            yield "too_long", f"{length} tokens are over the limit of {self.limit}"


def record_name(source: Source, index: int, sample: Sample | None = None) -> str:
    """Returns the name of a record for reports."""
    if sample is not None and sample.id:
        return sample.id
    if isinstance(source, IndexedSource):
        row = source.index[index]
        return str(row.get("id") or row.get("image") or f"record {index}")
    return f"record {index}"


def _fault(kind: str, sample: Sample, index: int, message: str, file: str = "") -> Fault:
    return Fault(kind, file or sample.source, sample.id or f"record {index}", index, message)


def _broken(source: Source, index: int, sample: Sample | None, error: Exception) -> Fault:
    file, name = (sample and sample.source) or first_file(source), record_name(source, index, sample)
    message = str(error) if isinstance(error, SailError) else f"{type(error).__name__}: {error}"
    message = message.removeprefix(f"{file} {name}: ")
    kind = "missing_image" if message.startswith("no image ") else "broken_record"  # of sources that look for it
    return Fault(kind, file, name, index, message)


def _file(image: ImageRef) -> str:
    return str(image) if isinstance(image, str | Path) else ""


def _load_image(image: ImageRef) -> _LoadedImage:
    """Decodes an image completely, and hashes its file."""
    try:
        height, width, _ = load_image(image).shape
    except SailError as error:
        missing = isinstance(image, str | Path) and not Path(image).exists()
        return _LoadedImage(None, "missing_image" if missing else "corrupt_image", str(error).partition(";")[0])
    kind, message = "", ""
    if (turn := orientation(image)) != 1:
        kind, message = (
            "turned_image",
            f"EXIF says that it is turned (orientation {turn}), and it is read as it is stored",
        )
    return _LoadedImage((height, width), kind, message, _content_hash(image))


def _content_hash(image: ImageRef) -> int:
    """Returns a hash of an image file's bytes as a number below 2**64; 0 if there is no file."""
    try:
        content = Path(image).read_bytes() if isinstance(image, str | Path) else image() if callable(image) else None
    except (OSError, SailError):
        return 0
    if not isinstance(content, bytes):
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _annotated_sizes(sample: Sample) -> Iterator[Size]:
    """Yields the (height, width) of the image according to its annotations."""
    for reference in (*sample.masks, *(prompt.mask for prompt in sample.prompts if isinstance(prompt, Mask))):
        bare = reference.mask if isinstance(reference, SimulatedPrompt) else reference
        if isinstance(bare, Segmentation):
            yield bare.size


def _counts(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yields faults where the `[SEG]` of a turn, its targets and the record's masks disagree."""
    segs = [(turn.question + turn.answer).count(chat_template.SEG) for turn in sample.turns]
    if sum(segs) != len(sample.masks):
        yield "seg_count", f"{sum(segs)} [SEG] in the text, but {len(sample.masks)} masks"
        return
    for place, (turn, count) in enumerate(zip(sample.turns, segs, strict=True)):
        if turn.targets and len(turn.targets) != count:
            yield "seg_count", f"turn {place} has {count} [SEG], but {len(turn.targets)} targets"
        elif not all(0 <= target < len(sample.masks) for target in turn.targets):
            yield "seg_count", f"turn {place} has targets {list(turn.targets)}, but there are {len(sample.masks)} masks"


def _owners(sample: Sample) -> Iterator[tuple[int, Turn]]:
    """Yields each mask's index and the turn that it belongs to, by its targets or by the order of the `[SEG]`."""
    following = 0
    for turn in sample.turns:
        count = turn.answer.count(chat_template.SEG)
        for target in turn.targets or range(following, following + count):
            if 0 <= target < len(sample.masks):
                yield target, turn
        following += count


def _mask(reference: MaskRef, expected: Size | None) -> BoolMask | None:
    """Returns a decoded mask; None if that needs an image that cannot be read.

    Raises:
        _MaskFault: The mask has an unexpected size, or cannot be decoded.
    """
    if isinstance(reference, SimulatedPrompt) and _mask(reference.mask, expected) is None:
        return None
    if isinstance(reference, UnsizedSegmentation) and expected is not None:
        reference = Segmentation(reference.parts, expected)
    if isinstance(reference, dict):
        reference = Segmentation((reference,), expected or tuple(reference.get("size", ())))
    if isinstance(reference, Segmentation):
        for part in reference.parts:
            if isinstance(part, dict) and tuple(part.get("size", ())) != reference.size:
                message = f"an RLE of size {part.get('size')}, but the image has {list(reference.size)}"
                raise _MaskFault("mask_size", message)
    try:
        mask = load_mask(reference)
    except SailError as error:
        if expected is None and callable(reference) and not isinstance(reference, Segmentation):
            return None
        raise _MaskFault("undecodable_mask", str(error).partition(";")[0]) from None
    if expected is not None and mask.shape != expected:
        raise _MaskFault("mask_size", f"{' x '.join(map(str, mask.shape))} pixels, but the image is {_shown(expected)}")
    return mask


def _region(prompt: Prompt, size: Size | None) -> BoolMask | None:
    """Returns the pixels of a prompt; None if there is no image to draw it on.

    Raises:
        _MaskFault: The prompt covers no pixel, or its mask has a fault.
    """
    if isinstance(prompt, Mask):
        mask = _mask(prompt.mask, size)
        if mask is not None and not mask.any():
            raise _MaskFault("empty_prompt", "its mask is empty")
        return mask
    try:
        return region_mask(prompt, size) if size else None
    except SailError as error:
        raise _MaskFault("empty_prompt", str(error)) from None


def _key(sample: Sample, masks: list[BoolMask]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for image in sample.images:
        digest.update(
            str(image).encode(errors="surrogatepass") if isinstance(image, str | Path) else load_image(image).tobytes()
        )
    for turn in sample.turns:
        digest.update(repr((turn.question, turn.answer, turn.choices)).encode())
    for mask in masks:
        digest.update(np.packbits(mask).tobytes())
    digest.update(repr([prompt.id if isinstance(prompt, Mask) else prompt for prompt in sample.prompts]).encode())
    return digest.hexdigest()


def _shown(size: Size) -> str:
    return f"{size[0]} x {size[1]} (height x width)"
