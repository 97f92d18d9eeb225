"""How a packed batch may attend: image spans see themselves wholly, everything else looks back.

The rule (paper section 3.1, official `create_single_prefix_mask`) is: same sample and (key not after query, or key in
the query's own image span). It is kept as host integers, one list of spans per sample; no dense mask is ever made
outside tests. Every span's queries see exactly the keys from the sample's start to the span's end, so a batch is two
variable-length calls: image spans without a mask, text spans causal from the bottom right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

SpanKind = Literal["image", "text"]


@dataclass(frozen=True)
class Span:
    """A run of `length` tokens: `image` (bidirectional, `<vision>` to `</vision>`) or `text` (causal)."""

    kind: SpanKind
    length: int


@dataclass(frozen=True, eq=False)
class VarlenCall:
    """One variable-length attention call: blocks of queries, each over its own block of keys.

    `query_lengths` and `key_lengths` have one entry a block; `query_rows` and `key_rows` are rows of the packed
    batch, or None where they are all rows in order. `causal` blocks are aligned at the bottom right.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_rows: Tensor | None
    key_rows: Tensor | None
    causal: bool


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The spans of every sample of a packed batch, in order. Built once per batch from host integers."""

    samples: tuple[tuple[Span, ...], ...]
    calls: tuple[VarlenCall, ...]
    inverse: Tensor | None
    """Where each row's output lies in the calls' outputs, concatenated; None where that is already in order."""
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What a kernel made of this plan (biases, masks), so that it is made once and not once a layer."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sample."""
        return tuple(sum(span.length for span in sample) for sample in self.samples)

    @classmethod
    def build(cls, samples: list[list[Span]], device: torch.device | str = "cpu") -> AttentionPlan:
        """Decomposes the spans into at most two calls; index tensors are put on `device`."""
        kept = tuple(tuple(span for span in spans if span.length > 0) for spans in samples)
        total = sum(span.length for spans in kept for span in spans)
        calls: list[VarlenCall] = []
        order: list[Tensor] = []
        for kind in ("image", "text"):
            query_lengths: list[int] = []
            key_lengths: list[int] = []
            queries: list[Tensor] = []
            keys: list[Tensor] = []
            base = 0
            for spans in kept:
                end = 0
                for span in spans:
                    start, end = end, end + span.length
                    if span.kind == kind:
                        query_lengths.append(span.length)
                        key_lengths.append(end)
                        queries.append(torch.arange(base + start, base + end))
                        keys.append(torch.arange(base, base + end))
                base += end
            if query_lengths:
                query_rows, key_rows = torch.cat(queries), torch.cat(keys)
                order.append(query_rows)
                calls.append(
                    VarlenCall(
                        tuple(query_lengths),
                        tuple(key_lengths),
                        _unless_identity(query_rows, total, device),
                        _unless_identity(key_rows, total, device),
                        kind == "text",
                    )
                )
        inverse = None
        if len(calls) > 1:
            inverse = _unless_identity(torch.argsort(torch.cat(order)), total, device)
        return cls(kept, tuple(calls), inverse)

    def dense_mask(self) -> Tensor:
        """The rule as one (T, T) bool tensor, True where a query (row) may see a key (column): the tests' oracle."""
        sample_ids: list[int] = []
        span_ids: list[int] = []
        count = 0
        for index, spans in enumerate(self.samples):
            for span in spans:
                count += 1
                sample_ids += [index] * span.length
                span_ids += [count if span.kind == "image" else -count] * span.length
        sample, span_of = torch.tensor(sample_ids), torch.tensor(span_ids)
        row = torch.arange(len(sample_ids))
        same_image = (span_of[:, None] == span_of[None]) & (span_of[:, None] > 0)
        return (sample[:, None] == sample[None]) & ((row[None] <= row[:, None]) | same_image)


def _unless_identity(rows: Tensor, total: int, device: torch.device | str) -> Tensor | None:
    if len(rows) == total and bool((rows == torch.arange(total)).all()):
        return None
    return rows.to(device, non_blocking=True)
