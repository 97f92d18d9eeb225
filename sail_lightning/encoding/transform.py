"""A `Sample` record to tensors: the picture decoded once, words laid out, only the masks that are used decoded."""

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
    ResizeRule,
    Upright,
    load_image,
    load_mask,
    patch_coverage,
    patchify,
    region_mask,
)
from sail_lightning.sample import BoolMask, MaskRef, Prompt, Sample, Turn
from sail_lightning.sequence import chat_template
from sail_lightning.sequence.layout import Sequence, SequenceBuilder
from sail_lightning.sequence.tokenizer import Tokens

Int = NDArray[np.int64]


@dataclass(frozen=True)
class EncodedRegion:
    """A visual prompt of one sample: its token id, the vision tokens it covers (rows), the text tokens that name it,
    and the `box` (x0, y0, x1, y1) around its pixels, in shares of the picture's width and height."""

    token_id: int
    patch_rows: Int
    mention_rows: Int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class EncodedSample:
    """One sample, ready to be packed. `masks` are (H, W) bool at the picture's own size, one per `[SEG]` row; the last
    `answer_tokens` tokens begin an answer that is to be continued."""

    sample: Sample
    sequence: Sequence
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
        """Itself, where Lightning moves a batch to a device: `generate` packs encoded samples, and moves the pack."""
        return self


@dataclass(frozen=True)
class Encoder:
    """Encodes samples for one model.

    Args:
        tokens: the model's tokenizer.
        patch_size: pixels per patch side.
        num_prompts: ids that visual prompts may carry, 0 .. num_prompts - 1.
        max_side: longest side of the resized picture, in pixels.
        max_tokens: longest sequence; a longer one is refused.
        mask_sample_weight: weight of the language loss in samples that own masks (0.1 in the official recipe).
        resize: how pictures are resized, as the backbone wants them.
        overlap: whether a patch under several prompts belongs to all of them, or to the last.
        coverage: which patches a prompt covers (`vision.patch_coverage`).

    Raises:
        SailUsageError: `max_side` is less than a patch.
    """

    tokens: Tokens
    patch_size: int
    num_prompts: int = 15
    max_side: int = MAX_SIDE
    max_tokens: int = 8192
    mask_sample_weight: float = 1.0
    resize: ResizeRule = "longest"
    overlap: Literal["sum", "last"] = "sum"
    coverage: CoverageRule = "cover"

    def __post_init__(self) -> None:
        if self.max_side < self.patch_size:
            raise SailUsageError(f"max_side must be one patch ({self.patch_size} pixels) or more, not {self.max_side}")

    def encode(self, sample: Sample, *, answers: bool = True, answer_prefix: str = "") -> EncodedSample:
        """Lays a sample out. Without `answers`, the last turn's answer is left to be generated, after `answer_prefix`.

        Raises:
            SailError: an unreadable picture or mask, no question to answer, counts of `[SEG]` and masks that differ, a
                prompt that covers nothing or is named but absent, a sequence over the limit; the message names the
                record.
        """
        try:
            return self._encode(sample, answers, answer_prefix)
        except SailError as error:
            name = " ".join(part for part in (sample.source, sample.id) if part)
            own_file = isinstance(sample.image, str | Path | Upright) and name == str(Path(str(sample.image)))
            told = not name or (own_file and name in str(error))  # faults of a file name it themselves
            raise type(error)(str(error) if told else f"{name}: {error}") from None

    def _encode(self, sample: Sample, answers: bool, answer_prefix: str) -> EncodedSample:
        if not answers and not (sample.turns and sample.turns[-1].question.strip()):
            raise SailUsageError("the question is empty; write what the model shall answer")
        pictures = [load_image(reference) for reference in sample.images]
        size = (pictures[0].shape[0], pictures[0].shape[1]) if pictures else None
        cut = [patchify(picture, self.patch_size, self.max_side, self.resize) for picture in pictures]
        begun = self.tokens.answer_prefix(answer_prefix) if answer_prefix else []
        sequence = self.lay_out(sample.turns, tuple(grid for _, grid in cut), answers, begun)
        seg_rows = sequence.rows_of(self.tokens.seg)
        masks = self._masks(masks_in_order(sample), len(seg_rows), size) if answers else ()
        cells = [cells for cells, _ in cut] or [np.empty((0, 3 * self.patch_size**2), np.uint8)]
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
    ) -> Sequence:
        """Pictures of these grids, (rows, columns) of patches, and the words about them as one sequence.

        Without `answers` the last answer is left out but for the ids that it has `begun` with.

        Raises:
            SailUsageError: a token of the layout in a text, or a sequence over the limit.
        """
        builder = SequenceBuilder(self.tokens.picture)
        inside = bool(grids) and self.tokens.chat.picture_inside
        for number, grid in enumerate(grids):
            if inside:
                builder.text(self.tokens.line_break() if number else self.tokens.opening())
            builder.image(grid)
        for index, turn in enumerate(turns):
            builder.text(self.tokens.question(turn.question, after_picture=inside and index == 0))
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
        """Decoded last, once all else is known to be right."""
        if len(masks) != segs:
            raise SailError(f"{segs} [SEG] in the text but {len(masks)} masks; give one mask per [SEG]")
        if masks and size is None:
            raise SailError("masks need a picture")
        decoded = tuple(load_mask(mask) for mask in masks)
        for mask in decoded:
            if mask.shape != size:
                raise SailError(f"a mask of {mask.shape} pixels (height, width), but the picture has {size}")
        return decoded

    def _regions(self, sample: Sample, sequence: Sequence, size: tuple[int, int] | None) -> tuple[EncodedRegion, ...]:
        ids = prompt_ids(sample.prompts, self.num_prompts)
        denied = {turn.answer for turn in sample.turns}  # a model learns to say of a prompt that it is not there
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
            raise SailUsageError("visual prompts need a picture")
        grid = sequence.grids[0]
        first_image = sequence.patch_rows[: grid[0] * grid[1]]
        cells: list[NDArray[np.bool_]] = []
        boxes: list[tuple[float, float, float, float]] = []
        for prompt in sample.prompts:
            pixels = region_mask(prompt, size)
            cells.append(patch_coverage(pixels, grid, self.patch_size, self.coverage).ravel())
            boxes.append(_box(pixels))
        if self.overlap == "last":
            for place, later in enumerate(cells):
                for earlier in cells[:place]:
                    earlier &= ~later
        regions = []
        for id, covered, box in zip(ids, cells, boxes, strict=True):
            token = self.tokens.prompt_ids[id]
            regions.append(EncodedRegion(token, first_image[covered], sequence.rows_of(token), box))
        return tuple(regions)


def _box(pixels: BoolMask) -> tuple[float, float, float, float]:
    """The box around the pixels (H, W) that are on, at least one: x0, y0, x1, y1 in shares of width and height."""
    (top, bottom), (left, right) = (np.flatnonzero(pixels.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    height, width = pixels.shape
    return left / width, top / height, (right + 1) / width, (bottom + 1) / height


def masks_in_order(sample: Sample) -> tuple[MaskRef, ...]:
    """The mask of each `[SEG]`, in the order of the text: those that `Turn.targets` name, or else as they are listed.

    Raises:
        SailError: a turn whose targets are not one per `[SEG]` or name a mask that is not there, or a mask that no turn
            names.
    """
    if not any(turn.targets for turn in sample.turns):
        return sample.masks
    named: list[int] = []
    for place, turn in enumerate(sample.turns):
        count = turn.answer.count(chat_template.SEG)
        if len(turn.targets) != count:
            raise SailError(
                f"turn {place} has {count} [SEG] but {len(turn.targets)} targets; give one target per [SEG]"
            )
        if wrong := [target for target in turn.targets if not 0 <= target < len(sample.masks)]:
            raise SailError(f"turn {place} names mask {wrong[0]}, but there are {len(sample.masks)} masks")
        named += turn.targets
    if len(set(named)) < len(sample.masks):
        raise SailError(f"{len(named)} [SEG] in the text but {len(sample.masks)} masks; give one mask per [SEG]")
    return tuple(sample.masks[target] for target in named)


def prompt_ids(prompts: Iterable[Prompt], num_prompts: int) -> tuple[int, ...]:
    """The K of each prompt's `<PromptK>`: its own id, or else its place in the list.

    Raises:
        SailUsageError: an id out of range or given twice.
    """
    ids = tuple(place if prompt.id is None else prompt.id for place, prompt in enumerate(prompts))
    for id in ids:
        if not 0 <= id < num_prompts:
            raise SailUsageError(f"prompt id {id} is out of range: this model knows 0 to {num_prompts - 1}")
        if ids.count(id) > 1:
            raise SailUsageError(f"two prompts carry the id {id}; give each its own")
    return ids
