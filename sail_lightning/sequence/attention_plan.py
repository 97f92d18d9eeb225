"""Which tokens of a packed batch attend to which: bidirectional within an image span, causal elsewhere.

The rule (paper section 3.1, official `create_single_prefix_mask`): a query attends to a key of the same sample that is
not after it, or is in its own image span. The rule is stored as host integers, one list of spans per sample; a dense
mask is made only in tests. The queries of a span attend to the keys from the start of the sample to the end of the
span, so a batch takes two variable-length calls: image spans without a mask, text spans with a causal one aligned at
the bottom right.
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
    """One variable-length attention call: blocks of queries, each with its own block of keys.

    `query_lengths` and `key_lengths` have one entry per block; `query_rows` and `key_rows` are rows of the packed
    batch, or None if they are all rows in order. `causal` blocks are aligned at the bottom right.
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
    """Index of each row's output in the concatenated outputs of the calls; None if they are in order."""
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What a kernel derives from this plan, such as masks, so that it is made once and not in every layer."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each sample."""
        return tuple(sum(span.length for span in sample) for sample in self.samples)

    @classmethod
    def build(cls, samples: list[list[Span]], device: torch.device | str = "cpu") -> AttentionPlan:
        """Makes the plan of the spans of each sample, at most two calls; index tensors are on `device`."""
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
        """The rule as a (T, T) bool tensor, True if a query (row) attends to a key (column); the reference in tests."""
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
