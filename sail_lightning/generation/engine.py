"""Greedy answers with masks, many questions at once.

`generate` reads from top to bottom:

1. *Encode*: the batch is embedded, each image once for all questions about it (prefix sharing).
2. *Prefill*: the transformer reads the shared prefixes in one packed row, as in training, then the suffix of each
   question. Keys and values go into the KV cache.
3. *Decode*: all questions are decoded together, one token of each per step.
4. *Stop rules* end an answer: at a stop token, at the length limit, or when it repeats itself.
5. *Masks*: every `[SEG]` of an answer has one. Its query is the state of the step at which `[SEG]` is the *input*, as
   in the official code, so decoding never stops on a `[SEG]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.generation.decode_step import DecodeStep, decode
from sail_lightning.generation.kv_cache import RowGroup, SlottedKVCache, group_rows, round_up_to_block, visibility_mask
from sail_lightning.generation.prefix_schedule import PrefixSchedule, spans_within
from sail_lightning.generation.stop_rules import StopRules
from sail_lightning.model.losses import resize
from sail_lightning.model.model import SailModel
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.sequence.tokenizer import SailTokenizer

INITIAL_DECODE_CAPACITY = 64
"""Slots of the KV cache that each answer has at the start; the cache grows when answers are longer."""


@dataclass(frozen=True)
class Generation:
    """One generated answer.

    `ids` are its tokens without the stop token, `masks` (n, H, W) bool are at the size of the image before it was
    resized, and `finish` says why it ended: `end`, `length` or `loop` (it repeated itself).
    """

    ids: list[int]
    masks: np.ndarray
    finish: str


@dataclass(frozen=True)
class _Images:
    """The first image of each group of questions, after the prefill.

    `vision` are its vision tokens (rows*columns, D), `grids` its (rows, columns), `patches` its raw patches, and
    `of_question` the index of the group that each question belongs to. A group without an image has a grid of (0, 0).
    """

    vision: list[Tensor]
    grids: list[tuple[int, int]]
    patches: list[Tensor]
    of_question: list[int]


@dataclass
class _Answer:
    """An answer while it is decoded: its tokens, the states (D,) of its `[SEG]` tokens, and why it ended."""

    ids: list[int]
    seg_states: list[Tensor]
    finish: str = "length"


@torch.inference_mode()
def generate(
    model: SailModel,
    tokens: SailTokenizer,
    samples: Sequence[EncodedSample],
    max_new_tokens: int = 128,
    static: bool | None = None,
    stop_on_repetition: bool = True,
) -> list[Generation]:
    """Answers the last, open turn of each sample.

    Args:
        model: The model, built and in eval mode.
        tokens: The tokenizer of the model.
        samples: The questions, encoded without the last answer.
        max_new_tokens: Limit on the tokens of each answer, 1 or more. If the last one is a `[SEG]`, it has its mask.
        static: Whether to decode in steps of the same shapes, which CUDA replays as a graph. None does so on CUDA once
            answers are not short. The answers are the same.
        stop_on_repetition: Whether an answer that repeats itself is truncated and ended, or runs to its limit.
    """
    if not samples:
        return []
    rules = StopRules(tokens.stop_token_ids, tokens.seg, max_new_tokens, stop_on_repetition)
    schedule = PrefixSchedule.build(samples, min(max_new_tokens + 1, INITIAL_DECODE_CAPACITY))
    cache = SlottedKVCache(len(schedule.rows), schedule.capacity)
    embeddings = model.embed(pack(schedule.merged()).to(next(model.parameters()).device))
    images, states = _prefill(model, schedule, embeddings, cache)
    answers = _decode(model, schedule, cache, states, rules, static)
    masks = _masks(model, samples, images, [answer.seg_states for answer in answers])
    return [Generation(answer.ids, mask, answer.finish) for answer, mask in zip(answers, masks, strict=True)]


# -- prefill ----------------------------------------------------------------------------------------------------------


def _prefill(
    model: SailModel, schedule: PrefixSchedule, embeddings: Tensor, cache: SlottedKVCache
) -> tuple[_Images, list[Tensor]]:
    """Reads all questions into the cache, from the embeddings (T, D) of `PrefixSchedule.merged`.

    Returns the images, and the states (n, D) of each question's suffix, or of its prefix too where it shares none.
    """
    prefixes: list[Tensor] = []
    suffixes: dict[int, Tensor] = {}
    lengths = [schedule.block_lengths(group) for group in schedule.groups]
    blocks = embeddings.split([sum(own) for own in lengths])
    for group, own, block in zip(schedule.groups, lengths, blocks, strict=True):
        prefix, *rest = block.split(own)
        prefixes.append(prefix)
        suffixes.update(zip(group.members, rest, strict=False))  # a group of one question has no suffix
    hidden = _prefill_prefixes(model, schedule, torch.cat(prefixes), cache)
    images = _images(model, schedule, hidden)
    states = [hidden[group] for group in images.of_question]
    if suffixes:
        for index, suffix_states in _prefill_suffixes(model, schedule, suffixes, cache).items():
            states[index] = suffix_states
    return images, states


def _prefill_prefixes(
    model: SailModel, schedule: PrefixSchedule, embeddings: Tensor, cache: SlottedKVCache
) -> tuple[Tensor, ...]:
    """Reads the prefix of each group, or its only question, in one packed row; returns the states (n, D) of each.

    Afterwards the cache holds a shared prefix in every row that needs it.
    """
    device = embeddings.device
    rows_of: dict[int, list[int]] = {}
    for number, row in enumerate(schedule.rows):
        if row.prefix_length:
            rows_of.setdefault(row.group, []).append(number)
    spans, positions, vision, slots = [], [], [], []
    for number, group in enumerate(schedule.groups):
        first, length = group.members[0], schedule.prefill_length(group)
        sequence = schedule.samples[first].sequence
        spans.append(spans_within(sequence.spans, length))
        positions.append(sequence.positions[:, :length])
        vision.append(sequence.vision[:length])
        shares = group.prefix_length > 0
        cache_row = rows_of[number][0] if shares else schedule.row_of[first]
        start = 0 if shares else schedule.suffix_starts[first]
        slots.append(cache_row * cache.capacity + start + np.arange(length))
    cache.set_write_slots(torch.from_numpy(np.concatenate(slots)).to(device))
    hidden = model.read(
        embeddings,
        torch.from_numpy(np.concatenate(positions, axis=1)).to(device),
        AttentionPlan.build(spans, device),
        torch.from_numpy(np.concatenate(vision)).to(device),
        cache,
    )
    for number, (first_row, *others) in rows_of.items():
        for other in others:
            cache.copy(first_row, other, schedule.groups[number].prefix_length)
    return hidden.split([schedule.prefill_length(group) for group in schedule.groups])


def _images(model: SailModel, schedule: PrefixSchedule, hidden: Sequence[Tensor]) -> _Images:
    """The first image of each group, from the states (n, D) of the group's prefix."""
    vision, grids, patches = [], [], []
    of_question = [0] * len(schedule.samples)
    for number, (group, states) in enumerate(zip(schedule.groups, hidden, strict=True)):
        sample = schedule.samples[group.members[0]]
        grid = sample.sequence.grids[0] if sample.sequence.grids else (0, 0)
        patch_rows = torch.from_numpy(sample.sequence.patch_rows[: grid[0] * grid[1]]).to(states.device)
        vision.append(states.index_select(0, patch_rows))
        grids.append(grid)
        patches.append(torch.from_numpy(sample.patches[: grid[0] * grid[1]]))
        for index in group.members:
            of_question[index] = number
    if model.upsampler.guided:
        patches = [own.to(hidden[0].device) for own in patches]
    return _Images(vision, grids, patches, of_question)


def _prefill_suffixes(
    model: SailModel, schedule: PrefixSchedule, suffixes: dict[int, Tensor], cache: SlottedKVCache
) -> dict[int, Tensor]:
    """Reads the suffixes of questions that share a prefix, embeddings (n, D) each; returns their states (n, D)."""
    device = next(iter(suffixes.values())).device
    rows = [row for row in schedule.rows if row.prefix_length]  # these come first
    counts = [sum(len(suffixes[index]) for index in row.members) for row in rows]
    states: dict[int, Tensor] = {}
    for row_group in group_rows(counts, device):
        order = [index for row in row_group.rows for index in rows[row].members]
        positions = _aim_at_suffixes(schedule, order, row_group, cache, device)
        hidden = decode(model.backbone, torch.cat([suffixes[index] for index in order]), positions, cache)
        states.update(zip(order, hidden.split([len(suffixes[index]) for index in order]), strict=True))
    return states


def _aim_at_suffixes(
    schedule: PrefixSchedule, order: Sequence[int], row_group: RowGroup, cache: SlottedKVCache, device: torch.device
) -> Tensor:
    """Prepares the cache for a pass over the suffixes of these questions; returns their positions (3, T).

    A token of a suffix sees the shared prefix and what comes before it in its own suffix.
    """
    positions, columns = [], []
    for index in order:
        length, start = schedule.suffix_length(index), schedule.suffix_starts[index]
        positions.append(schedule.samples[index].sequence.positions[:, -length:])
        fixed = np.asarray([[schedule.row_of[index]], [schedule.prefix_length(index)], [start]]).repeat(length, axis=1)
        columns.append(np.concatenate([fixed, start + np.arange(length)[None]]))
    table = np.concatenate(columns, axis=1)
    attended = round_up_to_block(int(table[3].max()) + 1)
    row, prefix, start_slot, slot = torch.from_numpy(table).to(device).unbind()
    mask = visibility_mask(prefix, start_slot, slot + 1, attended)
    cache.set_write_slots(row * cache.capacity + slot, [row_group.view(mask)])
    return torch.from_numpy(np.concatenate(positions, axis=1)).to(device)


# -- decode -----------------------------------------------------------------------------------------------------------


def _decode(
    model: SailModel,
    schedule: PrefixSchedule,
    cache: SlottedKVCache,
    states: Sequence[Tensor],
    rules: StopRules,
    static: bool | None,
) -> list[_Answer]:
    """Decodes all answers together, from the states (n, D) of each question's last tokens."""
    answers = [_begun_answer(item, own) for item, own in zip(schedule.samples, states, strict=True)]
    step = _first_step(model, schedule, cache, states, static)
    active: list[int | None] = list(schedule.order)  # the question of each sequence of the step; None: it has ended
    for new_tokens in range(rules.max_new_tokens + 1):
        going: list[int] = []
        for position, (index, token) in enumerate(zip(active, step.ids.tolist(), strict=True)):
            if index is None:
                continue
            if finish := rules.append(token, answers[index].ids, new_tokens):
                answers[index].finish = finish
            else:
                going.append(position)
        if not going:
            break
        if step.should_compact(len(going)):
            step.compact(going)
            active = [active[position] for position in going]
        else:  # those that ended are kept as padding, and their output is ignored
            kept = set(going)
            active = [index if position in kept else None for position, index in enumerate(active)]
        state = step()
        for position, index in enumerate(active):
            if index is not None and answers[index].ids[-1] == rules.seg:
                answers[index].seg_states.append(state[position].clone())
    for answer in answers:
        del answer.seg_states[answer.ids.count(rules.seg) :]  # those of a repetition that was truncated
    return answers


def _begun_answer(item: EncodedSample, states: Tensor) -> _Answer:
    """The answer that a question comes with, often empty, from the states (n, D) of the question's last tokens.

    A begun answer counts like generated tokens: its `[SEG]` have masks.
    """
    start = len(item) - item.answer_tokens
    seg_rows = item.seg_rows[item.seg_rows >= start] - len(item) + len(states)
    return _Answer(item.sequence.ids[start:].tolist(), list(states[torch.from_numpy(seg_rows).to(states.device)]))


def _first_step(
    model: SailModel, schedule: PrefixSchedule, cache: SlottedKVCache, states: Sequence[Tensor], static: bool | None
) -> DecodeStep:
    """The step that reads the first new token of each answer, chosen from the last of the question's states (n, D)."""
    order, device = schedule.order, states[0].device
    ids = model.head(torch.stack([states[index][-1] for index in order])).argmax(-1)
    starts = [schedule.suffix_starts[index] for index in order]
    table = [
        [schedule.prefix_length(index) for index in order],
        starts,
        [start + schedule.suffix_length(index) for start, index in zip(starts, order, strict=True)],
        [schedule.samples[index].sequence.next_position for index in order],
    ]
    prefix, start, end, positions = torch.tensor(table, device=device).unbind()
    mask = visibility_mask(prefix, start, end, cache.capacity)
    rows = [schedule.row_of[index] for index in order]
    return DecodeStep(model.backbone, cache, rows, schedule.used_slots, mask, ids, positions.clone(), static)


# -- masks ------------------------------------------------------------------------------------------------------------


def _masks(
    model: SailModel, samples: Sequence[EncodedSample], images: _Images, seg_states: Sequence[Sequence[Tensor]]
) -> Iterator[np.ndarray]:
    """The masks (n, H, W) bool of each sample; only images that own a `[SEG]` are upsampled."""
    masked = [index for index, own in enumerate(seg_states) if own and samples[index].image_size]
    queries: dict[int, list[Tensor]] = {}
    for index in masked:
        states = torch.stack(list(seg_states[index]))
        queries.setdefault(images.of_question[index], []).append(model.mask_head.queries(states))
    found = model.predict_masks(
        images.vision,
        images.grids,
        {image: torch.cat(queries[image]) for image in sorted(queries)},
        images.patches,
    )
    logits = {image: iter(found[image].split([len(own) for own in queries[image]])) for image in queries}
    for index, item in enumerate(samples):
        size = item.image_size or (0, 0)
        if index not in masked:
            yield np.zeros((0, *size), bool)
            continue
        own = next(logits[images.of_question[index]]).float()
        # One at a time: at the size of a photograph, the logits of many masks take gigabytes.
        yield torch.cat([resize(one, size) > 0 for one in own.split(1)]).cpu().numpy()
