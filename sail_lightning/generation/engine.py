"""Greedy answers with masks, many questions at once.

Each picture (with its visual prompts) is read once; all questions on it look at the same keys and values. Questions are
then decoded together. A mask belongs to every `[SEG]` of the answer: its query is the state of the step
at which `[SEG]` is the *input* (official semantics), so decoding never stops on one.
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
from sail_lightning.generation.kv_cache import SlotCache, bands, visible, whole_blocks
from sail_lightning.generation.prefix_schedule import Group, Seating, spans_within
from sail_lightning.model.losses import resize
from sail_lightning.model.model import SailModel
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.sequence.tokenizer import SailTokenizer

ROOM = 64
"""Tokens of each answer that the cache has room for at the start; it grows when answers are longer."""

LOOP_BLOCK, LOOP_REPEATS, LOOP_TOKENS = 24, 5, 20
"""An answer that ends in this many repeats of one block of at most this many tokens is a loop, and is cut; the repeats
are at least this many tokens long, for "100000" and "......" are none."""
LOOP_MASKS = 20
"""Repeats that make a loop of a block with a `[SEG]`: a list of masks may well repeat its words."""


@dataclass(frozen=True)
class Generation:
    """An answer's ids (the end token not included), its masks (n, H, W) bool at the picture's own size, and why it
    ended: `end`, `length` or `loop`."""

    ids: list[int]
    masks: np.ndarray
    finish: str


@dataclass(frozen=True)
class _Prefixes:
    """The distinct pictures of a batch, read: vision tokens, grid and patches of each, and which one each question is
    about."""

    vision: list[Tensor]
    grids: list[tuple[int, int]]
    patches: list[Tensor]
    owner: list[int]


@torch.inference_mode()
def generate(
    model: SailModel,
    tokens: SailTokenizer,
    samples: Sequence[EncodedSample],
    max_new_tokens: int = 128,
    static: bool | None = None,
    cut_loops: bool = True,
) -> list[Generation]:
    """Answers the last, open turn of each sample.

    Args:
        model: built, in eval mode.
        tokens: its tokenizer.
        samples: encoded without the last answer.
        max_new_tokens: per answer; at least 1. If the last one is a `[SEG]`, it gets its mask.
        static: decode in steps of the same shapes, which CUDA replays as a graph; None does so on CUDA, once answers
            are not short. The answers are the same.
        cut_loops: end an answer that repeats itself; else it runs to its limit.
    """
    if not samples:
        return []
    room = min(max_new_tokens + 1, ROOM)
    seating = Seating.of(samples, room)
    batch = pack(seating.merged()).to(next(model.parameters()).device)
    embedded = model.embed(batch)
    cache = SlotCache(
        len(seating.rows),
        max(filled + room * len(row.members) for filled, row in zip(seating.filled, seating.rows, strict=True)),
    )
    prefixes, own = _read(model, seating, embedded, cache)
    answers, states = _decode(model, tokens, seating, cache, own, max_new_tokens, static, cut_loops)
    masks = _masks(model, samples, prefixes, states)
    return [Generation(ids, mask, finish) for (ids, finish), mask in zip(answers, masks, strict=True)]


def _read(model: SailModel, seating: Seating, embedded: Tensor, cache: SlotCache) -> tuple[_Prefixes, list[Tensor]]:
    """Reads everything given, into the cache; returns the pictures, and the states of each question's own tokens.

    Pictures, and questions that share none, are read in one packed row, as in training; then the questions that do.
    """
    samples = seating.samples
    heads: list[Tensor] = []
    tails: dict[int, Tensor] = {}
    blocks = embedded.split([sum(_lengths(seating, group)) for group in seating.groups])
    for group, block in zip(seating.groups, blocks, strict=True):
        head, *rest = block.split(_lengths(seating, group))
        heads.append(head)
        tails.update(zip(group.members, rest, strict=False))  # one alone is all head
    hidden = _read_packed(model, seating, torch.cat(heads), cache).split([len(head) for head in heads])
    states = [hidden[0]] * len(samples)
    owner = [0] * len(samples)
    vision, grids, patches = [], [], []
    for place, (group, read) in enumerate(zip(seating.groups, hidden, strict=True)):
        sequence = samples[group.members[0]].sequence
        grid = sequence.grids[0] if sequence.grids else (0, 0)
        patch_rows = torch.from_numpy(sequence.patch_rows[: grid[0] * grid[1]]).to(read.device)
        vision.append(read.index_select(0, patch_rows))
        grids.append(grid)
        patches.append(torch.from_numpy(samples[group.members[0]].patches[: grid[0] * grid[1]]))
        for index in group.members:
            owner[index], states[index] = place, read
    if tails:
        states = _read_tails(model, seating, tails, cache, states)
    if model.upsampler.guided:
        patches = [own.to(embedded.device) for own in patches]
    return _Prefixes(vision, grids, patches, owner), states


def _lengths(seating: Seating, group: Group) -> list[int]:
    """Tokens of a group: those read in the packed row, then of each question that shares them its own."""
    return [seating.packed(group), *(seating.own(index) for index in group.members if group.shared)]


def _read_packed(model: SailModel, seating: Seating, embeddings: Tensor, cache: SlotCache) -> Tensor:
    """The packed row: embeddings to states (T, D). The cache then holds shared tokens in each row that needs them."""
    device = embeddings.device
    rows_of: dict[int, list[int]] = {}
    for place, row in enumerate(seating.rows):
        if row.shared:
            rows_of.setdefault(row.group, []).append(place)
    spans, positions, vision, slots = [], [], [], []
    for place, group in enumerate(seating.groups):
        first, length = group.members[0], seating.packed(group)
        sequence = seating.samples[first].sequence
        spans.append(spans_within(sequence.spans, length))
        positions.append(sequence.positions[:, :length])
        vision.append(sequence.vision[:length])
        at, start = (rows_of[place][0], 0) if group.shared else (seating.row_of[first], seating.starts[first])
        slots.append(at * cache.capacity + start + np.arange(length))
    cache.expect(torch.from_numpy(np.concatenate(slots)).to(device))
    hidden = model.read(
        embeddings,
        torch.from_numpy(np.concatenate(positions, axis=1)).to(device),
        AttentionPlan.build(spans, device),
        torch.from_numpy(np.concatenate(vision)).to(device),
        cache,
    )
    for place, (first, *others) in rows_of.items():
        for other in others:
            cache.copy(first, other, seating.groups[place].shared)
    return hidden


def _read_tails(
    model: SailModel, seating: Seating, tails: dict[int, Tensor], cache: SlotCache, states: list[Tensor]
) -> list[Tensor]:
    """Reads the own tokens of questions that share a picture, in the order of their rows, after the picture."""
    device = next(iter(tails.values())).device
    rows = [row for row in seating.rows if row.shared]  # they are the first
    counts = [sum(len(tails[index]) for index in row.members) for row in rows]
    states = list(states)
    for band in bands(counts, device):
        order = [index for row in band.rows for index in rows[row].members]
        lengths = [len(tails[index]) for index in order]
        positions, tables = [], []
        for index, length in zip(order, lengths, strict=True):
            positions.append(seating.samples[index].sequence.positions[:, -length:])
            row, start = seating.row_of[index], seating.starts[index]
            facts = np.asarray([[row], [seating.rows[row].shared], [start], [start]]).repeat(length, axis=1)
            facts[3] += np.arange(length)
            tables.append(facts)
        table = np.concatenate(tables, axis=1)
        longest = whole_blocks(int(table[3].max()) + 1)
        at, shared, starts, slots = torch.from_numpy(table).to(device).unbind()
        cache.expect(at * cache.capacity + slots, [band.view(visible(shared, starts, slots + 1, longest))])
        places = torch.from_numpy(np.concatenate(positions, axis=1)).to(device)
        hidden = decode(model.backbone, torch.cat([tails[index] for index in order]), places, cache)
        for index, own in zip(order, hidden.split(lengths), strict=True):
            states[index] = own
    return states


def _decode(
    model: SailModel,
    tokens: SailTokenizer,
    seating: Seating,
    cache: SlotCache,
    own: Sequence[Tensor],
    max_new_tokens: int,
    static: bool | None,
    cut_loops: bool,
) -> tuple[list[tuple[list[int], str]], list[list[Tensor]]]:
    samples, order = seating.samples, seating.order
    # An answer that was begun counts like one's own words: its [SEG] have masks.
    answers = [item.sequence.ids[len(item) - item.answer_tokens :].tolist() for item in samples]
    states: list[list[Tensor]] = []
    for item, hidden in zip(samples, own, strict=True):
        begun = item.seg_rows[item.seg_rows >= len(item) - item.answer_tokens] - len(item) + len(hidden)
        states.append(list(hidden[torch.from_numpy(begun).to(hidden.device)]))
    finish = ["length"] * len(samples)
    step = _first_step(model, seating, cache, own, static)
    active: list[int | None] = list(order)
    for count in range(max_new_tokens + 1):
        going: list[int] = []
        for place, (index, token) in enumerate(zip(active, step.ids.tolist(), strict=True)):
            if index is None:
                continue
            if token in tokens.stop_token_ids:
                finish[index] = "end"
            elif count < max_new_tokens:
                answers[index].append(token)
                if cut_loops and cut_loop(answers[index], tokens.seg):
                    finish[index] = "loop"
                # The last token may be a [SEG]: it is still read, so that its mask exists.
                elif count < max_new_tokens - 1 or token == tokens.seg:
                    going.append(place)
        if not going:
            break
        if step.shrinks(len(going)):
            step.keep(going)
            active = [active[place] for place in going]
        else:  # those that ended stay, unheard
            kept = set(going)
            active = [index if place in kept else None for place, index in enumerate(active)]
        state = step()
        for place, index in enumerate(active):
            if index is not None and answers[index][-1] == tokens.seg:
                states[index].append(state[place].clone())
    for found, ids in zip(states, answers, strict=True):
        del found[ids.count(tokens.seg) :]  # a loop that was cut took its [SEG] along
    return list(zip(answers, finish, strict=True)), states


def _first_step(
    model: SailModel, seating: Seating, cache: SlotCache, own: Sequence[Tensor], static: bool | None
) -> DecodeStep:
    """The step that reads the first words of the answers."""
    order, device = seating.order, own[0].device
    chosen = model.head(torch.stack([own[index][-1] for index in order])).argmax(-1)
    rows = [seating.row_of[index] for index in order]
    table = [
        [seating.rows[row].shared for row in rows],
        [seating.starts[index] for index in order],
        [seating.starts[index] + seating.own(index) for index in order],
        [seating.samples[index].sequence.next_position for index in order],
    ]
    shared, start, end, positions = torch.tensor(table, device=device).unbind()
    sees = visible(shared, start, end, cache.capacity)
    return DecodeStep(model.backbone, cache, rows, seating.filled, sees, chosen, positions.clone(), static)


def cut_loop(ids: list[int], seg: int) -> bool:
    """Whether the ids end in a loop; if so they are cut, in place, to the first copy of what is repeated."""
    for block in range(1, min(LOOP_BLOCK, len(ids) // LOOP_REPEATS) + 1):
        tail = ids[-block:]
        repeats = LOOP_MASKS if seg in tail else max(LOOP_REPEATS, -(-LOOP_TOKENS // block))
        if ids[-block * repeats :] == tail * repeats:
            del ids[-block * (repeats - 1) :]
            return True
    return False


def _masks(
    model: SailModel, samples: Sequence[EncodedSample], prefixes: _Prefixes, states: Sequence[Sequence[Tensor]]
) -> Iterator[np.ndarray]:
    """Masks (n, H, W) of each sample; only pictures that own a `[SEG]` are upsampled."""
    masked = [i for i, own in enumerate(states) if own and samples[i].image_size]
    queries: dict[int, list[Tensor]] = {}
    for i in masked:
        queries.setdefault(prefixes.owner[i], []).append(model.mask_head.queries(torch.stack(list(states[i]))))
    found = model.read_masks(
        prefixes.vision,
        prefixes.grids,
        {owner: torch.cat(queries[owner]) for owner in sorted(queries)},
        prefixes.patches,
    )
    logits = {owner: iter(found[owner].split([len(own) for own in queries[owner]])) for owner in queries}
    for index, item in enumerate(samples):
        size = item.image_size or (0, 0)
        if index not in masked:
            yield np.zeros((0, *size), bool)
            continue
        own = next(logits[prefixes.owner[index]]).float()
        # One at a time: at the size of a photograph, logits of many masks are gigabytes.
        yield torch.cat([resize(one, size) > 0 for one in own.split(1)]).cpu().numpy()
