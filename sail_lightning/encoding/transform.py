"""Encodes a `Sample` to arrays: images are decoded once, text is tokenized, and only masks in use are decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sail_lightning.encoding import prompt_templates
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import (
    MAX_SIDE,
    CoverageRule,
    ExifImage,
    ResizeRule,
    load_image,
    load_mask,
    patch_coverage,
    patchify,
    region_mask,
)
from sail_lightning.sample import BoolMask, MaskRef, Prompt, Sample, Turn
from sail_lightning.sequence import chat_template
from sail_lightning.sequence.layout import SequenceBuilder, TokenSequence
from sail_lightning.sequence.tokenizer import SailTokenizer

Int = NDArray[np.int64]


@dataclass(frozen=True)
class EncodedRegion:
    """A visual prompt of one sample.

    Attributes:
        token_id: Id of its token `<PromptK>`.
        patch_rows: Rows of the patches that it covers.
        mention_rows: Rows of the text tokens that name it.
        box: The bounding box (x0, y0, x1, y1) of its pixels, relative to the image's width and height (0 to 1).
    """

    token_id: int
    patch_rows: Int
    mention_rows: Int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class EncodedSample:
    """One sample, ready to be packed.

    Attributes:
        sample: The record.
        sequence: Its tokens.
        patches: Patches of all images, (N, 3*P*P) uint8.
        image_size: (height, width) of the first image; None without images.
        regions: The visual prompts.
        seg_rows: Rows that hold `[SEG]`.
        masks: The mask of each `[SEG]`, (H, W) bool at the size of the image; empty if answers are left out.
        target_weight: Weight of the sample's tokens in the language loss.
        answer_tokens: Number of last tokens that begin an answer, which generation continues.
    """

    sample: Sample
    sequence: TokenSequence
    patches: NDArray[np.uint8]
    image_size: tuple[int, int] | None
    regions: tuple[EncodedRegion, ...]
    seg_rows: Int
    masks: tuple[BoolMask, ...]
    target_weight: float
    answer_tokens: int = 0

    def __len__(self) -> int:
        return len(self.sequence)

    def to(self, device: object, **_: object) -> EncodedSample:
        """Returns itself when Lightning moves a batch: `generate` packs samples and moves the pack."""
        return self


@dataclass(frozen=True)
class Encoder:
    """Encodes samples for one model.

    Args:
        tokens: The model's tokenizer.
        patch_size: Side of a patch in pixels.
        num_prompts: Number of ids that visual prompts may have, 0 to num_prompts - 1.
        max_side: Longest side of the resized image in pixels.
        max_tokens: Largest number of tokens of a sequence; a longer one is refused.
        mask_sample_weight: Weight of the language loss in samples that have masks (0.1 in the official recipe).
        resize: How the backbone needs images to be resized.
        overlap: Whether a patch under several prompts belongs to all of them (`sum`) or to the last.
        coverage: Which patches a prompt covers (`image.preprocessing.patch_coverage`).

    Raises:
        SailUsageError: `max_side` is smaller than a patch.
    """

    tokens: SailTokenizer
    patch_size: int
    num_prompts: int = 15
    max_side: int = MAX_SIDE
    max_tokens: int = 8192
    mask_sample_weight: float = 1.0
    resize: ResizeRule = "longest"
    overlap: Literal["sum", "last"] = "sum"
    coverage: CoverageRule = "any"

    def __post_init__(self) -> None:
        if self.max_side < self.patch_size:
            raise SailUsageError(f"max_side must be one patch ({self.patch_size} pixels) or more, not {self.max_side}")

    def encode(self, sample: Sample, *, answers: bool = True, answer_prefix: str = "") -> EncodedSample:
        """Encodes a sample.

        Args:
            sample: The record.
            answers: Whether the last answer is included; otherwise it is left out, to be generated.
            answer_prefix: Text that a generated answer begins with.

        Raises:
            SailError: An image or mask cannot be read, there is no question, the numbers of `[SEG]` and masks differ,
                a prompt covers nothing or is named but missing, or the sequence is too long. The message names the
                record.
        """
        try:
            return self._encode(sample, answers, answer_prefix)
        except SailError as error:
            name = " ".join(part for part in (sample.source, sample.id) if part)
            own_file = isinstance(sample.image, str | Path | ExifImage) and name == str(Path(str(sample.image)))
            has_name = not name or (own_file and name in str(error))  # errors about a file name it themselves
            raise type(error)(str(error) if has_name else f"{name}: {error}") from None

    def _encode(self, sample: Sample, answers: bool, answer_prefix: str) -> EncodedSample:
        if not answers and not (sample.turns and sample.turns[-1].question.strip()):
            raise SailUsageError("the question is empty; write what the model should answer")
        images = [load_image(reference) for reference in sample.images]
        size = (images[0].shape[0], images[0].shape[1]) if images else None
        patched = [patchify(image, self.patch_size, self.max_side, self.resize) for image in images]
        begun = self.tokens.answer_prefix(answer_prefix) if answer_prefix else []
        sequence = self.lay_out(sample.turns, tuple(grid for _, grid in patched), answers, begun)
        seg_rows = sequence.rows_of(self.tokens.seg)
        masks = self._masks(masks_in_order(sample), len(seg_rows), size) if answers else ()
        cells = [cells for cells, _ in patched] or [np.empty((0, 3 * self.patch_size**2), np.uint8)]
        return EncodedSample(
            sample=sample,
            sequence=sequence,
            patches=cells[0] if len(cells) == 1 else np.concatenate(cells),
            image_size=size,
            regions=self._regions(sample, sequence, size),
            seg_rows=seg_rows,
            masks=masks,
            target_weight=self.mask_sample_weight if masks else 1.0,
            answer_tokens=len(begun),
        )

    def lay_out(
        self,
        turns: tuple[Turn, ...],
        grids: tuple[tuple[int, int], ...],
        answers: bool = True,
        begun: Iterable[int] = (),
    ) -> TokenSequence:
        """The sequence of images and the turns about them.

        Args:
            turns: Questions and answers.
            grids: The (rows, columns) of patches of each image.
            answers: Whether the last answer is included.
            begun: Ids that the last answer begins with if it is left out.

        Raises:
            SailUsageError: A text contains a token of the layout, or the sequence is too long.
        """
        builder = SequenceBuilder(self.tokens.image_layout)
        inside = bool(grids) and self.tokens.chat.image_inside
        for number, grid in enumerate(grids):
            if inside:
                builder.text(self.tokens.line_break() if number else self.tokens.image_prefix_ids())
            builder.image(grid)
        for index, turn in enumerate(turns):
            builder.text(self.tokens.question(turn.question, after_image=inside and index == 0))
            if answers or index < len(turns) - 1:
                builder.text(self.tokens.answer(turn.answer), supervised=True)
        sequence = builder.text(list(begun)).build()
        if len(sequence) > self.max_tokens:
            raise SailUsageError(
                f"{len(sequence)} tokens are over the limit of {self.max_tokens}; "
                "shorten the text, lower max_side or raise max_tokens"
            )
        return sequence

    def _masks(self, masks: tuple[MaskRef, ...], segs: int, size: tuple[int, int] | None) -> tuple[BoolMask, ...]:
        """The decoded masks; they are decoded last, when everything else has been checked."""
        if len(masks) != segs:
            raise SailError(f"{segs} [SEG] in the text but {len(masks)} masks; give one mask per [SEG]")
        if masks and size is None:
            raise SailError("masks need an image")
        decoded = tuple(load_mask(mask) for mask in masks)
        for mask in decoded:
            if mask.shape != size:
                raise SailError(f"a mask of {mask.shape} pixels (height, width), but the image has {size}")
        return decoded

    def _regions(
        self, sample: Sample, sequence: TokenSequence, size: tuple[int, int] | None
    ) -> tuple[EncodedRegion, ...]:
        ids = prompt_ids(sample.prompts, self.num_prompts)
        denied = {turn.answer for turn in sample.turns}  # a negative prompt, which the answer says is not in the image
        mentioned = [
            i
            for i, token in enumerate(self.tokens.prompt_ids)
            if len(sequence.rows_of(token))
            and prompt_templates.NOT_THERE.format(chat_template.prompt_token(i)) not in denied
        ]
        if absent := sorted(set(mentioned) - set(ids)):
            known = ", ".join(chat_template.prompt_token(i) for i in ids) or "none"
            raise SailUsageError(f"the text names {chat_template.prompt_token(absent[0])}, but the prompts are {known}")
        if not ids:
            return ()
        if size is None:
            raise SailUsageError("visual prompts need an image")
        grid = sequence.grids[0]
        first_image = sequence.patch_rows[: grid[0] * grid[1]]
        cells: list[NDArray[np.bool_]] = []
        boxes: list[tuple[float, float, float, float]] = []
        for prompt in sample.prompts:
            pixels = region_mask(prompt, size)
            cells.append(patch_coverage(pixels, grid, self.patch_size, self.coverage).ravel())
            boxes.append(_box(pixels))
        if self.overlap == "last":
            for index, later in enumerate(cells):
                for earlier in cells[:index]:
                    earlier &= ~later
        regions = []
        for id, covered, box in zip(ids, cells, boxes, strict=True):
            token = self.tokens.prompt_ids[id]
            regions.append(EncodedRegion(token, first_image[covered], sequence.rows_of(token), box))
        return tuple(regions)


def _box(pixels: BoolMask) -> tuple[float, float, float, float]:
    """The bounding box (x0, y0, x1, y1), relative to width and height, of the pixels (H, W) that are on."""
    (top, bottom), (left, right) = (np.flatnonzero(pixels.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    height, width = pixels.shape
    return left / width, top / height, (right + 1) / width, (bottom + 1) / height


def masks_in_order(sample: Sample) -> tuple[MaskRef, ...]:
    """The mask of each `[SEG]`, in the order of the text: by `Turn.targets`, or in their own order if there are none.

    Raises:
        SailError: A turn does not have one target per `[SEG]` or names a mask that does not exist, or no turn names a
            mask.
    """
    if not any(turn.targets for turn in sample.turns):
        return sample.masks
    named: list[int] = []
    for index, turn in enumerate(sample.turns):
        count = turn.answer.count(chat_template.SEG)
        if len(turn.targets) != count:
            raise SailError(
                f"turn {index} has {count} [SEG] but {len(turn.targets)} targets; give one target per [SEG]"
            )
        if wrong := [target for target in turn.targets if not 0 <= target < len(sample.masks)]:
            raise SailError(f"turn {index} names mask {wrong[0]}, but there are {len(sample.masks)} masks")
        named += turn.targets
    if len(set(named)) < len(sample.masks):
        raise SailError(f"{len(named)} [SEG] in the text but {len(sample.masks)} masks; give one mask per [SEG]")
    return tuple(sample.masks[target] for target in named)


def prompt_ids(prompts: Iterable[Prompt], num_prompts: int) -> tuple[int, ...]:
    """The K of each prompt's `<PromptK>`: its id, or its index in the list if it has none.

    Raises:
        SailUsageError: An id is out of range or used twice.
    """
    ids = tuple(index if prompt.id is None else prompt.id for index, prompt in enumerate(prompts))
    for id in ids:
        if not 0 <= id < num_prompts:
            raise SailUsageError(f"prompt id {id} is out of range: this model knows 0 to {num_prompts - 1}")
        if ids.count(id) > 1:
            raise SailUsageError(f"two prompts have the id {id}; give each its own")
    return ids
