"""Private names of torch that `sail_lightning.compat.torch` relies on."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from sail_lightning.compat import torch as compat

VERSION = f"torch {torch.__version__}"


def test_more_graphs_are_allowed_and_never_fewer() -> None:
    with torch._dynamo.config.patch(recompile_limit=8):  # put back afterwards
        compat.allow_graphs(20)
        assert torch._dynamo.config.recompile_limit == 20, VERSION
        compat.allow_graphs(10)
        assert torch._dynamo.config.recompile_limit == 20, VERSION


def test_a_compiled_module_runs_as_written_within_uncompiled() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not compat.is_compiled(module), VERSION
    module.compile(backend="eager")
    assert compat.is_compiled(module), VERSION
    with compat.uncompiled([module, other]):
        assert not compat.is_compiled(module), VERSION
    assert compat.is_compiled(module) and not compat.is_compiled(other), VERSION


def test_buffers_of_an_exact_module_stay_float32() -> None:
    class Table(compat.Float32Buffers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("numbers", torch.tensor([1.00390625 / 3]), persistent=False)
            self.weight = nn.Parameter(torch.ones(1))

    outer = nn.Sequential(Table())
    before = outer[0].numbers.clone()
    outer.bfloat16()
    assert outer[0].weight.dtype == torch.bfloat16 and torch.equal(outer[0].numbers, before), VERSION
    assert outer.to("meta")[0].numbers.is_meta, VERSION


def test_lerp_moves_each_tensor_towards_its_source() -> None:
    targets, sources = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.zeros(3)]
    compat.lerp_(targets, sources, 0.25)
    assert targets[0].tolist() == [0.25] * 2 and targets[1].tolist() == [0.75] * 3, VERSION


def test_batch_norms_of_every_dimension_are_batch_norms() -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    assert all(issubclass(kind, compat.BatchNorm) for kind in kinds), VERSION


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_index_of_a_distributed_checkpoint_is_made_of_the_classes_we_know(tmp_path: object) -> None:
    from torch.distributed.checkpoint import save

    save({"weight": torch.ones(2, 3)}, checkpoint_id=str(tmp_path))
    classes = compat.checkpoint_index_classes()
    missing: set[str] = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if module.startswith("torch.distributed") and f"{module}.{name}" not in classes:
                missing.add(f"{module}.{name}")
            return super().find_class(module, name)

    with open(f"{tmp_path}/.metadata", "rb") as file:
        Reader(file).load()
    assert missing == set(), f"{VERSION} pickles these too"
    storage = classes["torch.distributed.checkpoint.filesystem._StorageInfo"]
    assert {field.name for field in dataclasses.fields(storage)} >= {"relative_path", "offset", "length"}, VERSION
