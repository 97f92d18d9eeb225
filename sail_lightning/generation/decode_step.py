"""One decode step of many questions: it reads one token of each and chooses the next, all on the device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.generation.kv_cache import SlottedKVCache, group_rows, round_up_to_block
from sail_lightning.interfaces import Backbone, KeyValueCache
from sail_lightning.model import contract

logger = logging.getLogger(__name__)

STATIC_AFTER = 8
"""Steps after which decoding on CUDA is worth a graph: many answers are shorter."""


def decode(backbone: Backbone, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
    """Calls `Backbone.decode` and checks the shape and dtype of the states (T, D) that it returns."""
    states = backbone.decode(embeddings, positions, cache)
    return contract.expect(states, backbone, "decode", embeddings.shape, "(T, D)", embeddings)


class DecodeStep:
    """Reads one token of each sequence, and chooses the next greedily. All its state lives on the device.

    A *static* step has the same shapes each time: it attends over the whole capacity of the cache, and sequences that
    have ended stay in it as padding until half of them have. On CUDA it is captured in a graph and replayed; the code
    that runs is the same. A step that is not static attends over the used slots only, and sequences leave it as soon as
    they end.

    Args:
        backbone: The transformer.
        cache: The KV cache, which holds what was read of every sequence.
        rows: The cache row of each of A sequences, ascending.
        used_slots: How many slots of each row of the cache are used.
        attend_mask: (A, capacity) bool, the slots that each sequence sees.
        ids: (A,) int64, the token that each sequence reads next.
        positions: (A,) int64, the positions of these tokens.
        static: Whether steps are static. None: from step `STATIC_AFTER` on, where a graph can be captured. That is on
            CUDA without autocast, which caches casts of weights that a graph would outlive.
    """

    def __init__(
        self,
        backbone: Backbone,
        cache: SlottedKVCache,
        rows: Sequence[int],
        used_slots: Sequence[int],
        attend_mask: Tensor,
        ids: Tensor,
        positions: Tensor,
        static: bool | None = None,
    ) -> None:
        self.backbone, self.cache = backbone, cache
        self.rows, self.used_slots = list(rows), list(used_slots)
        self.attend_mask, self.ids, self.positions = attend_mask, ids, positions
        self._static = static
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None
        self._warm = False
        self._rebuild_layout()

    @property
    def static(self) -> bool:
        """Whether the next step is static."""
        if self._static is not None:
            return self._static
        return self.captures and self._steps >= STATIC_AFTER

    @property
    def captures(self) -> bool:
        """Whether a static step is captured in a graph."""
        return self.ids.is_cuda and not torch.is_autocast_enabled("cuda")

    def should_compact(self, going: int) -> bool:
        """Whether sequences that have ended should leave now, by `compact`, when `going` of them have not ended."""
        return going < len(self.rows) and (not self.static or 2 * going <= len(self.rows))

    def compact(self, indices: Sequence[int]) -> None:
        """Keeps the sequences at these indices only.

        Rows of the cache that no sequence uses any more are freed once they are half of it.
        """
        index = torch.tensor(indices, device=self.ids.device)
        self.attend_mask, self.ids, self.positions = (
            tensor.index_select(0, index) for tensor in (self.attend_mask, self.ids, self.positions)
        )
        self.rows = [self.rows[i] for i in indices]
        live = sorted(set(self.rows))
        if 2 * len(live) <= self.cache.rows:
            self.cache.select(torch.tensor(live, device=index.device))
            self.used_slots = [self.used_slots[row] for row in live]
            self.rows = [live.index(row) for row in self.rows]
        self._rebuild_layout()

    def __call__(self) -> Tensor:
        """Reads `ids` and replaces them by the next ones; returns the states (A, D), valid until the next step."""
        self._ensure_capacity()
        if self.static:
            states = self._run_static()
        else:
            states = self._run(
                [max(round_up_to_block(self._next_used(row)) for row in group.rows) for group in self.row_groups]
            )
        self.used_slots = [self._next_used(row) for row in range(len(self.used_slots))]
        self._steps += 1
        return states

    def _run(self, lengths: Sequence[int]) -> Tensor:
        """Attends over the first `lengths` slots of each row group. It never waits for the device."""
        self.attend_mask.scatter_(1, self.slots[:, None], True)
        masks = self.attend_mask.split([group.tokens for group in self.row_groups])
        views = [
            group.view(mask[:, :length]) for group, mask, length in zip(self.row_groups, masks, lengths, strict=True)
        ]
        self.cache.set_write_slots(self.row * self.cache.capacity + self.slots, views)
        embedded = self.backbone.embed_tokens(self.ids)
        states = decode(self.backbone, embedded, self.positions.expand(3, -1), self.cache)
        self.ids.copy_(self.backbone.logits(states).argmax(-1))
        self.slots.add_(self.strides)
        self.positions.add_(1)
        return states

    def _run_static(self) -> Tensor:
        """A static step: run once as a warm-up, then captured where possible, then replayed."""
        lengths = [self.cache.capacity] * len(self.row_groups)
        if self.captures and self._warm and self._graph is None:
            self._capture(lengths)
        if self._graph is None:
            self._warm = True  # kernels are chosen and libraries initialised outside of the capture
            return self._run(lengths)
        assert self._output is not None
        self._graph.replay()
        return self._output

    def _capture(self, lengths: Sequence[int]) -> None:
        """Captures a step in a CUDA graph; where that fails, warns, and no later step is static."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as a loader's that pins memory, go on meanwhile.
            with (
                torch.cuda.device(self.ids.device),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                output = self._run(lengths)
        except RuntimeError as error:  # nothing of the step has run
            reason = str(error).splitlines()[0]
            logger.warning("%s cannot be captured in a CUDA graph: %s", type(self.backbone).__name__, reason)
            self._static = False
            return
        self._graph, self._output = graph, output

    def _rebuild_layout(self) -> None:
        """Assigns the next slots of each row to its sequences in turn. A captured graph is no longer valid."""
        self.counts = Counter(self.rows)
        turns: Counter[int] = Counter()
        slots = []
        for row in self.rows:
            slots.append(self.used_slots[row] + turns[row])
            turns[row] += 1
        table = [self.rows, slots, [self.counts[row] for row in self.rows]]
        self.row, self.slots, self.strides = torch.tensor(table, device=self.ids.device).unbind()
        self.row_groups = group_rows([self.counts[row] for row in range(len(self.used_slots))], self.ids.device)
        self._drop_graph()

    def _ensure_capacity(self) -> None:
        """Grows the cache, by at least its size, where the next step does not fit."""
        needed = max(map(self._next_used, range(len(self.used_slots))))
        if needed > self.cache.capacity:
            self.cache.grow(max(2 * self.cache.capacity, needed))
            self.attend_mask = F.pad(self.attend_mask, (0, self.cache.capacity - self.attend_mask.shape[1]))
            self._drop_graph()

    def _drop_graph(self) -> None:
        self._graph, self._output, self._warm = None, None, False

    def _next_used(self, row: int) -> int:
        """How many slots of a row are used after the next step."""
        return self.used_slots[row] + self.counts[row]
