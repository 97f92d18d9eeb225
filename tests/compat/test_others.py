"""What we take from PEFT, timm, mmengine, xformers and jsonargparse beyond their plain use."""

from __future__ import annotations

import importlib.util
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


def test_peft_puts_layers_of_the_known_kind_into_a_model() -> None:
    pytest.importorskip("peft")
    from sail_lightning.compat import peft as compat

    named = f"peft {version('peft')}"
    model = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(4, 4)})])
    wanted = model[0]["proj"](torch.ones(4))  # type: ignore[index]
    library = compat.library()
    library.inject_adapter_in_model(library.LoraConfig(r=2, target_modules=["proj"]), model, "default")
    assert "default" in model.peft_config, named  # type: ignore[operator]
    layers: list[Any] = [module for module in model.modules() if isinstance(module, compat.adapter_layer())]
    assert len(layers) == 1, named
    layers[0].merge()
    assert torch.equal(layers[0].get_base_layer()(torch.ones(4)), wanted), named
    state = library.get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    assert sorted(state) == ["0.proj.lora_A.weight", "0.proj.lora_B.weight"], named


def test_peft_that_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sail_lightning.compat import peft as compat
    from sail_lightning.errors import SailError

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SailError, match=r"pip install 'sail-lightning\[peft\]'"):
        compat.library()


def test_timm_takes_weights_from_memory_and_reads_files_without_running_them() -> None:
    import timm

    named = f"timm {version('timm')}"
    wanted = timm.create_model("resnet10t", features_only=True, out_indices=(-1,)).state_dict()
    ones = {key: torch.ones_like(value) for key, value in wanted.items()}
    network = timm.create_model(
        "resnet10t",
        features_only=True,
        out_indices=(-1,),
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": timm.create_model("resnet10t").state_dict() | ones},
    )
    assert all((parameter == 1).all() for parameter in network.parameters()), named
    assert "weights_only" in inspect.signature(timm.models.load_state_dict).parameters, named
    assert timm.get_pretrained_cfg_value("vit_tiny_patch16_224", "fixed_input_size") is True, named
    assert {"input_size", "mean", "std"} <= set(timm.data.resolve_model_data_config(network)), named


def test_mmengine_keeps_the_classes_of_a_registry_by_name() -> None:
    from mmengine.registry import Registry

    registry = Registry("probe", scope="probe")
    registry.register_module(module=nn.Linear, force=True)
    registry.register_module(module=nn.Linear, force=True)  # a module may be imported twice
    assert registry.module_dict == {"Linear": nn.Linear}, f"mmengine {version('mmengine-lite')}"


def test_mmengine_imports_the_standard_library_only_within_the_context(tmp_path: Path) -> None:
    from mmengine.config import Config, config, utils

    from sail_lightning.compat.mmengine import standard_library_imported

    named = f"mmengine {version('mmengine-lite')}"
    functions = (config._is_builtin_module, utils._is_builtin_module)
    (tmp_path / "a.py").write_text("import os\nfrom string import digits\nx = os.path.join(digits, 'b')\n")
    with standard_library_imported():
        assert utils._is_builtin_module("zoneinfo") and not utils._is_builtin_module("torch"), named
        assert Config.fromfile(tmp_path / "a.py", format_python_code=False).x == "0123456789/b", named
    assert (config._is_builtin_module, utils._is_builtin_module) == functions, named


def test_xformers_says_whether_its_cuda_library_is_loaded() -> None:
    if importlib.util.find_spec("xformers") is None:
        pytest.skip("xformers is not installed")
    library = importlib.import_module("xformers._cpp_lib")
    assert isinstance(library._built_with_cuda, bool), f"xformers {version('xformers')}"


def test_jsonargparse_reports_errors_through_one_public_method() -> None:
    from jsonargparse import ArgumentParser

    parameters = list(inspect.signature(ArgumentParser.error).parameters)
    assert parameters == ["self", "message", "ex"], f"jsonargparse {version('jsonargparse')}"
