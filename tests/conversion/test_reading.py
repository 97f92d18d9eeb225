"""Checkpoints of every kind are read to the tensors that were saved; nothing in them is run; faults are one sentence.

The folders are written here: FSDP's by torch itself, DeepSpeed's by the layout that its own files have.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import re
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.weights.reading import Checkpoint, read_tensors


def weights() -> dict[str, Tensor]:
    """Odd sizes, several dtypes, a scalar, names with dots."""
    generator = torch.Generator().manual_seed(1)
    return {
        "model.embed.weight": torch.randn(7, 3, generator=generator),
        "model.layers.0.bias": torch.randn(5, generator=generator).bfloat16(),
        "model.layers.0.steps": torch.tensor(3),
        "head.weight": torch.randn(1, 11, generator=generator).half(),
    }


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert found[name].device.type == "cpu" and not found[name].requires_grad


def refused(path: Path, *words: str) -> None:
    """Reading fails with one sentence that has these words."""
    with pytest.raises(SailError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message and len(message) < 500


def is_mapped(path: Path) -> bool:
    """Whether a file is mapped into this process's memory."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux says which files are mapped")
    return str(path.resolve()) in maps.read_text()


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_safetensors_file_is_read_and_mapped(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert (found.kind, found.source, found.dropped) == ("safetensors", tmp_path / "x.safetensors", ())
    assert_same(found.tensors, weights())
    assert is_mapped(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin"])
def test_a_bare_state_dict_is_read_and_mapped(tmp_path: Path, name: str) -> None:
    saved = {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in weights().items()}
    torch.save(OrderedDict(saved), tmp_path / name)
    found = read_tensors(tmp_path / name)
    assert found.kind == "torch"
    assert_same(found.tensors, weights())
    assert is_mapped(tmp_path / name)


def mmengine_content() -> dict[str, Any]:
    hub = MessageHub.get_instance("test_reading")
    for step in range(3):
        hub.update_scalar("train/loss", 1.5 * step)
    hub.update_info("sizes", np.arange(3))
    return {
        "meta": {"epoch": 1, "seed": np.int64(3), "cfg": "model = dict()"},
        "state_dict": weights(),
        "message_hub": hub.state_dict(),
        "optimizer": {"state": defaultdict(dict, {0: {"exp_avg": torch.ones(3)}}), "recent": deque([1, 2], 3)},
        "param_schedulers": [{"last_step": 3}],
    }


def test_an_mmengine_checkpoint_is_read_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    torch.save(mmengine_content(), tmp_path / "iter_3.pth")
    allowed = set(torch.serialization.get_safe_globals())
    found = read_tensors(tmp_path / "iter_3.pth")
    assert found.kind == "mmengine"
    assert found.dropped == ("meta", "message_hub", "optimizer", "param_schedulers")
    assert_same(found.tensors, weights())
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_file_from_before_zip_archives_is_read(tmp_path: Path) -> None:
    content = {"meta": {"epoch": 1}, "state_dict": weights()}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert_same(read_tensors(tmp_path / "x.pth").tensors, weights())


def test_a_file_that_was_packed_anew_is_read(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pth")
    with ZipFile(tmp_path / "x.pth") as old, ZipFile(tmp_path / "y.pth", "w", ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(read_tensors(tmp_path / "y.pth").tensors, weights())


def test_a_lightning_checkpoint_is_read_with_its_hyper_parameters(tmp_path: Path) -> None:
    settings = {"mask_channels": 16, "backbone": {"class_path": "SailTiny", "init_args": {"sizes": [1, 2]}}}
    content = {"epoch": 2, "pytorch-lightning_version": "2.6.4", "state_dict": weights(), "hyper_parameters": settings}
    torch.save(content | {"optimizer_states": [{"state": {}}]}, tmp_path / "last.ckpt")
    found = read_tensors(tmp_path / "last.ckpt")
    assert (found.kind, found.hyper_parameters) == ("lightning", settings)
    assert found.dropped == ("epoch", "pytorch-lightning_version", "optimizer_states")
    assert_same(found.tensors, weights())


def test_hyper_parameters_that_are_objects_are_left_out_by_name(tmp_path: Path) -> None:
    content = {"pytorch-lightning_version": "2", "hyper_parameters": {"path": Path("somewhere")}}
    torch.save(content | {"state_dict": weights()}, tmp_path / "x")
    found = read_tensors(tmp_path / "x")
    assert (found.hyper_parameters, found.dropped) == ({}, ("pytorch-lightning_version", "hyper_parameters"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_forward_module.", "module._orig_mod."])
def test_what_wrappers_put_before_every_name_is_taken_off(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + name: tensor for name, tensor in weights().items()}, tmp_path / "x.safetensors")
    assert_same(read_tensors(tmp_path / "x.safetensors").tensors, weights())


def test_what_stands_before_some_names_only_is_a_name(tmp_path: Path) -> None:
    saved = {"module.a": torch.ones(1), "b": torch.ones(1)}
    save_file(saved, tmp_path / "x.safetensors")
    assert_same(read_tensors(tmp_path / "x.safetensors").tensors, saved)


def test_state_that_modules_keep_beside_their_tensors_is_left_out(tmp_path: Path) -> None:
    torch.save({"state_dict": {**weights(), "head._extra_state": None}}, tmp_path / "x.pth")
    assert_same(read_tensors(tmp_path / "x.pth").tensors, weights())


# -- safety -----------------------------------------------------------------------------------------------------------


class Command:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def commands(marker: Path) -> dict[str, Command]:
    """Calls that would make a file, by the name that the refusal has."""
    return {
        f"{os.name}.system" if os.name == "nt" else "posix.system": Command(os.system, f"touch {marker}"),
        "eval": Command(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Command(exec, f"open({str(marker)!r}, 'w')"),
        "open": Command(open, str(marker), "w"),
    }


@pytest.mark.parametrize("name", ["system", "eval", "exec", "open"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_names_a_command_is_refused_and_nothing_is_run(tmp_path: Path, name: str, zipped: bool) -> None:
    marker = tmp_path / "made"
    full, command = next((full, found) for full, found in commands(marker).items() if full.endswith(name))
    for content in ({"meta": command, "state_dict": weights()}, {"state_dict": {"a": command}}, command):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        refused(tmp_path / "x.pth", "x.pth", full, "do not use")
    assert not marker.exists()


def test_a_command_behind_another_call_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    inner = pickle.dumps(Command(os.system, f"touch {marker}"))
    torch.save({"meta": Command(pickle.loads, inner), "state_dict": weights()}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "pickle.loads")
    torch.save({"meta": Command(partial, Command(map, print, inner)), "state_dict": weights()}, tmp_path / "x.pth")
    assert_same(read_tensors(tmp_path / "x.pth").tensors, weights())
    assert not marker.exists()


def test_classes_that_are_not_known_are_neither_imported_nor_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from enum import Enum
from pathlib import Path
Path(__file__).with_name("imported").touch()
class Kept:
    class Inner:
        pass
    def __new__(cls, *arguments):
        Path(__file__).with_name("made").touch()
        return super().__new__(cls)
    def __setstate__(self, state):
        Path(__file__).with_name("filled").touch()
class Stage(Enum):
    weights = 3
"""
    (tmp_path / "module_of_a_trainer.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("module_of_a_trainer")
    kept = module.Kept()
    kept.words, kept.inner = {"a": [1]}, module.Kept.Inner()
    content = {"meta": {"kept": kept, "stage": module.Stage.weights, "class": module.Kept.Inner}}
    torch.save(content | {"state_dict": weights()}, tmp_path / "x.pth")
    for marker in ("imported", "made"):
        (tmp_path / marker).unlink()
    del sys.modules["module_of_a_trainer"]

    assert_same(read_tensors(tmp_path / "x.pth").tensors, weights())
    assert "module_of_a_trainer" not in sys.modules
    assert [marker for marker in ("imported", "made", "filled") if (tmp_path / marker).exists()] == []
    torch.save({"state_dict": {"a": torch.ones(1), "b": Command(nn.Identity)}}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "x.pth", "b is no tensor")


# -- broken and foreign files -----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "none.pth", "check the path")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.ckpt"])
@pytest.mark.parametrize("content", [b"", b"\0", b"hello, world\n" * 9, b"PK\x03\x04" + bytes(90), bytes(range(256))])
def test_a_foreign_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, str(tmp_path / name))


@pytest.mark.parametrize("kind", ["x.safetensors", "x.pth", "legacy.pth"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / kind
    if kind == "x.safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=kind != "legacy.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, str(path), "copy it again")


def test_a_pointer_to_a_large_file_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(tmp_path, "model.safetensors", "git lfs pull")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "has no state_dict but model, epoch"),
        ({"a": torch.ones(1), "epoch": 3}, "epoch is no tensor but int"),
        ({"state_dict": {"a": {"b": torch.ones(1)}}}, "a is no tensor but dict"),
        ([torch.ones(1)], "holds no tensors by name"),
        ({"state_dict": {}}, "holds no tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "x.pth", words)


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")  # files of this kind stay about when it is gone
def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    refused(tmp_path / "x.pt", "x.pt", "TorchScript")


# -- Hugging Face -----------------------------------------------------------------------------------------------------


def write_shards(folder: Path, ending: str = "safetensors") -> tuple[Path, list[Path]]:
    """The weights in two shards; their index and the shards."""
    names = sorted(weights())
    stem = "model" if ending == "safetensors" else "pytorch_model"
    shards = [folder / f"{stem}-{number:05}-of-00002.{ending}" for number in (1, 2)]
    for shard, part in zip(shards, (names[:1], names[1:]), strict=True):
        content = {name: weights()[name] for name in part}
        save_file(content, shard) if ending == "safetensors" else torch.save(content, shard)
    index = folder / f"{stem}.{ending}.index.json"
    weight_map = {name: shards[name != names[0]].name for name in names}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, shards


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_sharded_folder_is_read(tmp_path: Path, ending: str) -> None:
    write_shards(tmp_path, ending)
    found = read_tensors(tmp_path)
    assert found.kind == "huggingface"
    assert_same(found.tensors, weights())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_file_is_read(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(weights(), tmp_path / name)
    found = read_tensors(tmp_path)
    assert found.kind == "huggingface"
    assert_same(found.tensors, weights())


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_faulty_shard_is_named(tmp_path: Path, ending: str) -> None:
    _, (first, second) = write_shards(tmp_path, ending)
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    refused(tmp_path, str(second), "copy it again")
    second.unlink()
    refused(tmp_path, str(second), "missing")
    second.write_bytes(first.read_bytes())
    refused(tmp_path, str(second), "lacks model.embed.weight")
    second.write_bytes(content)
    first.write_bytes(content)
    refused(tmp_path, str(first), "lacks head.weight")
    more = {"head.weight": torch.ones(1), "other": torch.ones(1)}
    save_file(more, first) if ending == "safetensors" else torch.save(more, first)
    refused(tmp_path, str(first), "holds other")


def test_a_faulty_index_is_named(tmp_path: Path) -> None:
    index, (first, _) = write_shards(tmp_path)
    refused(first, str(first), "one part", str(tmp_path))
    for text, words in (("{", "JSON"), ("{}", "weight_map"), ('{"weight_map": {"a": "../x.safetensors"}}', "../x")):
        index.write_text(text)
        refused(tmp_path, str(index), words)
    index.unlink()
    refused(tmp_path, first.name, index.name)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, str(tmp_path), "no checkpoint")


# -- DeepSpeed --------------------------------------------------------------------------------------------------------


def pieces_of(tensor: Tensor, world: int) -> list[Tensor]:
    """A tensor in pieces of the same length, one for each process; the end is padded with what must not show."""
    length = math.ceil(tensor.numel() / world)
    padded = torch.full((length * world,), float("nan"), dtype=tensor.dtype)
    padded[: tensor.numel()] = tensor.flatten()
    return list(padded.split(length))


def stage_class() -> Any:
    """The enumeration that DeepSpeed's files name; a module of the same name is there only while they are written."""
    import enum

    module = types.ModuleType("deepspeed_of_a_test")
    module.ZeroStageEnum = enum.Enum(  # type: ignore[attr-defined]
        "ZeroStageEnum", "weights", module="deepspeed_of_a_test", qualname="ZeroStageEnum"
    )
    sys.modules["deepspeed_of_a_test"] = module
    return module.ZeroStageEnum.weights  # type: ignore[attr-defined]


def write_zero3(
    folder: Path,
    world: int,
    groups: list[dict[str, Tensor]],
    frozen: dict[str, Tensor] | None = None,
    buffers: dict[str, Tensor] | None = None,
    shared: dict[str, str] | None = None,
    prefix: str = "",
    cuts: int = 1,
    client: dict[str, Any] | None = None,
) -> None:
    """A ZeRO-3 folder of trained parameters in groups; each process's pieces are cut into `cuts` flat tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen, buffers, shared = frozen or {}, buffers or {}, shared or {}
    trained = {name: tensor for group in groups for name, tensor in group.items()}
    stage = stage_class()
    for rank in range(world):
        flat = torch.cat([pieces_of(tensor, world)[rank] for tensor in trained.values()])
        optimizer = {
            "zero_stage": stage,
            "partition_count": world,
            "fp32_flat_groups": list(flat.split(math.ceil(len(flat) / cuts))),
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        }
        torch.save(
            {"optimizer_state_dict": optimizer, "ds_config": {}},
            folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
        names = [*trained, *frozen, *shared]
        model = {
            "module": {**{name: torch.empty(0) for name in names}, **buffers},
            "buffer_names": list(buffers),
            "param_shapes": [{name: tensor.shape for name, tensor in group.items()} for group in groups],
            "frozen_param_shapes": {name: tensor.shape for name, tensor in frozen.items()} or None,
            "frozen_param_fragments": {name: pieces_of(tensor, world)[rank] for name, tensor in frozen.items()} or None,
            "shared_params": shared,
            "optimizer": None,
            "ds_version": "0.16.0",
            **(client or {}),
        }
        torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    del sys.modules["deepspeed_of_a_test"]


def parameters() -> list[dict[str, Tensor]]:
    """Two groups of odd sizes, some smaller than the number of processes."""
    generator = torch.Generator().manual_seed(2)
    first = {"embed.weight": (7, 3), "layers.0.weight": (5, 5), "layers.0.scale": (1,)}
    second = {"layers.0.bias": (5,), "head.weight": (2, 11)}
    return [{name: torch.randn(s, generator=generator) for name, s in group.items()} for group in (first, second)]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("prefix", ["", "bf16_"])
def test_a_zero3_folder_is_put_together(tmp_path: Path, world: int, cuts: int, prefix: str) -> None:
    groups = parameters()
    frozen = {"vision.weight": torch.randn(3, 3).bfloat16(), "vision.bias": torch.randn(2)}
    buffers = {"layers.0.mean": torch.randn(3), "layers.0.count": torch.tensor(4)}
    write_zero3(tmp_path / "iter_9.pth", world, groups, frozen, buffers, {"lm.weight": "embed.weight"}, prefix, cuts)
    found = read_tensors(tmp_path / "iter_9.pth")
    wanted = {**groups[0], **groups[1], **frozen, **buffers, "lm.weight": groups[0]["embed.weight"]}
    assert found.kind == "deepspeed" and {"optimizer", "ds_version"} <= set(found.dropped)
    assert_same(found.tensors, wanted)


@settings(max_examples=40)
@given(
    world=st.integers(1, 5),
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=5),
    cuts=st.integers(1, 4),
)
def test_any_shapes_are_put_together(
    tmp_path_factory: pytest.TempPathFactory, world: int, shapes: list[list[int]], cuts: int
) -> None:
    folder = tmp_path_factory.mktemp("zero3")
    group = {f"p{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    write_zero3(folder, world, [group], cuts=cuts)
    assert_same(read_tensors(folder).tensors, group)


def test_more_than_ten_processes_are_put_in_order(tmp_path: Path) -> None:
    write_zero3(tmp_path, 11, parameters())
    assert_same(read_tensors(tmp_path).tensors, parameters()[0] | parameters()[1])


def test_a_faulty_part_of_a_zero3_folder_is_named(tmp_path: Path) -> None:
    def fresh() -> Path:
        write_zero3(tmp_path, 3, parameters(), frozen={"vision.weight": torch.randn(4)})
        return tmp_path

    for part in ("zero_pp_rank_2_mp_rank_00_model_states.pt", "zero_pp_rank_2_mp_rank_00_optim_states.pt"):
        (fresh() / part).unlink()
        refused(tmp_path, part, "missing")
        fresh()
        (tmp_path / part).write_bytes((tmp_path / part).read_bytes()[:500])
        refused(tmp_path, part, "damaged")
        refused(tmp_path / part, "one part", str(tmp_path))
    write_zero3(tmp_path / "other", 3, parameters()[:1])
    write_zero3(tmp_path / "longer", 3, [*parameters(), {"more": torch.ones(4)}])
    part = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    for folder, words in (("other", "ends before"), ("longer", "more than")):
        (fresh() / part).write_bytes((tmp_path / folder / part).read_bytes())
        refused(tmp_path, part, words)
    part = "zero_pp_rank_1_mp_rank_00_model_states.pt"
    (fresh() / part).write_bytes((tmp_path / "other" / part).read_bytes())
    refused(tmp_path, "vision.weight")


def test_a_parameter_whose_values_were_not_saved_is_named(tmp_path: Path) -> None:
    write_zero3(tmp_path, 2, parameters(), client={"module": {"frozen.weight": torch.empty(0)}})
    refused(tmp_path, "frozen.weight")


def whole(**more: Any) -> dict[str, Any]:
    """What `mp_rank_00_model_states.pt` holds up to ZeRO-2."""
    trained = ("model.embed.weight", "head.weight")
    return {
        "module": weights(),
        "param_shapes": [{name: weights()[name].shape for name in trained}],
        "buffer_names": ["model.layers.0.steps"],
        "optimizer": None,
        **more,
    }


@pytest.mark.parametrize("layout", ["itself", "latest", "checkpoint"])
def test_a_folder_of_zero2_is_read_where_latest_or_lightning_put_it(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / {"itself": "", "latest": "global_step7", "checkpoint": "checkpoint"}[layout]
    folder.mkdir(exist_ok=True)
    torch.save(whole(), folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    if layout == "latest":
        (tmp_path / "latest").write_text("global_step7\n")
        (tmp_path / "global_step6").mkdir()
        torch.save({"module": {}}, tmp_path / "global_step6/mp_rank_00_model_states.pt")
    found = read_tensors(tmp_path)
    assert (found.kind, found.dropped, found.source) == ("deepspeed", ("optimizer",), tmp_path)
    assert_same(found.tensors, weights())


def test_lightnings_deepspeed_folders_give_hyper_parameters(tmp_path: Path) -> None:
    client = {"pytorch-lightning_version": "2.6.4", "hyper_parameters": {"mask_channels": 8}}
    module = {f"_forward_module.{name}": tensor for name, tensor in weights().items()}
    (tmp_path / "checkpoint").mkdir()
    torch.save({"module": module, **client}, tmp_path / "checkpoint/mp_rank_00_model_states.pt")
    (tmp_path / "latest").write_text("checkpoint")
    found = read_tensors(tmp_path)
    assert found.hyper_parameters == {"mask_channels": 8}
    assert_same(found.tensors, weights())
    write_zero3(tmp_path / "three", 2, parameters(), client=client)
    assert read_tensors(tmp_path / "three").hyper_parameters == {"mask_channels": 8}


def test_a_faulty_deepspeed_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    module = weights()
    torch.save(whole(module={name: module[name] for name in module if name != "head.weight"}), path)
    refused(tmp_path, str(path), "head.weight")
    torch.save(whole(module=module | {"head.weight": torch.ones(3)}), path)
    refused(tmp_path, str(path), "head.weight is 3 instead of 1 x 11")
    torch.save({"state_dict": {}}, path)
    refused(tmp_path, str(path), "no module")
    torch.save(whole(), tmp_path / "mp_rank_01_model_states.pt")
    refused(tmp_path, "mp_rank_01_model_states.pt", "split by layer")
    path.unlink()
    (tmp_path / "mp_rank_01_model_states.pt").unlink()
    torch.save({}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    refused(tmp_path, str(path.name))


def test_one_of_several_deepspeed_folders_must_be_named(tmp_path: Path) -> None:
    for name in ("iter_1.pth", "iter_2.pth"):
        (tmp_path / name).mkdir()
        torch.save(whole(), tmp_path / name / "mp_rank_00_model_states.pt")
    with pytest.raises(SailUsageError, match="iter_1.pth, iter_2.pth; name one"):
        read_tensors(tmp_path)
    (tmp_path / "latest").write_text("iter_3.pth")
    refused(tmp_path, "latest", "iter_3.pth")
    (tmp_path / "latest").write_text("iter_2.pth")
    assert_same(read_tensors(tmp_path).tensors, weights())


# -- FSDP -------------------------------------------------------------------------------------------------------------


def write_sharded(folder: Path, head: str = "state_dict", extra: Any = None) -> Path:
    """What Lightning's strategies write, by torch itself."""
    optimizer = {"state": {"head.weight": {"exp_avg": torch.zeros(9)}}, "param_groups": [{"lr": 0.1}]}
    dcp.save({head: weights(), "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
    if extra is not None:
        torch.save(extra, folder / "meta.pt")
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
class TestSharded:
    @pytest.mark.parametrize("head", ["state_dict", "model"])
    def test_a_sharded_folder_is_read_without_its_optimizer(self, tmp_path: Path, head: str) -> None:
        extra = {"epoch": 1, "hyper_parameters": {"mask_channels": 8}, "callbacks": {"path": Path("x")}}
        found = read_tensors(write_sharded(tmp_path, head, extra))
        assert (found.kind, found.hyper_parameters) == ("fsdp", {"mask_channels": 8})
        assert found.dropped == ("optimizer_0", "epoch", "callbacks")
        assert_same(found.tensors, weights())

    def test_a_folder_of_tensors_only_is_read(self, tmp_path: Path) -> None:
        dcp.save({f"module.{name}": tensor for name, tensor in weights().items()}, checkpoint_id=tmp_path, no_dist=True)
        assert_same(read_tensors(tmp_path).tensors, weights())

    def _split(self, folder: Path, keep: int = 2) -> Tensor:
        """A folder in which a tensor lies in two chunks, as two processes write it; the tensor."""
        whole = torch.randn(5, 3)
        dcp.save({"state_dict": {"a": whole[:3], "b": whole[3:]}}, checkpoint_id=folder, no_dist=True)
        index = dcp.FileSystemReader(folder).read_metadata()
        entries, places = index.state_dict_metadata, index.storage_data
        del entries["state_dict.b"]
        entries["state_dict.a"].size = whole.shape
        later = ChunkStorageMetadata(torch.Size([3, 0]), torch.Size([2, 3]))
        entries["state_dict.a"].chunks = [*entries["state_dict.a"].chunks, later][:keep]
        for place in list(places):
            if place.fqn == "state_dict.b":
                places[MetadataIndex("state_dict.a", [3, 0], 1)] = places.pop(place)
        (folder / ".metadata").write_bytes(pickle.dumps(index))
        return whole

    def test_chunks_are_put_together(self, tmp_path: Path) -> None:
        whole = self._split(tmp_path)
        assert_same(read_tensors(tmp_path).tensors, {"a": whole})

    def test_a_tensor_that_is_not_all_there_is_named(self, tmp_path: Path) -> None:
        self._split(tmp_path, keep=1)
        refused(tmp_path, ".metadata", "where all of state_dict.a is")

    def test_a_faulty_part_is_named(self, tmp_path: Path) -> None:
        part = next(write_sharded(tmp_path).glob("*.distcp"))
        refused(part, part.name, "one part")
        content = part.read_bytes()
        part.write_bytes(content[: len(content) // 2])
        refused(tmp_path, str(part), "truncated")
        part.write_bytes(bytes(len(content)))
        refused(tmp_path, str(part), "damaged")
        part.unlink()
        refused(tmp_path, str(part), "missing")
        part.write_bytes(content)
        (tmp_path / ".metadata").write_bytes(b"\x80\x04nonsense")
        refused(tmp_path, ".metadata", "damaged")
        (tmp_path / ".metadata").unlink()
        refused(tmp_path, ".metadata", "missing")

    def test_an_index_outside_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        write_sharded(tmp_path)
        text = (tmp_path / ".metadata").read_bytes()
        (tmp_path / ".metadata").write_bytes(text.replace(b"__0_0.distcp", b"../../a.dist"))
        refused(tmp_path, ".metadata", "does not say where")

    @pytest.mark.parametrize("name", ["system", "eval"])
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_an_index_that_names_a_command_is_refused_and_nothing_is_run(
        self, tmp_path: Path, name: str, protocol: int
    ) -> None:
        marker = tmp_path / "made"
        full, command = next((full, found) for full, found in commands(marker).items() if full.endswith(name))
        index = dcp.FileSystemReader(write_sharded(tmp_path)).read_metadata()
        index.planner_data["x"] = command
        (tmp_path / ".metadata").write_bytes(pickle.dumps(index, protocol))
        refused(tmp_path, ".metadata", full)
        assert not marker.exists()

    def test_objects_beside_the_tensors_are_not_unpickled(self, tmp_path: Path) -> None:
        marker = tmp_path / "made"
        command = commands(marker)["open"]
        dcp.save({"state_dict": weights(), "loops": command}, checkpoint_id=tmp_path, no_dist=True)
        dcp.save({"state_dict": {**weights(), "x": command}}, checkpoint_id=tmp_path / "x", no_dist=True)
        for folder in (tmp_path, tmp_path / "x"):
            assert_same(read_tensors(folder).tensors, weights())
        torch.save({"callbacks": command}, tmp_path / "meta.pt")
        refused(tmp_path, "meta.pt", "io.open")
        assert not marker.exists()


def test_the_answer_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Checkpoint({}, "torch", Path()).kind = "fsdp"  # type: ignore[misc]


def test_no_message_repeats_torchs_advice_to_load_unsafely(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Path("x")}, 4))
    with pytest.raises(SailError) as caught:
        read_tensors(tmp_path / "x.pth")
    assert not re.search("weights_only|allowlist|add_safe_globals", str(caught.value))
