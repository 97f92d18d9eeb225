"""Looks at one record at a time: its picture, its masks, its prompts, its words, and how long it gets."""

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
"""What an answer says, in any case of letters, whose mask is empty."""
KNOWN_PROMPTS = 15
"""Ids of prompts that a model knows where no model is named: the paper's number."""
PICTURES_KEPT = 64
"""Pictures of which a process remembers what it found: records that follow each other often share theirs."""
_PROMPT = re.compile(chat_template.prompt_token(0).replace("0", r"(\d+)"))


@dataclass
class Finding:
    """What was seen of one record.

    `key` is the same for records that are the same: picture, turns, masks and prompts; empty where a mask cannot be
    decoded. `pictures` are the `image_hash` of each of its pictures that is a file; `contents` are hashes of the
    bytes of all its pictures, 0 for one that is no file or cannot be read.
    """

    turns: int = 0
    masks: int = 0
    prompts: int = 0
    faults: list[Fault] = field(default_factory=list)
    key: str = ""
    pictures: tuple[int, ...] = ()
    contents: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Picture:
    """A picture's (height, width), None if it cannot be read; a kind of fault and a message; a hash of its file."""

    size: Size | None
    kind: str = ""
    message: str = ""
    content: int = 0


class _Wrong(Exception):
    """A mask that has this kind of fault."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Checker:
    """Looks at records.

    Args:
        encoder: of the model that shall read them; without one, lengths are not looked at.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.limit = encoder.max_tokens if encoder else sys.maxsize
        self.encoder = replace(encoder, max_tokens=sys.maxsize) if encoder else None
        self.num_prompts = encoder.num_prompts if encoder else KNOWN_PROMPTS
        self._seen: dict[str, _Picture] = {}

    def look(self, source: Source, index: int) -> Finding:
        """What there is to see of a record: masks and prompts on `Source.whole`, lengths on `source[index]`."""
        finding = Finding()
        sample: Sample | None = None
        try:
            sample = source.whole(index)
            finding = self._whole(sample, index)
            for message in source.faults(index):
                finding.faults.append(_fault("source_fault", sample, index, message))
            self._drawn(source[index], index, finding)
        except Exception as error:  # whatever a source or a file raises, the next record is looked at all the same
            finding.faults.append(_broken(source, index, sample, error))
        file = first_file(source)
        finding.faults = [fault if fault.file else replace(fault, file=file) for fault in finding.faults]
        return finding

    # -- all that a record has ----------------------------------------------------------------------------------------

    def _whole(self, sample: Sample, index: int) -> Finding:
        finding = Finding(len(sample.turns), len(sample.masks), len(sample.prompts))

        def add(kind: str, message: str, file: str = "") -> None:
            finding.faults.append(_fault(kind, sample, index, message, file))

        if not sample.turns:
            add("empty_record", "it has no turns")
        for kind, message in (*_counts(sample), *self._prompt_words(sample, every=True)):
            add(kind, message)
        images = sample.images
        looked = [self._picture(image) for image in images]
        for image, picture in zip(images, looked, strict=True):
            if picture.kind:
                add(picture.kind, picture.message, _file(image))
        size = looked[0].size if looked else None
        annotated = set(_annotated_sizes(sample))
        expected = next(iter(annotated)) if len(annotated) == 1 else size
        if size and expected and size != expected:
            message = f"the picture is {_shown(size)} pixels, but its annotation says {_shown(expected)}"
            add("picture_size", message, _file(images[0]))
        if not images and (sample.masks or sample.prompts):
            add("missing_picture", "masks and prompts need a picture, and the record names none")
        masks: list[BoolMask | None] = []
        for place, reference in enumerate(sample.masks):
            try:
                masks.append(_mask(reference, expected))
            except _Wrong as wrong:
                masks.append(None)
                add(wrong.kind, f"mask {place}: {wrong}")
        for place, turn in _owners(sample):
            mask = masks[place]
            if mask is not None and not mask.any() and NO_TARGET not in turn.answer.lower():
                add("empty_mask", f"mask {place} is empty, but its answer is {turn.answer[:60]!r}")
        for place, prompt in enumerate(sample.prompts):
            try:
                masks.append(_region(prompt, expected))
            except _Wrong as wrong:
                masks.append(None)
                add(wrong.kind, f"prompt {place}: {wrong}")
        known = [mask for mask in masks if mask is not None]
        finding.key = _key(sample, known) if len(known) == len(masks) else ""
        finding.pictures = tuple(image_hash(image) for image in images if isinstance(image, str | Path))
        finding.contents = tuple(picture.content for picture in looked)
        return finding

    def _picture(self, image: ImageRef) -> _Picture:
        if not isinstance(image, str | Path):
            return _looked_at(image)
        name = str(image)
        if name not in self._seen:
            if len(self._seen) >= PICTURES_KEPT:
                self._seen.pop(next(iter(self._seen)))
            self._seen[name] = _looked_at(image)
        return self._seen[name]

    # -- what a model reads -------------------------------------------------------------------------------------------

    def _drawn(self, sample: Sample, index: int, finding: Finding) -> None:
        """Adds faults of a record as a model reads it, where a fault of that kind is not known already."""
        known = {fault.kind for fault in finding.faults}
        for kind, message in (*_counts(sample), *self._prompt_words(sample, every=False), *self._length(sample)):
            if kind not in known:
                finding.faults.append(_fault(kind, sample, index, message))

    def _prompt_words(self, sample: Sample, every: bool) -> Iterator[tuple[str, str]]:
        """Faults of prompt ids. `every`: of all prompts a record has, which may be more than a model can be told."""
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
        sizes = [self._picture(image).size for image in sample.images]
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
    """What names a record in a report."""
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
    kind = (
        "missing_picture" if message.startswith(("no image ", "no picture ")) else "broken_record"
    )  # of a source that looks for it
    return Fault(kind, file, name, index, message)


def _file(image: ImageRef) -> str:
    return str(image) if isinstance(image, str | Path) else ""


def _looked_at(image: ImageRef) -> _Picture:
    """Decodes a picture whole, and hashes its file."""
    try:
        height, width, _ = load_image(image).shape
    except SailError as error:
        missing = isinstance(image, str | Path) and not Path(image).exists()
        return _Picture(None, "missing_picture" if missing else "corrupt_picture", str(error).partition(";")[0])
    kind, told = "", ""
    if (turn := orientation(image)) != 1:
        kind, told = (
            "turned_picture",
            f"EXIF says that it is turned (orientation {turn}), and it is read as it is stored",
        )
    return _Picture((height, width), kind, told, _content_hash(image))


def _content_hash(image: ImageRef) -> int:
    """The bytes of a picture's file as a number below 2**64; 0 if it has none, or it went away."""
    try:
        content = Path(image).read_bytes() if isinstance(image, str | Path) else image() if callable(image) else None
    except (OSError, SailError):
        return 0
    if not isinstance(content, bytes):
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _annotated_sizes(sample: Sample) -> Iterator[Size]:
    """The sizes that the picture has by its annotation."""
    for reference in (*sample.masks, *(prompt.mask for prompt in sample.prompts if isinstance(prompt, Mask))):
        bare = reference.mask if isinstance(reference, SimulatedPrompt) else reference
        if isinstance(bare, Segmentation):
            yield bare.size


def _counts(sample: Sample) -> Iterator[tuple[str, str]]:
    """Whether the `[SEG]` of each turn, its targets and the record's masks agree."""
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
    """Each mask's place and the turn that it belongs to: by its targets, or by the order of the `[SEG]`."""
    following = 0
    for turn in sample.turns:
        count = turn.answer.count(chat_template.SEG)
        for target in turn.targets or range(following, following + count):
            if 0 <= target < len(sample.masks):
                yield target, turn
        following += count


def _mask(reference: MaskRef, expected: Size | None) -> BoolMask | None:
    """A decoded mask; None if it would have to read a picture that cannot be read.

    Raises:
        _Wrong: it is of another size than expected, or cannot be decoded.
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
                raise _Wrong("mask_size", message)
    try:
        mask = load_mask(reference)
    except SailError as error:
        if expected is None and callable(reference) and not isinstance(reference, Segmentation):
            return None
        raise _Wrong("undecodable_mask", str(error).partition(";")[0]) from None
    if expected is not None and mask.shape != expected:
        raise _Wrong("mask_size", f"{' x '.join(map(str, mask.shape))} pixels, but the picture is {_shown(expected)}")
    return mask


def _region(prompt: Prompt, size: Size | None) -> BoolMask | None:
    """The pixels of a prompt; None where there is no picture to draw it on.

    Raises:
        _Wrong: it covers nothing, or its mask has a fault.
    """
    if isinstance(prompt, Mask):
        mask = _mask(prompt.mask, size)
        if mask is not None and not mask.any():
            raise _Wrong("empty_prompt", "its mask is empty")
        return mask
    try:
        return region_mask(prompt, size) if size else None
    except SailError as error:
        raise _Wrong("empty_prompt", str(error)) from None


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
