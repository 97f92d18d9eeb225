"""A data source of shards that `sail-lightning data convert --shards` wrote, in a folder or at an fsspec address."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.jsonl import from_json
from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.indexed import data_path
from sail_lightning.data.webdataset.store import BLOCK, ShardImage, ShardStore, is_remote, key_of, padded, shard_name
from sail_lightning.data.webdataset.writer import as_bytes
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.registry import register
from sail_lightning.sample import Sample
from sail_lightning.settings.ranges import PositiveInt


@register
class ShardSource(Source):
    """Reads converted samples in any order; a shard at a remote address is downloaded first.

    A pass shuffles the shards, and then the records of a few shards together, so that each shard is downloaded once.
    The order does not depend on where the shards are stored.

    Args:
        address: A folder, or an fsspec address such as `s3://bucket/folder` or `hf://datasets/name/folder`.
        window: Number of shards that are shuffled together.
        cache_size: Disk space for shards of a remote address: a window of them, or two where workers read at
            different speeds.
        options: Options of the fsspec file system, such as `{anon: true}`.
    """

    def __init__(
        self, address: str, window: PositiveInt = 8, cache_size: str = "16GB", options: dict[str, Any] | None = None
    ) -> None:
        self.window = window
        where = address if is_remote(address) else str(data_path(address))
        self.store = ShardStore(where, as_bytes(cache_size), dict(options or {}))

    @property
    def length(self) -> int:
        return len(self.store.index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        entry = self.store.index[index]
        shard, start, end, size = (int(entry[name]) for name in ("shard", "start", "end", "json"))
        place, name = self.store.address_of(shard_name(shard)), f"{key_of(index)}.json"
        text = self.store.member(shard, start, start + BLOCK + size, name)
        try:
            record = json.loads(text)
            names = record["image"] if isinstance(record["image"], list) else [record["image"]]
        except (ValueError, KeyError, TypeError):
            raise SailError(f"{place} is damaged: {name} is not a record; copy it again") from None
        first = start + BLOCK + padded(size)
        images = [
            ShardImage(self.store, shard, first, end, str(one), 0 if number else int(entry["picture"]))
            for number, one in enumerate(names)
            if one is not None
        ]
        try:
            return from_json(record, self.store.folder, self.store.address, images)
        except SailError as error:
            raise SailError(f"{place} {name}: {error}") from None

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        shards = self.store.index["shard"]
        bounds = np.searchsorted(shards, np.arange(int(shards[-1]) + 2 if len(shards) else 1))
        self._check_cache(bounds)
        mixed = rng.permutation(len(bounds) - 1)
        order = [np.empty(0, np.int64)]
        for place in range(0, len(mixed), self.window):
            records = [np.arange(bounds[shard], bounds[shard + 1]) for shard in mixed[place : place + self.window]]
            order.append(rng.permutation(np.concatenate(records)))
        return np.concatenate(order)

    def _check_cache(self, bounds: NDArray[np.int64]) -> None:
        """Refuses a window that the cache cannot hold, which would be downloaded again for every few records."""
        sizes = np.sort(self.store.index["end"][bounds[1:] - 1])[::-1]
        needed = int(sizes[: self.window].sum())
        if is_remote(self.store.address) and needed > self.store.cache_size:
            raise SailUsageError(
                f"a window of {self.window} shards of {self.store.address} has {needed} bytes, and cache_size is "
                f"{self.store.cache_size}; raise cache_size or lower window"
            )

    def image_keys(self) -> NDArray[np.uint64]:
        return np.asarray(self.store.index["picture"], np.uint64)
