"""One decode step of many questions: a token of each in, the next token of each out, all on the device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.generation.kv_cache import SlotCache, bands, whole_blocks
from sail_lightning.interfaces import Backbone, KeyValueCache
from sail_lightning.model import contract

logger = logging.getLogger(__name__)

STATIC_AFTER = 8
"""Steps after which decoding on CUDA is worth a graph: many answers are shorter."""


def decode(backbone: Backbone, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
    """`Backbone.decode`, with the shape and dtype of its states checked."""
    states = backbone.decode(embeddings, positions, cache)
    return contract.expect(states, backbone, "decode", embeddings.shape, "(T, D)", embeddings)


class DecodeStep:
    """Reads one token of each question, and chooses the next. All its state lives on the device.

    A *static* step has the same shapes each time: it looks at the whole capacity of the cache, and questions that have
    ended go on until half of them have. On CUDA it is captured in a graph and replayed; what is run is the same code.
    Otherwise a step looks only at the slots in use, and questions leave as they end.

    Args:
        backbone: reads tokens.
        cache: holds what was read of every question.
        rows: of the cache, one a question, ascending.
        used: slots taken, of each row of the cache.
        sees: (A, capacity) bool, the slots that each question sees.
        ids: (A,) int64, the token that each is to read.
        positions: (A,) int64, where it stands.
        static: None is static from step `STATIC_AFTER` on where a graph is captured: on CUDA, and not under autocast,
            whose cached casts of weights a graph would outlive.
    """

    def __init__(
        self,
        backbone: Backbone,
        cache: SlotCache,
        rows: Sequence[int],
        used: Sequence[int],
        sees: Tensor,
        ids: Tensor,
        positions: Tensor,
        static: bool | None = None,
    ) -> None:
        self.backbone, self.cache = backbone, cache
        self.rows, self.used = list(rows), list(used)
        self.sees, self.ids, self.positions = sees, ids, positions
        self._static = static
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None
        self._warm = False
        self._arrange()

    @property
    def static(self) -> bool:
        """Whether the next step is."""
        if self._static is not None:
            return self._static
        return self.captures and self._steps >= STATIC_AFTER

    @property
    def captures(self) -> bool:
        """Whether a static step is captured in a graph."""
        return self.ids.is_cuda and not torch.is_autocast_enabled("cuda")

    def shrinks(self, going: int) -> bool:
        """Whether it is time to `keep` only the questions that go on, `going` of them."""
        return going < len(self.rows) and (not self.static or 2 * going <= len(self.rows))

    def keep(self, places: Sequence[int]) -> None:
        """Goes on with the questions at these places only. Rows of the cache that none of them has go when half do."""
        index = torch.tensor(places, device=self.ids.device)
        self.sees, self.ids, self.positions = (
            tensor.index_select(0, index) for tensor in (self.sees, self.ids, self.positions)
        )
        self.rows = [self.rows[place] for place in places]
        live = sorted(set(self.rows))
        if 2 * len(live) <= self.cache.rows:
            self.cache.select(torch.tensor(live, device=index.device))
            self.used = [self.used[row] for row in live]
            self.rows = [live.index(row) for row in self.rows]
        self._arrange()

    def __call__(self) -> Tensor:
        """Reads `ids`, which then are the chosen ones; returns the states (A, D), valid until the next step."""
        self._make_room()
        if not self.static:
            state = self._run([max(whole_blocks(self._next_used(row)) for row in band.rows) for band in self.bands])
        else:
            state = self._run_static()
        self.used = [self._next_used(row) for row in range(len(self.used))]
        self._steps += 1
        return state

    def _run(self, lengths: Sequence[int]) -> Tensor:
        """The step itself, looking at so many slots of each band. Waits for nothing."""
        self.sees.scatter_(1, self.slots[:, None], True)
        sees = self.sees.split([band.tokens for band in self.bands])
        views = [band.view(own[:, :length]) for band, own, length in zip(self.bands, sees, lengths, strict=True)]
        self.cache.expect(self.row * self.cache.capacity + self.slots, views)
        embedded = self.backbone.embed_tokens(self.ids)
        state = decode(self.backbone, embedded, self.positions.expand(3, -1), self.cache)
        self.ids.copy_(self.backbone.logits(state).argmax(-1))
        self.slots.add_(self.strides)
        self.positions.add_(1)
        return state

    def _run_static(self) -> Tensor:
        lengths = [self.cache.capacity] * len(self.bands)
        if self.captures and self._warm and self._graph is None:
            self._capture(lengths)
        if self._graph is None:
            self._warm = True  # kernels are chosen and libraries made ready outside of the capture
            return self._run(lengths)
        assert self._output is not None
        self._graph.replay()
        return self._output

    def _capture(self, lengths: Sequence[int]) -> None:
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

    def _arrange(self) -> None:
        """Gives each question of a row its turn among the row's slots. What was captured holds no more."""
        self.counts = Counter(self.rows)
        turns: Counter[int] = Counter()
        slots = []
        for row in self.rows:
            slots.append(self.used[row] + turns[row])
            turns[row] += 1
        table = [self.rows, slots, [self.counts[row] for row in self.rows]]
        self.row, self.slots, self.strides = torch.tensor(table, device=self.ids.device).unbind()
        self.bands = bands([self.counts[row] for row in range(len(self.used))], self.ids.device)
        self._forget()

    def _make_room(self) -> None:
        needed = max(map(self._next_used, range(len(self.used))))
        if needed > self.cache.capacity:
            self.cache.grow(max(2 * self.cache.capacity, needed))
            self.sees = F.pad(self.sees, (0, self.cache.capacity - self.sees.shape[1]))
            self._forget()

    def _forget(self) -> None:
        self._graph, self._output, self._warm = None, None, False

    def _next_used(self, row: int) -> int:
        return self.used[row] + self.counts[row]
