"""Swap points: what is registered, what is found by name, and what mmengine builds of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, Registry
from torch.optim.lr_scheduler import LRScheduler

from sail_lightning import registry
from sail_lightning.callbacks import EMA
from sail_lightning.data.sources import LaboratorySource, Mixture, Source
from sail_lightning.interfaces import Attention, Backbone, PromptEncoder, Upsampler, to_spec
from sail_lightning.model.losses import DistillationLoss, LanguageLoss, MaskLoss
from sail_lightning.plugins.attention import SDPAAttention
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.pretrained.lora import LoRA
from sail_lightning.registry import PluginError, register
from sail_lightning.training.optim import MuonAdamW, WarmupCosine


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    registry.load_shipped()
    before = {point.base: dict(point.registry.module_dict) for point in registry.swap_points()}
    yield
    for base, kept in before.items():
        names = registry.SWAP_POINTS[base].registry.module_dict
        names.clear()
        names.update(kept)


# -- swap points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "member"),
    [
        (Upsampler, DeconvUpsampler),
        (Source, Mixture),
        (LanguageLoss, LanguageLoss),
        (MaskLoss, MaskLoss),
        (LoRA, LoRA),
        (torch.optim.Optimizer, MuonAdamW),
        (LRScheduler, WarmupCosine),
        (L.Callback, EMA),
    ],
)
def test_every_kind_is_a_swap_point_that_holds_what_is_shipped(base: type, member: type) -> None:
    assert registry.members_of(base)[member.__name__] is member
    assert registry.find(member.__name__) == (base, member)


def test_every_concrete_source_loss_and_callback_of_the_package_is_registered() -> None:
    forgotten = [
        cls.__name__
        for point in registry.swap_points()
        for cls in registry.left_out(point)
        if cls.__module__.startswith(("sail_lightning.data", "sail_lightning.model.losses", "sail_lightning.callbacks"))
    ]
    assert forgotten == []


def test_the_sockets_are_the_swap_points_of_the_model_itself() -> None:
    assert {Attention, Backbone, PromptEncoder, Upsampler} < set(registry.SOCKETS)
    assert not {Source, MaskLoss, LoRA, L.Callback} & set(registry.SOCKETS)


def test_own_classes_come_before_those_of_a_library() -> None:
    names = list(registry.members_of(torch.optim.Optimizer))
    assert names[0] == "MuonAdamW" and {"AdamW", "Muon", "SGD"} < set(names[1:])


def test_an_own_class_hides_a_librarys_of_the_same_name() -> None:
    @register
    class SGD(torch.optim.SGD):
        """Mine."""

    assert registry.members_of(torch.optim.Optimizer)["SGD"] is SGD
    assert registry.find("SGD") == (torch.optim.Optimizer, SGD)


def test_a_search_can_be_limited_to_some_swap_points() -> None:
    assert registry.find("EMA", registry.SOCKETS) is None


@pytest.mark.parametrize(
    "base", [MaskLoss, DeconvUpsampler, LaboratorySource, L.Callback, torch.optim.SGD, WarmupCosine]
)
def test_a_users_class_of_any_kind_can_be_registered(base: type) -> None:
    mine = register(type("Mine", (base,), {"__doc__": "Mine."}))
    assert registry.find("Mine") == (registry.bases_of(base)[0], mine)


def test_a_class_of_no_swap_point_is_refused() -> None:
    with pytest.raises(PluginError, match="Lost must derive from exactly one of .*Upsampler.*MaskLoss"):
        register(type("Lost", (), {}))


def test_a_class_of_two_swap_points_is_refused() -> None:
    with pytest.raises(PluginError, match="Both must derive from exactly one of"):
        register(type("Both", (L.Callback, LoRA), {}))


def test_an_abstract_class_is_refused() -> None:
    with pytest.raises(PluginError, match="Half does not define forward"):
        register(type("Half", (DistillationLoss,), {}))


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(PluginError, match=r"MaskLoss is taken by sail_lightning\.model\.losses"):
        register(type("MaskLoss", (MaskLoss,), {"__module__": "elsewhere"}))


def test_a_wildcard_finds_names_of_all_kinds() -> None:
    found = {point.name: names for point, names in registry.matching("*prompts*")}
    assert (
        "NoPrompts" in found["PromptEncoder"]
        and "SamPrompts" in found["Source"]
        and set(found)
        == {
            "PromptEncoder",
            "Source",
        }
    )


def test_a_class_that_was_not_registered_is_named_with_the_fix() -> None:
    unknown = type("Forgotten", (MaskLoss,), {"__module__": "my_losses"})
    text = registry.unknown("Forgotten", [MaskLoss])
    assert text == (
        "Forgotten of the module my_losses is not registered; put @register (from sail_lightning.registry) above it"
    )
    assert unknown is registry.unregistered("Forgotten")


def test_one_file_may_hold_classes_of_several_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "several_kinds.py"
    path.write_text(
        "import lightning as L\n"
        "from torch.optim import SGD\n"
        "from sail_lightning.model.losses import MaskLoss\n"
        "from sail_lightning.registry import register\n\n\n"
        "@register\nclass SeveralLoss(MaskLoss):\n    pass\n\n\n"
        "@register\nclass SeveralSGD(SGD):\n    pass\n\n\n"
        "@register\nclass SeveralCallback(L.Callback):\n    pass\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry.load(str(path))
    registry.SOURCES.pop(str(path))
    sys.modules.pop("several_kinds")
    assert [registry.find(f"Several{kind}")[0] for kind in ("Loss", "SGD", "Callback")] == [
        MaskLoss,
        torch.optim.Optimizer,
        L.Callback,
    ]


@pytest.mark.parametrize("name", ["antigravity", "earlier_on_the_path"])
def test_a_file_that_python_would_not_import_under_its_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another file of that name would run instead of it, without a word."""
    for folder in ("earlier", "given"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "earlier_on_the_path.py").write_text("")
    (tmp_path / "given" / "antigravity.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "earlier")])
    with pytest.raises(PluginError, match=rf"Python finds .*{name}\.py under the name '{name}'; rename {name}\.py"):
        registry.load(str(tmp_path / "given" / f"{name}.py"))
    assert name not in sys.modules


# -- mmengine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DeconvUpsampler", "sail_lightning.DeconvUpsampler", DeconvUpsampler])
def test_a_config_with_a_type_is_built(name: Any) -> None:
    built = registry.build({"type": name, "stride": 2})
    assert isinstance(built, DeconvUpsampler) and built.init_args["stride"] == 2


@pytest.mark.parametrize(
    "root", [MODELS, Registry("models of another project", parent=MODELS, scope="another_project")]
)
def test_mmengines_registries_of_other_scopes_build_it(root: Registry) -> None:
    built = root.build({"type": "sail_lightning.DeconvUpsampler", "stride": 4})
    assert isinstance(built, DeconvUpsampler) and built.init_args["stride"] == 4
    assert root.get("sail_lightning.DeconvUpsampler") is DeconvUpsampler
    assert root.get("sail_lightning.plugins.upsamplers.DeconvUpsampler") is DeconvUpsampler


def test_our_registry_of_a_socket_builds_with_and_without_the_scope() -> None:
    for name in ("DeconvUpsampler", "sail_lightning.DeconvUpsampler"):
        assert isinstance(registry.SOCKETS[Upsampler].build({"type": name}), DeconvUpsampler)
    assert registry.SOCKETS[Upsampler].get("sail_lightning.DeconvUpsampler") is DeconvUpsampler


def test_our_registries_find_nothing_that_is_not_registered() -> None:
    plugins = registry.SOCKETS[Upsampler]
    assert "DeconvUpsampler" in plugins and "EMA" not in plugins and "os.system" not in plugins
    with pytest.raises(PluginError, match=r"no Upsampler named os\.system"):
        plugins.get("os.system")


def test_mmengines_dataset_and_optimizer_registries_build_ours() -> None:
    assert isinstance(DATASETS.build({"type": "sail_lightning.LaboratorySource", "split": "val"}), LaboratorySource)
    weights = [torch.nn.Parameter(torch.zeros(2))]
    assert isinstance(OPTIMIZERS.build({"type": "sail_lightning.MuonAdamW", "params": weights}), MuonAdamW)


@pytest.mark.parametrize("build", [registry.build, MODELS.build, registry.SOCKETS[Backbone].build])
def test_a_plugin_inside_a_plugin_is_built_too(build: Any) -> None:
    config = {"type": "sail_lightning.SailQwen", "size": "tiny", "attention": {"type": "sail_lightning.SDPAAttention"}}
    built = build(config)
    assert isinstance(built, SailQwen) and isinstance(built.init_args["attention"], SDPAAttention)
    assert to_spec(built)["init_args"]["attention"]["class_path"].endswith("SDPAAttention")


def test_configs_inside_containers_are_built() -> None:
    inner = {"type": "sail_lightning.LaboratorySource", "split": "val", "samples": 3}
    built = registry.build({"type": "Mixture", "sources": {"a": inner, "b": None}, "seed": 1})
    assert list(built.sources) == ["a"] and isinstance(built.sources["a"], LaboratorySource)


def test_a_config_dict_of_mmengine_is_built() -> None:
    config = ConfigDict(type="SailQwen", size="tiny", attention={"type": "SDPAAttention"})
    assert isinstance(registry.build(config).init_args["attention"], SDPAAttention)


def test_a_mapping_with_a_type_stays_as_it_is_where_no_plugin_is_asked_for() -> None:
    rope = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert registry.build_arguments(SailQwen, {"config": rope}) == {"config": rope}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "sail_lightning.DeconvUpsmpler"}, "DeconvUpsmpler; did you mean DeconvUpsampler?"),
        ({"type": "DeconvUpsampler", "strid": 2}, "DeconvUpsampler has no argument 'strid'; did you mean stride?"),
        ({"type": "GradNorm", "foo": 1}, "GradNorm has no argument 'foo'; it takes none"),
        ({"type": "SDPAAttention", "foo": 1}, "SDPAAttention has no argument 'foo'; it takes none"),
        (
            {"type": "EncoderBackbone", "num_layer": 2},
            "EncoderBackbone has no argument 'num_layer'; did you mean num_layers",
        ),
        ({"type": "os.system", "command": "true"}, "no class named os.system"),
        ({"type": "torch.nn.Linear", "in_features": 1, "out_features": 1}, "no class named torch.nn.Linear"),
        ({"stride": 2}, "a config needs the key 'type'"),
        ({"type": "CocoInstances", "annotations": "a.json"}, "CocoInstances needs the argument 'images'"),
        (
            {"type": "SailQwen", "attention": {"type": "SDPAAttentoin"}},
            "no Attention named SDPAAttentoin; did you mean SDPA",
        ),
        ({"type": "SailQwen", "attention": {"type": "EMA"}}, "EMA belongs to Callback, not Attention"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError) as fault:
        registry.build(config)
    assert words in str(fault.value) and "\n" not in str(fault.value)


def test_mmengine_refuses_an_unknown_name_of_our_scope_in_one_sentence() -> None:
    with pytest.raises(PluginError, match="no class named sail_lightning.Nothing|no class named Nothing"):
        MODELS.build({"type": "sail_lightning.Nothing"})


def test_a_registry_of_one_kind_refuses_another_kind() -> None:
    with pytest.raises(PluginError, match="EMA belongs to Callback, not Upsampler"):
        registry.SOCKETS[Upsampler].build({"type": "EMA"})
