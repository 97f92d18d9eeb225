"""LoRA on the backbone: what is trained, ties, merging, adapter folders, and runs by Lightning."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from tiny_sail import BACKBONE, packed, records, text_records, tiny
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sail_lightning import PixelSAIL
from sail_lightning.callbacks import EMA
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.batch import PackedBatch
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Backbone
from sail_lightning.plugins.backbones import EVEv2, SailDecoder, SailQwen
from sail_lightning.pretrained.lora import LoRA, adapted, merged_state
from sail_lightning.sample import Sample
from sail_lightning.training.optim import MuonAdamW, parameter_groups

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "rslora on two": {"rslora": True, "targets": ["q_proj", "mlp.up_proj"]},
    "frozen embeddings": {"train_embeddings": False},
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def qwen(tied: bool = True, **changes: Any) -> SailQwen:
    return SailQwen(**(BACKBONE | {"tie_word_embeddings": tied} | changes))


def decoder(kind: str) -> SailDecoder:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 100.0}
    return SailDecoder(config={"model_type": kind, "hidden_size": 32, "intermediate_size": 48, **sizes}, patch_size=8)


def eve() -> EVEv2:
    return EVEv2(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_key_value_heads=1)


def adapted_model(tied: bool = True, backbone: Backbone | None = None, **settings: Any) -> PixelSAIL:
    return tiny(backbone=backbone or qwen(tied), adapter=LoRA(**({"r": 4, "alpha": 8.0} | settings)))


def train(model: PixelSAIL, steps: int = 3, batch: PackedBatch | None = None) -> PixelSAIL:
    """A few large steps of AdamW."""
    batch = batch or packed(model, records())
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(model.losses(batch)[0].values())).sum().backward()
        optimizer.step()
    return model


def outputs(model: PixelSAIL) -> tuple[Tensor, ...]:
    """Everything that the model says about the records: states, word logits, mask logits."""
    model.eval()
    with torch.no_grad():
        output = model.model(packed(model, records()))
    return output.hidden, output.logits, *output.mask_logits


def assert_same(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 0.0) -> None:
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def assert_same_answers(ours: PixelSAIL, wanted: PixelSAIL) -> None:
    answers = [model.predict_batch(records(), answer_prefix="it is [SEG].") for model in (ours, wanted)]
    for one, other in zip(*answers, strict=True):
        assert one.text == other.text
        np.testing.assert_array_equal(one.masks, other.masks)
    assert sum(len(answer.masks) for answer in answers[0]) >= 3


def is_tied(model: PixelSAIL) -> bool:
    backbone = model.model.backbone
    return backbone.lm_head.weight is backbone.model.embed_tokens.weight


@pytest.fixture(scope="module")
def base() -> PixelSAIL:
    """What adapters are put on."""
    return tiny(backbone=qwen()).eval()


@pytest.fixture(scope="module")
def trained() -> PixelSAIL:
    """An adapter that was trained a little; tests do not change it."""
    return train(adapted_model()).eval()


@pytest.fixture
def folder(trained: PixelSAIL, tmp_path: Path) -> Path:
    """Its adapter folder."""
    return trained.save_adapter(tmp_path / "adapter")


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_no_answer(kind: str, base: PixelSAIL) -> None:
    assert_same(outputs(adapted_model(**KINDS[kind])), outputs(base))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_adapters_embeddings_and_what_is_new_are_trained(kind: str, tied: bool) -> None:
    model = adapted_model(tied, **KINDS[kind])
    targets = KINDS[kind].get("targets", LINEARS)
    factors = ["lora_A", "lora_B", *(["lora_magnitude_vector"] if "dora" in KINDS[kind] else [])]
    new = ("backbone.vis_embed.", "upsampler.", "prompt_encoder.", "mask_head.")
    wanted = {name for name, _ in model.model.named_parameters() if name.startswith(new)}
    wanted |= {
        f"backbone.model.layers.{layer}.{part}.{factor}.default.weight"
        for layer in range(2)
        for part in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", *(f"self_attn.{x}_proj" for x in "qkvo"))
        for factor in factors
        if any(part.endswith(target) for target in targets)
    }
    if KINDS[kind].get("train_embeddings", True):
        wanted |= {"backbone.model.embed_tokens.weight", *([] if tied else ["backbone.lm_head.weight"])}
    assert {name for name, p in model.model.named_parameters() if p.requires_grad} == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [records, text_records])
def test_every_trained_weight_gets_a_gradient_and_no_other_moves(kind: str, samples: Callable[[], Any]) -> None:
    model = adapted_model(**KINDS[kind])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, 2, packed(model, samples()))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in before if ".lora_B." in name} <= moved


def test_optimiser_groups_take_the_factors_as_matrices_and_nothing_frozen() -> None:
    model = adapted_model(dora=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    roles = {group["role"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(model)}
    assert set.union(*roles.values()) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name in set.union(*roles.values()):
        if ".lora_A." in name or ".lora_B." in name:
            assert name in roles["hidden"]
        elif ".lora_magnitude_vector." in name or "embed_tokens" in name:
            assert name in roles["plain"]
    optimizer = MuonAdamW(parameter_groups(model))
    torch.stack(list(model.losses(packed(model, records()))[0].values())).sum().backward()
    optimizer.step()


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    models = [adapted_model(backbone=qwen(activation_checkpointing=again)) for again in (False, True)]
    for model in models:
        train(model, 1)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_dropout_acts_in_training_only() -> None:
    model = train(adapted_model(dropout=0.5))
    batch = packed(model, records())
    model.train()
    one, other = (model.model(batch).hidden for _ in range(2))
    assert not torch.equal(one, other)
    assert_same(outputs(model), outputs(model))


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(kind: str, tied: bool) -> None:
    model = train(adapted_model(tied, **KINDS[kind]))
    merged = copy.deepcopy(model).merge_adapter()
    assert_same(outputs(merged), outputs(model), 1e-5)
    assert_same_answers(merged, model)
    assert is_tied(merged) == is_tied(model) == tied
    assert not list(adapted(merged)) and merged.adapter is None


DECODERS = {"llama": lambda: decoder("llama"), "qwen3": lambda: decoder("qwen3"), "eve": eve}


@pytest.mark.parametrize("name", DECODERS)
def test_all_linear_layers_of_any_decoder_are_adapted(name: str) -> None:
    plain = tiny(backbone=DECODERS[name]()).model.backbone.model.layers
    model = train(tiny(backbone=DECODERS[name](), adapter=LoRA(r=2)))
    wanted = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, _ in adapted(model.model.backbone.model.layers)} == wanted
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert_same(outputs(copy.deepcopy(model).merge_adapter()), outputs(model), 1e-5)


def test_a_merged_model_is_a_plain_one(trained: PixelSAIL, base: PixelSAIL) -> None:
    merged = copy.deepcopy(trained).merge_adapter()
    assert merged.model.state_dict().keys() == base.model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert merged.hparams["adapter"] is None
    with pytest.raises(SailUsageError, match="no adapter to merge"):
        merged.merge_adapter()


def test_what_a_backbone_froze_itself_stays_frozen_after_merging() -> None:
    model = tiny(backbone=qwen())
    model.model.backbone.model.norm.requires_grad_(False)
    adapter = LoRA(r=2)
    adapter.apply(model.model.backbone)
    adapter.remove(model.model.backbone, merge=True)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.backbone.model.norm.weight"]


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_merged_state_is_what_merging_gives_and_changes_nothing(kind: str) -> None:
    model = train(adapted_model(**KINDS[kind]))
    before, state = outputs(model), merged_state(model.model, model.adapter)
    assert_same(outputs(model), before)
    assert any(name.endswith("base_layer.weight") for name in model.state_dict())
    wanted = model.merge_adapter().model.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(state[name], value), name


def test_a_model_folder_of_an_adapted_model_holds_merged_weights(trained: PixelSAIL, tmp_path: Path) -> None:
    before = outputs(trained)
    loaded = PixelSAIL.from_pretrained(trained.save_pretrained(tmp_path / "model"))
    assert loaded.adapter is None and not list(adapted(loaded)) and is_tied(loaded)
    assert_same(outputs(loaded), before, 1e-5)
    assert_same(outputs(trained), before)
    assert_same_answers(loaded, trained)


# -- adapter folders --------------------------------------------------------------------------------------------------


def test_an_adapter_folder_holds_only_what_was_trained(trained: PixelSAIL, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "rest.safetensors",
    ]
    stored = load_file(folder / "adapter_model.safetensors") | load_file(folder / "rest.safetensors")
    values = sum(parameter.numel() for parameter in trained.model.parameters() if parameter.requires_grad)
    assert sum(tensor.numel() for tensor in stored.values()) == values


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_comes_back(kind: str, tied: bool, tmp_path: Path) -> None:
    model = train(adapted_model(tied, dropout=0.1, **KINDS[kind]))
    loaded = tiny(backbone=qwen(tied)).eval().load_adapter(model.save_adapter(tmp_path))
    assert_same(outputs(loaded), outputs(model))
    assert not any(module.training for module in loaded.model.modules())
    assert is_tied(loaded) == tied
    frozen = [{name for name, p in m.named_parameters() if not p.requires_grad} for m in (loaded, model)]
    assert frozen[0] == frozen[1]
    assert_same(outputs(loaded.merge_adapter()), outputs(model), 1e-5)


def test_an_adapter_is_loaded_on_a_model_folder(trained: PixelSAIL, folder: Path, base: PixelSAIL) -> None:
    model = PixelSAIL.from_pretrained(base.save_pretrained(folder.parent / "base")).load_adapter(folder)
    assert model.hparams["adapter"]["init_args"]["r"] == 4
    assert_same(outputs(model), outputs(trained))


def test_an_adapter_is_loaded_into_one_of_the_same_settings(trained: PixelSAIL, folder: Path) -> None:
    model = adapted_model().load_adapter(folder)
    assert_same(outputs(model), outputs(trained))
    trained_on = train(model)
    assert any(not torch.equal(one, other) for one, other in zip(outputs(trained_on), outputs(trained), strict=True))


@pytest.mark.parametrize("kind", ["plain", "dora", "rslora on two"])
def test_peft_reads_the_adapter_on_the_plain_decoder(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = train(adapted_model(train_embeddings=False, **KINDS[kind])).eval()
    backbone = model.model.backbone
    config = Qwen2Config(**{**backbone.model.config.to_dict(), "attn_implementation": "eager"})
    plain = Qwen2ForCausalLM(config).eval()
    weights = tiny(backbone=qwen()).model.backbone.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    theirs = PeftModel.from_pretrained(plain, model.save_adapter(tmp_path))
    batch = packed(model, text_records()[:1])
    with torch.no_grad():
        ours = backbone.logits(model.model(batch).hidden)
        torch.testing.assert_close(ours, theirs(batch.ids[None]).logits[0], rtol=0, atol=1e-4)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(folder: Path, file: str, name: str) -> None:
    tensors = load_file(folder / file)
    del tensors[name]
    save_file(tensors, folder / file)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED: dict[str, tuple[Callable[[Path], Any], Callable[[], PixelSAIL], str]] = {
    "a narrower base": (
        lambda folder: None,
        lambda: tiny(backbone=qwen(hidden_size=16)),
        r"adapter_model.safetensors does not fit this model: other shapes: .*lora_A.weight 4 x 32 instead of 4 x 16",
    ),
    "a deeper base": (
        lambda folder: None,
        lambda: tiny(backbone=qwen(num_layers=3)),
        r"adapter_model.safetensors does not fit this model: missing .*layers.2.mlp.down_proj.lora_A.weight",
    ),
    "an untied base": (
        lambda folder: None,
        lambda: tiny(backbone=qwen(tied=False)),
        r"rest.safetensors does not fit this model: missing backbone.lm_head.weight$",
    ),
    "another decoder": (
        lambda folder: edit(folder, target_modules=["moe_q_proj"]),
        lambda: tiny(backbone=qwen()),
        r"adapter_config.json does not fit this model: LoRA: no linear layer .* named moe_q_proj; there are down_proj",
    ),
    "another rank in the model": (
        lambda folder: None,
        lambda: adapted_model(r=8),
        r"does not fit this model's adapter: r is 4 there and 8 here",
    ),
    "another scale in the model": (
        lambda folder: None,
        lambda: adapted_model(alpha=16),
        r"does not fit this model's adapter: alpha is 8.0 there and 16 here",
    ),
    "another rank in the config": (
        lambda folder: edit(folder, r=2),
        lambda: tiny(backbone=qwen()),
        r"adapter_model.safetensors does not fit this model: other shapes: .*lora_A.weight 4 x 32 instead of 2 x 32",
    ),
    "fewer targets in the config": (
        lambda folder: edit(folder, target_modules=["q_proj"]),
        lambda: tiny(backbone=qwen()),
        r"adapter_model.safetensors does not fit this model: unexpected .*down_proj.lora_A.weight",
    ),
    "a missing factor": (
        lambda folder: without(folder, "adapter_model.safetensors", A),
        lambda: tiny(backbone=qwen()),
        rf"adapter_model.safetensors does not fit this model: missing {A}$",
    ),
    "a missing table": (
        lambda folder: without(folder, "rest.safetensors", "backbone.model.embed_tokens.weight"),
        lambda: tiny(backbone=qwen()),
        r"rest.safetensors does not fit this model: missing backbone.model.embed_tokens.weight$",
    ),
    "what LoRA does not do": (
        lambda folder: edit(folder, alpha_pattern={"q_proj": 64}, lora_bias=True),
        lambda: tiny(backbone=qwen()),
        r"adapter_config.json asks for what LoRA here does not do: alpha_pattern, lora_bias",
    ),
    "another method": (
        lambda folder: edit(folder, peft_type="ADALORA"),
        lambda: tiny(backbone=qwen()),
        r"adapter_config.json asks for what LoRA here does not do: peft_type",
    ),
    "targets by pattern": (
        lambda folder: edit(folder, target_modules="all-linear"),
        lambda: tiny(backbone=qwen()),
        r"adapter_config.json is no config of a LoRA adapter \(target_modules",
    ),
    "no config": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        lambda: tiny(backbone=qwen()),
        r"is no whole adapter folder: it has no adapter_config.json",
    ),
    "no rest": (
        lambda folder: (folder / "rest.safetensors").unlink(),
        lambda: tiny(backbone=qwen()),
        r"is no whole adapter folder: it has no rest.safetensors",
    ),
    "a cut file": (
        lambda folder: (folder / "rest.safetensors").write_bytes((folder / "rest.safetensors").read_bytes()[:-8]),
        lambda: tiny(backbone=qwen()),
        r"rest.safetensors is damaged",
    ),
    "no JSON": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        lambda: tiny(backbone=qwen()),
        r"adapter_config.json is no config of a LoRA adapter",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(fault: str, folder: Path) -> None:
    spoil, make, message = REFUSED[fault]
    spoil(folder)
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = model.adapter
    with pytest.raises(SailError, match=message):
        model.load_adapter(folder)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    assert model.adapter is adapter


def test_embeddings_of_another_order_of_words_are_refused(folder: Path, base: PixelSAIL, tmp_path: Path) -> None:
    table = json.loads(base.tokens.tokenizer.backend_tokenizer.to_str())
    words = table["model"]["vocab"]
    words["red"], words["circle"] = words["circle"], words["red"]
    (tmp_path / "other.json").write_text(json.dumps(table))
    with pytest.raises(SailError, match="does not fit this model: its embeddings are of another tokenizer"):
        tiny(backbone=qwen(), tokenizer=str(tmp_path / "other.json")).load_adapter(folder)


def test_a_folder_that_is_not_there_is_named(base: PixelSAIL, tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"nowhere is no whole adapter folder"):
        base.load_adapter(tmp_path / "nowhere")
    with pytest.raises(SailUsageError, match="no adapter to save"):
        base.save_adapter(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(SailError, match="is a file"):
        adapted_model().save_adapter(tmp_path / "file")


# -- faults of settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "LoRA: r must be 1 or more, not 0"),
        ({"dropout": 1.0}, "LoRA: dropout must be at least 0 and less than 1"),
        ({"targets": []}, "LoRA: targets must not be empty"),
        ({"targets": ["q_proj", "proj"]}, "no linear layer in the decoder's layers is named proj; there are down_proj"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        adapted_model(**settings)


def test_adapters_cannot_be_put_in_twice_nor_where_no_decoder_is() -> None:
    model = adapted_model()
    with pytest.raises(SailUsageError, match="has adapters already"):
        LoRA().apply(model.model.backbone)
    with pytest.raises(SailUsageError, match="Linear has none"):
        LoRA().apply(nn.Linear(2, 2))


def test_without_peft_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SailError, match=r"pip install 'sail-lightning\[peft\]'"):
        adapted_model()
    tiny()  # others need it not


# -- runs -------------------------------------------------------------------------------------------------------------


class Records(Source):
    """The records of these tests, images and words alone in turn."""

    def __getitem__(self, index: int) -> Sample:
        return [*records(), *text_records()][index]

    @property
    def length(self) -> int:
        return 6


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A rate that does not depend on how long the run is to be."""
    return LambdaLR(optimizer, lambda step: 1.0)


def runnable(**settings: Any) -> PixelSAIL:
    adapter = LoRA(**({"r": 4} | settings))
    return tiny(backbone=qwen(), adapter=adapter, optimizer=partial(torch.optim.AdamW, lr=1e-2), schedule=constant)


def fit(model: PixelSAIL, steps: int, resume: Path | None = None, save: Path | None = None, **settings: Any) -> None:
    """Steps of a sample or two each; `save` is a folder for `last.ckpt`."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        callbacks=[] if save is None else [ModelCheckpoint(save, "last", every_n_train_steps=1)],
        enable_checkpointing=save is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(model, datamodule=SailDataModule(train=Records(), token_budget=60), ckpt_path=resume)


def test_a_run_s_checkpoint_loads_back_and_resumes(tmp_path: Path) -> None:
    whole, first, resumed = runnable(), runnable(), runnable()
    fit(whole, 6)
    fit(first, 3, save=tmp_path)
    loaded = PixelSAIL.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert loaded.adapter is not None and first.adapter is not None
    assert loaded.adapter.spec() == first.adapter.spec()
    assert is_tied(loaded)
    assert_same(outputs(loaded), outputs(first))
    fit(resumed, 6, resume=tmp_path / "last.ckpt")
    assert_same(outputs(resumed), outputs(whole))


def test_a_run_on_from_a_merged_model_trains_it_whole(tmp_path: Path) -> None:
    model = runnable()
    fit(model, 1)
    model.merge_adapter()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, 1, save=tmp_path)
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    loaded = PixelSAIL.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert loaded.adapter is None and not list(adapted(loaded))
    assert_same(outputs(loaded), outputs(model))


@pytest.mark.parametrize("kind", ["dora", "frozen embeddings"])
def test_two_processes_leave_no_weight_unused(kind: str) -> None:
    model = runnable(**KINDS[kind])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, 3, strategy="ddp_fork", devices=2)  # with an unused weight, the second step fails
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_bfloat16_trains_and_merges(precision: Any) -> None:
    model = runnable()
    fit(model, 2, precision=precision)
    true = precision == "bf16-true"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16 if true else torch.float32}
    hidden = outputs(model)[0].float()
    merged = outputs(copy.deepcopy(model).merge_adapter())[0].float()
    assert (merged - hidden).norm() < (0.02 if true else 1e-5) * hidden.norm()


def test_an_averaged_run_keeps_its_adapter(tmp_path: Path) -> None:
    model = runnable()
    trainer_settings: dict[str, Any] = {"callbacks": [EMA(decay=0.5)]}
    trainer = L.Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, **trainer_settings)
    trainer.fit(model, datamodule=SailDataModule(train=Records(), token_budget=60))
    assert is_tied(model)
    assert_same(outputs(copy.deepcopy(model).merge_adapter()), outputs(model), 1e-5)
