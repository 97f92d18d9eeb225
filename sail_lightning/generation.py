"""Greedy answers with masks, many questions at once.

Each picture (with its visual prompts) is read once; all questions on it continue from the same keys and values.
Questions are then decoded together. A mask belongs to every `[SEG]` of the answer: its query is the state of the step
at which `[SEG]` is the *input* (official semantics), so decoding never stops on one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sail_lightning.data.collate import pack
from sail_lightning.data.transform import EncodedSample
from sail_lightning.interfaces import KeyValueCache
from sail_lightning.losses import resize
from sail_lightning.model import MaskHead, SailModel
from sail_lightning.tokens import Tokens

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


class PaddedCache(KeyValueCache):
    """Keys and values of B sequences of different lengths, left-aligned in one tensor a layer.

    New tokens are written from each sequence's own `offset` on. A padded query writes beyond its sequence's end, where
    nothing looks before the next token overwrites it.
    """

    def __init__(self, offsets: Tensor, capacity: int) -> None:
        self.offsets = offsets
        self.capacity = capacity
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._new = 0
        self._seen = 0
        self._mask: Tensor | None = None

    def expect(self, new: int, seen: int, mask: Tensor | None = None) -> None:
        """Announces the next call: `new` tokens a row, at most `seen` keys a row after it; `mask` replaces causal."""
        self._new, self._seen, self._mask = new, seen, mask

    def mask(self) -> Tensor:
        if self._mask is not None:
            return self._mask
        slots = torch.arange(self._seen, device=self.offsets.device)
        queries = self.offsets[:, None] + torch.arange(self._new, device=self.offsets.device)
        return (slots <= queries[..., None])[:, None]

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self.layers.append((key.new_zeros(shape), value.new_zeros(shape)))
        keys, values = self.layers[layer]
        slots = self.offsets[:, None] + torch.arange(key.shape[2], device=key.device)
        index = slots[:, None, :, None].expand_as(key)
        keys.scatter_(2, index, key)
        values.scatter_(2, index, value)
        return keys[:, :, : self._seen], values[:, :, : self._seen]

    def get_seq_length(self, layer: int = 0) -> int:
        """Keys seen so far (Hugging Face asks)."""
        return self._seen

    def select(self, rows: Tensor, offsets: Tensor, capacity: int) -> PaddedCache:
        """The cache of other rows: copies, with room for `capacity` tokens."""
        chosen = PaddedCache(offsets, capacity)
        for keys, values in self.layers:
            pair = []
            for tensor in (keys, values):
                room = tensor.new_zeros(len(rows), tensor.shape[1], capacity, tensor.shape[3])
                width = min(capacity, tensor.shape[2])
                room[:, :, :width] = tensor.index_select(0, rows)[:, :, :width]
                pair.append(room)
            chosen.layers.append((pair[0], pair[1]))
        return chosen


@dataclass(frozen=True)
class _Prefixes:
    """The distinct pictures of a batch, read: their cache, vision tokens, and which one each question continues."""

    cache: PaddedCache | None
    vision: list[Tensor]
    grids: list[tuple[int, int]]
    owner: list[int]
    lengths: list[int]


@torch.inference_mode()
def generate(
    model: SailModel, tokens: Tokens, samples: Sequence[EncodedSample], max_new_tokens: int = 128
) -> list[Generation]:
    """Answers the last, open turn of each sample.

    Args:
        model: built, in eval mode.
        tokens: its tokenizer.
        samples: encoded without the last answer.
        max_new_tokens: per answer; at least 1. If the last one is a `[SEG]`, it gets its mask.
    """
    if not samples:
        return []
    device = next(model.parameters()).device
    batch = pack(samples).to(device)
    embedded = model.embed(batch)
    rows = embedded.split([len(item) for item in samples])
    prefixes = _read_prefixes(model, samples, rows)
    answers, states = _decode(model, tokens, samples, rows, prefixes, max_new_tokens)
    masks = _masks(model, samples, prefixes, states)
    return [Generation(ids, mask, finish) for (ids, finish), mask in zip(answers, masks, strict=True)]


def _prefix_key(item: EncodedSample, length: int) -> bytes:
    digest = hashlib.blake2b(item.patches.tobytes())
    digest.update(item.sequence.ids[:length].tobytes())
    digest.update(np.asarray(item.sequence.grids, np.int64).tobytes())
    for region in item.regions:
        digest.update(np.asarray([region.token_id, len(region.patch_rows)]).tobytes() + region.patch_rows.tobytes())
    return digest.digest()


def _read_prefixes(model: SailModel, samples: Sequence[EncodedSample], rows: Sequence[Tensor]) -> _Prefixes:
    lengths = [item.sequence.prefix for item in samples]
    first: dict[bytes, int] = {}
    owner = []
    members: list[int] = []
    for index, (item, length) in enumerate(zip(samples, lengths, strict=True)):
        key = _prefix_key(item, length)
        if key not in first:
            first[key] = len(members)
            members.append(index)
        owner.append(first[key])
    width = max(lengths)
    if width == 0:
        return _Prefixes(None, [], [], owner, lengths)
    embeddings = _padded([rows[i][: lengths[i]] for i in members])
    positions = _padded_positions([samples[i].sequence.positions[:, : lengths[i]] for i in members], embeddings.device)
    cache = PaddedCache(torch.zeros(len(members), dtype=torch.int64, device=embeddings.device), width)
    cache.expect(width, width, _prefix_mask([samples[i] for i in members], lengths, members, width, embeddings.device))
    seen = _padded([_vision(samples[i], embeddings.device)[: lengths[i]] for i in members])
    hidden = model.backbone.decode(embeddings, positions, cache, seen)
    vision, grids = [], []
    for place, i in enumerate(members):
        sequence = samples[i].sequence
        grid = sequence.grids[0] if sequence.grids else (0, 0)
        patch_rows = torch.from_numpy(sequence.patch_rows[: grid[0] * grid[1]]).to(hidden.device)
        vision.append(hidden[place].index_select(0, patch_rows))
        grids.append(grid)
    return _Prefixes(cache, vision, grids, owner, lengths)


def _prefix_mask(
    items: Sequence[EncodedSample], lengths: Sequence[int], members: Sequence[int], width: int, device: torch.device
) -> Tensor:
    """(B, 1, width, width): causal, and whole inside image spans. Padded rows see themselves, to stay finite."""
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    masks = causal.repeat(len(items), 1, 1)
    for place, (item, i) in enumerate(zip(items, members, strict=True)):
        start = 0
        for span in item.sequence.spans:
            if start >= lengths[i]:
                break
            if span.kind == "image":
                masks[place, start : start + span.length, start : start + span.length] = True
            start += span.length
    return masks[:, None].to(device)


def _decode(
    model: SailModel,
    tokens: Tokens,
    samples: Sequence[EncodedSample],
    rows: Sequence[Tensor],
    prefixes: _Prefixes,
    max_new_tokens: int,
) -> tuple[list[tuple[list[int], str]], list[list[Tensor]]]:
    device = rows[0].device
    lengths = prefixes.lengths
    suffixes = [row[length:] for row, length in zip(rows, lengths, strict=True)]
    totals = [len(row) for row in rows]
    capacity = max(totals) + max(len(s) for s in suffixes) + max_new_tokens + 1
    offsets = torch.tensor(lengths, device=device)
    if prefixes.cache is None:
        cache = PaddedCache(offsets, capacity)
    else:
        cache = prefixes.cache.select(torch.tensor(prefixes.owner, device=device), offsets, capacity)
    embeddings = _padded(suffixes)
    positions = _padded_positions(
        [item.sequence.positions[:, length:] for item, length in zip(samples, lengths, strict=True)], device
    )
    new = embeddings.shape[1]
    cache.expect(new, max(lengths) + new)
    seen = _padded([_vision(item, device)[length:] for item, length in zip(samples, lengths, strict=True)])
    hidden = model.backbone.decode(embeddings, positions, cache, seen)
    last = torch.tensor([len(suffix) - 1 for suffix in suffixes], device=device)
    state = hidden[torch.arange(len(samples), device=device), last]
    cache.offsets = torch.tensor(totals, device=device)
    next_position = torch.tensor([item.sequence.next_position for item in samples], device=device)

    # An answer that was begun counts like one's own words: its [SEG] have masks.
    answers = [item.sequence.ids[len(item) - item.answer_tokens :].tolist() for item in samples]
    states: list[list[Tensor]] = []
    for place, (item, length) in enumerate(zip(samples, lengths, strict=True)):
        begun = item.seg_rows[item.seg_rows >= len(item) - item.answer_tokens] - length
        states.append(list(hidden[place, torch.from_numpy(begun).to(device)]))
    finish = ["length"] * len(samples)
    active = list(range(len(samples)))
    for step in range(max_new_tokens + 1):
        chosen = model.backbone.logits(state).argmax(-1)
        going: list[int] = []
        for place, (index, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
            if token in tokens.stops:
                finish[index] = "end"
            elif step < max_new_tokens:
                answers[index].append(token)
                if cut_loop(answers[index], tokens.seg):
                    finish[index] = "loop"
                else:
                    going.append(place)
        # The last token may be a [SEG]: it is still read, so that its mask exists.
        if step == max_new_tokens - 1:
            going = [place for place in going if answers[active[place]][-1] == tokens.seg]
        if not going:
            break
        if len(going) < len(active):
            kept = torch.tensor(going, device=device)
            cache = cache.select(kept, cache.offsets[kept], cache.capacity)
            chosen, next_position = chosen[kept], next_position[kept]
            active = [active[place] for place in going]
        cache.expect(1, max(totals[index] for index in active) + step + 1)
        embedded = model.backbone.embed_tokens(chosen)[:, None]
        positions, words = next_position.expand(3, -1)[..., None], torch.zeros_like(chosen, dtype=torch.bool)[:, None]
        state = model.backbone.decode(embedded, positions, cache, words)[:, 0]
        cache.offsets = cache.offsets + 1
        next_position = next_position + 1
        for place, index in enumerate(active):
            if answers[index][-1] == tokens.seg:
                states[index].append(state[place])
    for own, ids in zip(states, answers, strict=True):
        del own[ids.count(tokens.seg) :]  # a loop that was cut took its [SEG] along
    return list(zip(answers, finish, strict=True)), states


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
    owners = sorted({prefixes.owner[i] for i, own in enumerate(states) if own and samples[i].image_size})
    keys: dict[int, Tensor] = {}
    if owners:
        for group in model.mask_features(prefixes.vision, prefixes.grids, owners, prefixes.vision[0]):
            keys.update(zip(group.images, group.maps, strict=True))
    for index, (item, own) in enumerate(zip(samples, states, strict=True)):
        size = item.image_size or (0, 0)
        if not own or not item.image_size:
            yield np.zeros((0, *size), bool)
            continue
        logits = MaskHead.logits(model.mask_head.queries(torch.stack(list(own))), keys[prefixes.owner[index]])
        # One at a time: at the size of a photograph, logits of many masks are gigabytes.
        yield torch.cat([resize(one, size) > 0 for one in logits.float().split(1)]).cpu().numpy()


def _vision(item: EncodedSample, device: torch.device) -> Tensor:
    return torch.from_numpy(item.sequence.vision).to(device)


def _padded(blocks: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(blocks), batch_first=True)


def _padded_positions(blocks: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Positions (3, L) each to (3, B, Lmax)."""
    tensors = [torch.from_numpy(np.ascontiguousarray(block.T)) for block in blocks]
    return _padded(tensors).permute(2, 0, 1).to(device)
