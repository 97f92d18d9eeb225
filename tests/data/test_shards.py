"""Shards: plain tars that hold the same samples, in a folder or at a remote address, each fetched once in a pass."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from dataset_writers.scenes import photo
from PIL import Image

from sail_lightning.data.sources import GRefCOCO, LaboratorySource, RefCOCO, ShardSource, Source
from sail_lightning.data.stream import PackedStream
from sail_lightning.data.webdataset.store import INDEX, ShardImage
from sail_lightning.data.webdataset.writer import ShardWriter, as_bytes
from sail_lightning.encoding.transform import EncodedSample, Encoder
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.image.preprocessing import load_image
from sail_lightning.sample import Box, Mask, Sample, Turn
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer(), patch_size=8)
SMALL = 12_000
"""Bytes of a shard, for a few records each."""


def write(address: Path | str, source: Source, shard_size: int = SMALL) -> ShardSource:
    with ShardWriter(str(address), shard_size) as writer:
        for index in range(source.length or 0):
            writer.add(source[index])
    return ShardSource(str(address))


def write_samples(address: Path | str, samples: list[Sample], shard_size: int = SMALL) -> ShardSource:
    with ShardWriter(str(address), shard_size) as writer:
        for sample in samples:
            writer.add(sample)
    return ShardSource(str(address))


def same(one: EncodedSample, other: EncodedSample) -> bool:
    """Whether a model sees no difference."""
    assert one.sequence.ids.tolist() == other.sequence.ids.tolist()
    assert np.array_equal(one.sequence.positions, other.sequence.positions)
    assert one.sequence.target_rows.tolist() == other.sequence.target_rows.tolist()
    assert np.array_equal(one.patches, other.patches) and one.seg_rows.tolist() == other.seg_rows.tolist()
    assert len(one.masks) == len(other.masks) and all(map(np.array_equal, one.masks, other.masks))
    for ours, theirs in zip(one.regions, other.regions, strict=True):
        assert ours.token_id == theirs.token_id
        assert np.array_equal(ours.patch_rows, theirs.patch_rows)
        assert np.array_equal(ours.mention_rows, theirs.mention_rows)
    return one.sample.turns == other.sample.turns and one.sample.id == other.sample.id


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty place of fsspec's file system in memory."""
    files = fsspec.filesystem("memory")
    root = f"/shards-{abs(hash(request.node.name))}"
    yield f"memory:/{root}"
    if files.exists(root):
        files.rm(root, recursive=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are kept in one test."""
    monkeypatch.setenv("SAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def cached(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.tar"))


# -- the same samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [RefCOCO, GRefCOCO, lambda: RefCOCO("refcoco+", "testA", separate=True)])
def test_samples_are_those_that_were_written(make: Any, data_root: Path, tmp_path: Path) -> None:
    source = make()
    shards = write(tmp_path / "set", source)
    assert shards.length == source.length > 0
    for index in range(source.length):
        assert same(ENCODER.encode(shards[index]), ENCODER.encode(source[index]))
        assert shards[index].source == str(tmp_path / "set")
    assert np.array_equal(shards.image_keys(), source.image_keys())  # so that `exclude` finds the same ones


def test_images_without_files_and_all_kinds_of_prompts_are_kept(tmp_path: Path) -> None:
    source = LaboratorySource("val", samples=40)
    shards = write(tmp_path / "set", source)
    for index in range(40):
        assert same(ENCODER.encode(shards[index]), ENCODER.encode(source[index]))
    assert not shards.image_keys().any()


def test_words_alone_and_several_images_are_kept(tmp_path: Path) -> None:
    pictures = [photo(number).save(tmp_path / f"{number}.png") for number in range(2)]
    words = Sample(None, (Turn("Hello?", "Yes."),), id="words")
    two = Sample(tuple(pictures), (Turn("Which?", "[SEG].", "refer", (0,)),), (photo(0).things[0].mask,), id="two")
    shards = write_samples(tmp_path / "set", [words, two, words])
    assert [same(ENCODER.encode(shards[i]), ENCODER.encode(one)) for i, one in enumerate([words, two, words])] == [
        True
    ] * 3


def test_jpeg_and_png_are_copied_and_other_formats_are_png_with_the_same_pixels(tmp_path: Path) -> None:
    drawn = Image.open(photo(0).save(tmp_path / "a.png"))
    drawn.save(tmp_path / "b.jpg", quality=50)
    drawn.quantize(8).save(tmp_path / "c.png")
    drawn.save(tmp_path / "d.webp", quality=30)
    drawn.convert("CMYK").save(tmp_path / "e.jpeg")
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "c.png", "d.webp", "e.jpeg")]
    shards = write_samples(tmp_path / "set", [Sample(str(path), (Turn("?"),)) for path in paths], 10**6)
    with tarfile.open(tmp_path / "set/000000.tar") as tar:
        names = [name for name in tar.getnames() if not name.endswith(".json")]
    assert names == [f"{n:09d}.{ending}" for n, ending in enumerate(("png", "jpg", "png", "png", "jpg"))]
    for index, path in enumerate(paths):
        picture: Any = shards[index].image
        assert np.array_equal(load_image(picture), load_image(path))
        if path.suffix != ".webp":
            assert picture() == path.read_bytes()


def test_shards_of_shards_are_the_same(data_root: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", RefCOCO())
    second = write(tmp_path / "second", first)
    assert (tmp_path / "first/000000.tar").read_bytes() == (tmp_path / "second/000000.tar").read_bytes()
    assert np.array_equal(first.image_keys(), second.image_keys())


def test_a_sample_is_small_and_travels_between_processes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    shards = write_samples(tmp_path / "set", [Sample(pixels, (Turn("?"),), id=str(n)) for n in range(200)], 10**6)
    for index in (0, 199):
        assert len(pickle.dumps(shards)) < 500
        sample = pickle.loads(pickle.dumps(shards))[index]
        assert len(pickle.dumps(sample)) < 1000
        assert np.array_equal(load_image(pickle.loads(pickle.dumps(sample)).image), pixels)


# -- plain tars -------------------------------------------------------------------------------------------------------


def test_a_shard_is_a_tar_by_the_rules_of_webdataset(data_root: Path, tmp_path: Path) -> None:
    source = RefCOCO("refcoco", "val", separate=True)
    write(tmp_path / "set", source)
    paths = sorted((tmp_path / "set").glob("*.tar"))
    assert [path.name for path in paths] == [f"{number:06d}.tar" for number in range(len(paths))] and len(paths) > 1
    found = []
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")  # as WebDataset splits a name
                assert member.isfile()
                if not found or found[-1]["__key__"] != key:  # members of a record follow each other
                    found.append({"__key__": key})
                found[-1][ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert len({record["__key__"] for record in found}) == len(found) == source.length
    for index, record in enumerate(found):
        assert record.keys() == {"__key__", "json", "jpg"}
        content = json.loads(record["json"])
        assert content["image"] == f"{record['__key__']}.jpg"  # so an unpacked shard is a data set as well
        assert content["id"] == source[index].id
        assert record["jpg"] == Path(str(source[index].image)).read_bytes()


def test_shards_are_as_large_as_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)  # about 5 kB
    samples = [Sample(pixels, (Turn("?"),)) for _ in range(8)]
    for size, shards in ((25_000, 4), (1, 8), (10**9, 1)):
        write_samples(tmp_path / str(size), samples, size)
        sizes = [path.stat().st_size for path in (tmp_path / str(size)).glob("*.tar")]
        assert len(sizes) == shards and (size == 1 or max(sizes) <= size)


@pytest.mark.parametrize(
    ("text", "number"), [("512MB", 512_000_000), ("1.5 gb", 1_500_000_000), ("700", 700), ("2K", 2000)]
)
def test_sizes_are_written_with_their_unit(text: str, number: int) -> None:
    assert as_bytes(text) == number


@pytest.mark.parametrize("text", ["", "0MB", "many", "5 PB", "-1GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SailUsageError, match="a size is written such as 512MB or 2GB, not"):
        as_bytes(text)


# -- whole or not at all ----------------------------------------------------------------------------------------------


def broken(tmp_path: Path) -> list[Sample]:
    good = Sample(str(photo(0).save(tmp_path / "a.png")), (Turn("?"),), id="good")
    return [good, good, Sample(str(tmp_path / "gone.png"), (Turn("?"),), id="bad")]


def test_nothing_is_left_of_a_folder_that_could_not_be_finished(tmp_path: Path) -> None:
    samples = broken(tmp_path)
    with pytest.raises(SailError, match=r"no image .*gone.png"):
        write_samples(tmp_path / "out/set", samples, 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_of_a_remote_set_that_could_not_be_finished(tmp_path: Path, remote: str) -> None:
    with pytest.raises(SailError, match=r"no image .*gone.png"):
        write_samples(remote, broken(tmp_path), 1)
    files, root = fsspec.core.url_to_fs(remote)
    assert files.find(root) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path, remote: str) -> None:
    samples = broken(tmp_path)[:1]
    write_samples(tmp_path / "set", samples)
    with pytest.raises(SailUsageError, match=r"set exists already; name another folder or remove it"):
        ShardWriter(str(tmp_path / "set"))
    write_samples(remote, samples)
    with pytest.raises(SailUsageError, match=r"has an index.npy already; name another place or remove"):
        ShardWriter(remote)
    (tmp_path / "empty").mkdir()
    assert write_samples(tmp_path / "empty", samples).length == 1


# -- order ------------------------------------------------------------------------------------------------------------


def numbered(count: int) -> list[Sample]:
    """Samples of about 2 kB in a shard."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return [Sample(pixels, (Turn("?", "yes"),), id=str(number)) for number in range(count)]


def test_a_pass_is_a_permutation_that_mixes_a_window_of_shards_at_a_time(tmp_path: Path) -> None:
    write_samples(tmp_path / "set", numbered(60))
    source = ShardSource(str(tmp_path / "set"), window=3)
    shard = source.store.index["shard"]
    count = int(shard[-1]) + 1
    assert count >= 9
    order = source.order(np.random.default_rng(0))
    assert sorted(order) == list(range(60))
    assert np.array_equal(order, source.order(np.random.default_rng(0)))
    assert not np.array_equal(order, source.order(np.random.default_rng(1)))
    visits = [int(number) for number in shard[order]]
    place = 0
    seen: set[int] = set()
    while place < 60:
        window = set(list(dict.fromkeys(visits[place:]))[:3])
        size = int(np.isin(shard, list(window)).sum())
        assert set(visits[place : place + size]) == window and not window & seen
        assert visits[place : place + size] != sorted(visits[place : place + size])  # mixed, not one after another
        seen |= window
        place += size
    assert len(seen) == count


# -- a remote address -------------------------------------------------------------------------------------------------


class Counted:
    """Counts the files that are fetched from a kind of file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, protocol: str = "memory") -> None:
        self.names: Counter[str] = Counter()
        kind = type(fsspec.filesystem(protocol))
        fetch = kind.get_file

        def counted(files: Any, path: str, target: str, **rest: Any) -> None:
            self.names[path.rpartition("/")[2]] += 1
            fetch(files, path, target, **rest)

        monkeypatch.setattr(kind, "get_file", counted)


def test_a_remote_set_is_the_same_as_a_local_one(data_root: Path, tmp_path: Path, remote: str, cache: Path) -> None:
    source = RefCOCO()
    there, here = write(remote, source), write(tmp_path / "set", source)
    assert there.length == source.length and np.array_equal(there.image_keys(), here.image_keys())
    for seed in range(3):
        orders = [one.order(np.random.default_rng(seed)).tolist() for one in (there, here)]
        assert orders[0] == orders[1]  # a run may go on where the shards lie elsewhere
    for index in range(source.length):
        assert same(ENCODER.encode(there[index]), ENCODER.encode(here[index]))


def test_each_shard_is_fetched_once_in_a_pass_and_the_cache_is_bounded(
    remote: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(remote, numbered(60))
    fetched = Counted(monkeypatch)
    source = ShardSource(remote, window=2, cache_size="50kB")
    shards = int(source.store.index["shard"][-1]) + 1
    largest = 0
    for index in source.order(np.random.default_rng(0)):
        assert load_image(source[int(index)].image).shape == (16, 16, 3)  # type: ignore[arg-type]
        largest = max(largest, sum(path.stat().st_size for path in cached(cache)))
    assert fetched.names == {INDEX: 1} | {f"{number:06d}.tar": 1 for number in range(shards)}
    assert 20_000 < largest <= 50_000 < shards * 10_000


def test_ranks_that_read_a_pass_together_fetch_each_shard_once(
    remote: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(remote, numbered(60))
    fetched = Counted(monkeypatch)
    sources = [ShardSource(remote, window=2, cache_size="50KB") for _ in range(2)]
    streams = [PackedStream(source, ENCODER, 1, 0, rank, 2) for rank, source in enumerate(sources)]
    seen = [
        sample.id
        for batches in zip(*(islice(stream, 29) for stream in streams), strict=True)  # one sample is read ahead
        for batch in batches
        for sample in batch.samples
    ]
    assert len(seen) == len(set(seen)) == 58
    assert len(fetched.names) > 10 and set(fetched.names.values()) == {1}


def test_readers_that_want_a_shard_at_the_same_time_fetch_it_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(tmp_path / "set", numbered(60))
    fetched = Counted(monkeypatch, "file")
    sources = [ShardSource(f"file://{tmp_path / 'set'}", cache_size="40KB") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        firsts = list(pool.map(lambda source: source[0].id, sources))
        assert firsts == ["0"] * 4 and fetched.names == {INDEX: 1, "000000.tar": 1}
        everything = pool.map(lambda n: sources[n % 4][(7 * n) % 60].id, range(240))  # shards are dropped all the time
        assert list(everything) == [str((7 * n) % 60) for n in range(240)]
    assert sum(path.stat().st_size for path in cached(cache)) <= 40_000


def test_what_was_read_last_stays_in_the_cache(remote: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_samples(remote, numbered(30))
    source = ShardSource(remote, cache_size="50kB")
    first = {int(shard): index for index, shard in reversed(list(enumerate(source.store.index["shard"])))}
    fetched = Counted(monkeypatch)
    for shard in (0, 1, 0, 2, 0, 3, 0):
        source[first[shard]]
    assert fetched.names["000000.tar"] == 1


def test_another_source_finds_the_shards_in_the_cache(
    remote: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(remote, numbered(10))
    ShardSource(remote)[0]
    (cached(cache)[0].parent / "000001.tar.part").write_text("left by a process that was stopped")
    fetched = Counted(monkeypatch)
    again = pickle.loads(pickle.dumps(ShardSource(remote)))
    again[0]
    assert fetched.names == {}
    assert again[9].id == "9" and not list(cache.rglob("*.part"))


def test_a_set_that_was_written_anew_is_fetched_anew(remote: str, cache: Path) -> None:
    write_samples(remote, numbered(3))
    assert ShardSource(remote).length == 3 and ShardSource(remote)[2].id == "2"
    files, root = fsspec.core.url_to_fs(remote)
    files.rm(root, recursive=True)
    write_samples(remote, numbered(5)[::-1])
    assert ShardSource(remote).length == 5 and ShardSource(remote)[2].id == "2" and ShardSource(remote)[0].id == "4"


def test_a_cache_that_is_too_small_is_refused(remote: str, cache: Path) -> None:
    write_samples(remote, numbered(60))
    with pytest.raises(
        SailUsageError, match=r"a window of 8 shards of memory://.* has \d+ bytes, and cache_size is 50000"
    ):
        ShardSource(remote, cache_size="50KB").order(np.random.default_rng(0))
    with pytest.raises(SailError, match=r"000000.tar has \d+ bytes, more than cache_size 1000; raise it"):
        ShardSource(remote, cache_size="1KB")[0]
    with pytest.raises(SailUsageError, match="window must be 1 or more, not 0"):
        ShardSource(remote, window=0)


def test_an_address_of_no_known_kind_is_told() -> None:
    with pytest.raises(SailUsageError, match=r"nowhere://set cannot be opened: Protocol not known: nowhere"):
        ShardSource("nowhere://set").length  # noqa: B018


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of one shard with three records, to be damaged."""
    write_samples(tmp_path / "set", [Sample(str(photo(0).save(tmp_path / "a.png")), (Turn("?"),), id="a")] * 3, 10**6)
    return tmp_path / "set"


def test_a_truncated_shard_is_named(damaged: Path) -> None:
    shard, source = damaged / "000000.tar", ShardSource(str(damaged))
    end = int(source.store.index["end"][1])
    shard.write_bytes(shard.read_bytes()[: end - 100])
    assert load_image(source[0].image) is not None  # type: ignore[arg-type]
    with pytest.raises(
        SailError, match=rf"set/000000.tar is truncated: it has {end - 100} bytes, .* {end}; copy it again"
    ):
        load_image(source[1].image)  # type: ignore[arg-type]
    with pytest.raises(SailError, match=r"set/000000.tar is truncated"):
        source[2]


def test_a_damaged_record_is_named(damaged: Path) -> None:
    shard, source = damaged / "000000.tar", ShardSource(str(damaged))
    whole = shard.read_bytes()
    start = int(source.store.index["start"][1])
    for place, sentence in (
        (start + 5, "is damaged: no 000000001.json where the index says; copy it again"),
        (start + 513, "is damaged: 000000001.json is not a record; copy it again"),
        (start + 515, "000000001.json: the record has no key id"),
    ):
        shard.write_bytes(whole[:place] + b"#" + whole[place + 1 :])
        assert source[0].id == source[2].id == "a"
        with pytest.raises(SailError, match=rf"set/000000.tar {sentence}"):
            source[1]
    picture: Any = source[2].image
    shard.write_bytes(whole[: picture.start + 5] + b"#" + whole[picture.start + 6 :])
    with pytest.raises(SailError, match=r"set/000000.tar is damaged: no 000000002.png where the index says"):
        load_image(source[2].image)  # type: ignore[arg-type]
    shard.write_bytes(whole[: picture.start + 520] + b"#" * 8 + whole[picture.start + 528 :])
    with pytest.raises(SailError, match=r"set/000000.tar/000000002.png is not a readable image"):
        load_image(source[2].image)  # type: ignore[arg-type]


def test_a_missing_or_foreign_index_or_shard_is_named(damaged: Path, remote: str, cache: Path) -> None:
    with pytest.raises(
        SailError, match=r"no .*gone/index.npy; shards are written by sail-lightning data convert --shards"
    ):
        ShardSource(str(damaged.parent / "gone")).length  # noqa: B018
    with pytest.raises(SailError, match=r"no memory://.*/index.npy; shards are written by"):
        ShardSource(remote).length  # noqa: B018
    shutil.copytree(damaged, damaged.parent / "other")
    (damaged.parent / "other/000000.tar").unlink()
    with pytest.raises(SailError, match=r"no shard .*other/000000.tar; copy it again"):
        ShardSource(str(damaged.parent / "other"))[0]
    for content, sentence in ((b"no", "is damaged"), (None, "is not an index of shards; write them with")):
        if content is None:
            np.save(damaged / INDEX, np.zeros(3))
        else:
            (damaged / INDEX).write_bytes(content)
        with pytest.raises(SailError, match=rf"set/index.npy {sentence}"):
            ShardSource(str(damaged)).length  # noqa: B018


def test_a_download_that_ends_early_is_told_and_not_kept(
    remote: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_samples(remote, numbered(3))
    assert source.length == 3
    with monkeypatch.context() as patch:
        cut = lambda files, path, target, **rest: Path(target).write_bytes(files.cat_file(path)[:100])  # noqa: E731
        patch.setattr(type(fsspec.filesystem("memory")), "get_file", cut)
        with pytest.raises(SailError, match=r"000000.tar came with 100 of its 10240 bytes; try again"):
            source[0]
    assert not cached(cache) and not list(cache.rglob("*.part"))
    assert source[0].id == "0"


def test_a_shard_that_is_gone_from_a_remote_address_is_named(remote: str, cache: Path) -> None:
    source = write_samples(remote, numbered(3))
    files, root = fsspec.core.url_to_fs(remote)
    files.rm_file(f"{root}/000000.tar")
    with pytest.raises(SailError, match=r"no memory://.*/000000.tar; copy it again"):
        source[0]


def test_a_broken_mask_names_the_image_and_prompts_survive(tmp_path: Path) -> None:
    mask = photo(0).things[0].mask
    sample = Sample(
        str(photo(0).save(tmp_path / "a.png")), (Turn("<Prompt1>?", "a."),), (), (Mask(mask, 1), Box(1, 2, 3, 4, 0))
    )
    read = write_samples(tmp_path / "set", [sample])[0]
    assert isinstance(read.image, ShardImage) and str(read.image) == str(tmp_path / "set/000000.tar/000000000.png")
    assert same(ENCODER.encode(read), ENCODER.encode(sample))
