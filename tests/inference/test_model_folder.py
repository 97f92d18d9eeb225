"""Model folders, and checkpoints that need nothing beside them."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from inference_harness import chatter, exact_model, picture, script, tiny_model
from safetensors.torch import load_file, save_file

from sail_lightning import Box, PixelSAIL
from sail_lightning.cli import main
from sail_lightning.cli.configs import read_config
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.model.bundle import ModelBundle
from sail_lightning.plugins.backbones import SailDecoder, SailQwen
from sail_lightning.plugins.prompt_encoders import NoPrompts
from sail_lightning.plugins.upsamplers import IdentityUpsampler
from sail_lightning.pretrained import model_folder
from sail_lightning.weights import safetensors_io

TEXT = "please segment the red circle."


@pytest.fixture(scope="session")
def saved(tiny: PixelSAIL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sharded(tiny: PixelSAIL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pretrained(tmp_path_factory.mktemp("models") / "sharded", max_shard_size="50KB")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def weights(model: PixelSAIL) -> dict[str, torch.Tensor]:
    return model.model.state_dict()


def equal(left: PixelSAIL, right: PixelSAIL) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- there and back ---------------------------------------------------------------------------------------------------


def test_a_folder_holds_text_and_tensors_only(saved: Path) -> None:
    files = {path.name: path for path in saved.iterdir()}
    assert files.keys() == {"config.yaml", "model.safetensors", "tokenizer.json", "README.md"}
    for name in ("config.yaml", "tokenizer.json", "README.md"):
        files[name].read_text(encoding="utf-8")
    assert yaml.safe_load(files["config.yaml"].read_text())["model"]["upsampler"]["class_path"] == "DeconvUpsampler"
    assert json.loads(files["tokenizer.json"].read_text())["model"]


def test_whoever_may_read_the_config_may_read_the_weights(sharded: Path) -> None:
    assert len({path.stat().st_mode for path in sharded.iterdir()}) == 1


def test_a_folder_is_opened_without_lightning_as_the_same_network(saved: Path) -> None:
    model, network = PixelSAIL.from_pretrained(saved), model_folder.open_bundle(saved)
    assert not any(module.training for module in network.model.modules())
    ours, theirs = model.model.state_dict(), network.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert replace(network.encoder, tokens=model.tokens) == model.encoder
    assert network.tokens.tokenizer.get_vocab() == model.tokens.tokenizer.get_vocab()


def test_settings_of_a_folder_have_the_defaults_of_the_model() -> None:
    ours, theirs = (inspect.signature(one).parameters for one in (ModelBundle.of, PixelSAIL))
    assert {name: one.default for name, one in ours.items()} == {name: theirs[name].default for name in ours}
    assert ours.keys() == tiny_model().config.keys()


def test_a_model_comes_back_with_the_same_answers(saved: Path) -> None:
    model, again = tiny_model(), PixelSAIL.from_pretrained(saved)
    assert not again.training and equal(model, again)
    assert (again.max_new_tokens, again.model.mask_channels, len(again.tokens)) == (8, 16, len(model.tokens))
    with chatter(model), chatter(again):
        for seed in range(3):
            left, right = (one.predict(picture(seed), TEXT) for one in (model, again))
            assert left.text == right.text and np.array_equal(left.masks, right.masks)


def test_a_folder_that_was_loaded_can_be_saved_and_loaded_again(saved: Path, tmp_path: Path) -> None:
    again = PixelSAIL.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert (again / "config.yaml").read_text() == (saved / "config.yaml").read_text()
    assert equal(PixelSAIL.from_pretrained(again), PixelSAIL.from_pretrained(saved))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    backbone = SailQwen(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
    model = PixelSAIL(backbone, IdentityUpsampler(), NoPrompts(), mask_channels=8)
    folder = model.save_pretrained(tmp_path / "tied")
    again = PixelSAIL.from_pretrained(folder)
    assert "backbone.lm_head.weight" not in load_file(folder / "model.safetensors")
    assert again.model.backbone.lm_head.weight is again.model.backbone.model.embed_tokens.weight
    assert equal(model, again)


def test_plugins_keep_their_arguments(tmp_path: Path) -> None:
    model = PixelSAIL(SailQwen(hidden_size=32, num_layers=1, patch_size=4), IdentityUpsampler(), NoPrompts())
    again = PixelSAIL.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert again.model.dims == model.model.dims and again.model.dims.patch_size == 4
    assert type(again.model.prompt_encoder) is NoPrompts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_load(dtype: torch.dtype, tiny: PixelSAIL, tmp_path: Path) -> None:
    folder = tiny.save_pretrained(tmp_path / "half", dtype=dtype)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {dtype}
    again = PixelSAIL.from_pretrained(folder)
    for key, value in weights(again).items():
        assert value.dtype == torch.float32 and torch.equal(value, weights(tiny)[key].to(dtype).float())
    with script(again, again.tokens.seg):
        assert again.predict(picture(0), TEXT).masks.shape == (1, 24, 32)


def test_the_length_of_answers_and_other_settings_come_back_as_they_are_now(tmp_path: Path) -> None:
    model = tiny_model(max_new_tokens=7)
    model.max_new_tokens, model.max_side = 11, 48
    again = PixelSAIL.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert (again.max_new_tokens, again.max_side, again.max_tokens) == (11, 48, model.max_tokens)
    with chatter(again):
        assert max(len(again.tokens.tokenizer.encode(again.predict(picture(s), TEXT).text)) for s in range(3)) <= 11


def test_the_card_is_the_readme(tiny: PixelSAIL, tmp_path: Path) -> None:
    folder = tiny.save_pretrained(tmp_path / "m", card="# Trained by hand\n")
    assert (folder / "README.md").read_text() == "# Trained by hand\n"


# -- overrides --------------------------------------------------------------------------------------------------------


def test_settings_can_be_overridden(saved: Path) -> None:
    model = PixelSAIL.from_pretrained(saved, max_new_tokens=3, max_side=16)
    assert (model.max_new_tokens, model.max_side, model.encoder.max_side) == (3, 16, 16)
    assert model.config["max_side"] == 16


@pytest.mark.parametrize("name", ["max_sides", "weights"])
def test_an_override_that_does_not_exist_is_refused(name: str, saved: Path) -> None:
    with pytest.raises(SailUsageError, match=f"cannot override {name}"):
        PixelSAIL.from_pretrained(saved, **{name: 1})


# -- damaged folders --------------------------------------------------------------------------------------------------


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        change(config["model"])
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any], with_sum: bool = True) -> Callable[[Path], None]:
    """Changes the weights and, if `with_sum`, their sum in the config."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)
        if with_sum:
            edit_sums(lambda sums: sums.update({path.name: safetensors_io.digest(path)}))(folder)

    return damage


def edit_sums(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        change(config["weights"])
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    return damage


def without_sums(*others: Callable[[Path], Any]) -> Callable[[Path], None]:
    """As older folders are, and then damaged."""

    def damage(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": config["model"]}))
        for other in others:
            other(folder)

    return damage


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


NORM, SEG = "backbone.model.norm.weight", "mask_head.seg_projector.0.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (remove("config.yaml"), ["copy has no config.yaml", "no model folder"]),
    "no weights": (remove("model.safetensors"), ["copy has no model.safetensors"]),
    "no tokenizer": (remove("tokenizer.json"), ["copy has no tokenizer.json"]),
    "half the weights": (truncate("model.safetensors", 0.5), ["copy/model.safetensors is damaged"]),
    "no byte of the weights": (truncate("model.safetensors", 0), ["copy/model.safetensors is damaged"]),
    "one weight is another": (
        edit_weights(lambda s: s[NORM][0].add_(1), with_sum=False),
        ["copy/model.safetensors is damaged or was changed"],
    ),
    "half the weights of an older folder": (
        without_sums(truncate("model.safetensors", 0.5)),
        ["copy/model.safetensors is damaged"],
    ),
    "no weights in an older folder": (
        without_sums(remove("model.safetensors")),
        ["copy has no model.safetensors; copy it again"],
    ),
    "no sum": (edit_sums(lambda s: s.clear()), ["copy/config.yaml: section weights must give"]),
    "a sum that is none": (
        edit_sums(lambda s: s.update({"model.safetensors": 3})),
        ["copy/config.yaml: section weights must give"],
    ),
    "weights elsewhere": (
        edit_sums(lambda s: s.update({"../model.safetensors": "0" * 64})),
        ["copy/config.yaml: section weights must give"],
    ),
    "half the tokenizer": (truncate("tokenizer.json", 0.5), ["copy/tokenizer.json cannot be read"]),
    "config that is no YAML": (write("config.yaml", "model: ["), ["copy/config.yaml is not valid YAML"]),
    "config without a model": (write("config.yaml", "data: {}"), ["copy/config.yaml", "no section model"]),
    "config that is a word": (write("config.yaml", "hello"), ["copy/config.yaml", "no section model"]),
    "config with a model that is a word": (write("config.yaml", "model: x"), ["copy/config.yaml", "no section model"]),
    "unknown argument": (edit_config(lambda m: m.update(max_sides=3)), ["config.yaml", "no argument 'max_sides'"]),
    "no backbone": (edit_config(lambda m: m.pop("backbone")), ["config.yaml does not set backbone"]),
    "unknown argument of a plugin": (
        edit_config(lambda m: m["upsampler"]["init_args"].update(strid=2)),
        ["copy/config.yaml: DeconvUpsampler", "'strid'"],
    ),
    "impossible argument of a plugin": (
        edit_config(lambda m: m["backbone"]["init_args"].update(hidden_size=33)),
        ["copy/config.yaml: SailQwen: hidden_size 33 must be divisible"],
    ),
    "unknown plugin": (
        edit_config(lambda m: m["upsampler"].update(class_path="Sharpener")),
        ["copy needs the plugin Sharpener", "--plugins"],
    ),
    "missing weights": (edit_weights(lambda s: s.pop(NORM)), ["model.safetensors", f"missing {NORM}"]),
    "unexpected weights": (
        edit_weights(lambda s: s.update({f"extra.{n}": torch.zeros(1) for n in range(6)})),
        ["model.safetensors", "unexpected extra.0, extra.1, extra.2, extra.3 and 2 more"],
    ),
    "other shapes": (
        edit_weights(lambda s: s.update({NORM: torch.zeros(7), SEG: torch.zeros(2, 3)})),
        ["model.safetensors", f"{NORM} 7 instead of 32", f"{SEG} 2 x 3 instead of"],
    ),
    "weights of another size": (
        edit_config(lambda m: m["backbone"]["init_args"].update(num_layers=1)),
        ["model.safetensors", "unexpected backbone.model.layers.1."],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_sentence_that_names_the_file(damage: str, folder: Path) -> None:
    make, words = DAMAGES[damage]
    make(folder)
    with pytest.raises(SailError) as caught:
        PixelSAIL.from_pretrained(folder)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message and len(message) < 500


def test_an_unknown_plugin_is_a_fault_of_usage(folder: Path) -> None:
    DAMAGES["unknown plugin"][0](folder)
    with pytest.raises(SailUsageError):
        PixelSAIL.from_pretrained(folder)


def test_a_folder_without_sums_loads(folder: Path, saved: Path) -> None:
    without_sums()(folder)
    assert equal(PixelSAIL.from_pretrained(folder), PixelSAIL.from_pretrained(saved))


# -- shards -----------------------------------------------------------------------------------------------------------


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model*"))


def test_a_large_model_is_stored_in_shards_and_comes_back_with_the_same_answers(saved: Path, sharded: Path) -> None:
    names = names_of(sharded)
    count = len(names) - 1
    assert count > 2
    assert names == [*(f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)), safetensors_io.INDEX]
    table = load_file(saved / "model.safetensors")
    index = json.loads((sharded / safetensors_io.INDEX).read_text())["weight_map"]
    for name in names[:-1]:
        stored = load_file(sharded / name)
        assert set(stored) == {key for key, file in index.items() if file == name}
        assert len(stored) == 1 or sum(value.nbytes for value in stored.values()) <= 50_000
        assert all(torch.equal(value, table.pop(key)) for key, value in stored.items())
    assert table == {}
    one, many = PixelSAIL.from_pretrained(saved), PixelSAIL.from_pretrained(sharded)
    assert equal(one, many)
    with chatter(one), chatter(many):
        left, right = (model.predict(picture(1), TEXT) for model in (one, many))
        assert left.text == right.text and np.array_equal(left.masks, right.masks)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


SHARD_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed": (flip_a_bit, "is damaged or was changed"),
    "cut short": (lambda path: os.truncate(path, path.stat().st_size - 1), "is damaged or was changed"),
    "empty": (lambda path: os.truncate(path, 0), "is damaged or was changed"),
    "gone": (Path.unlink, "copy has no"),
    "a neighbour": (
        lambda path: shutil.copy(path.with_name(path.name.replace("-00002-", "-00001-")), path),
        "is damaged or was changed",
    ),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_a_damaged_shard_is_refused_by_name(damage: str, sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "copy"))
    second = names_of(folder)[1]
    make, words = SHARD_DAMAGES[damage]
    make(folder / second)
    with pytest.raises(SailError, match=rf"{words}[^\n]*; copy it again$") as caught:
        PixelSAIL.from_pretrained(folder)
    assert second in str(caught.value) and "00001" not in str(caught.value)


def test_shards_without_sums_are_found_by_their_index(sharded: Path, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "copy"))
    without_sums()(folder)
    assert equal(PixelSAIL.from_pretrained(folder), PixelSAIL.from_pretrained(saved))
    first, second = names_of(folder)[:2]
    held = (folder / second).read_bytes()
    shutil.copy(folder / first, folder / second)
    with pytest.raises(SailError, match=rf"copy/{second} and {first} both hold"):
        PixelSAIL.from_pretrained(folder)
    (folder / second).write_bytes(held[:-1])
    with pytest.raises(SailError, match=rf"copy/{second} is damaged"):
        PixelSAIL.from_pretrained(folder)
    (folder / second).unlink()
    with pytest.raises(SailError, match=rf"copy has no {second}"):
        PixelSAIL.from_pretrained(folder)
    (folder / safetensors_io.INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(SailError, match=r"names \.\./model.safetensors, which is no weight file beside it"):
        PixelSAIL.from_pretrained(folder)
    for content in ("{", "[]", '{"weight_map": ["a"]}'):
        (folder / safetensors_io.INDEX).write_text(content)
        with pytest.raises(SailError, match=rf"copy/{safetensors_io.INDEX} is damaged"):
            PixelSAIL.from_pretrained(folder)


def test_the_index_is_for_others(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "copy"))
    (folder / safetensors_io.INDEX).unlink()
    assert equal(PixelSAIL.from_pretrained(folder), PixelSAIL.from_pretrained(sharded))


def test_another_number_of_shards_leaves_none_of_the_old_ones(tiny: PixelSAIL, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (tmp_path / "m").mkdir()
    (folder / "model-card.safetensors").touch()  # not ours
    for size in ("50KB", 100_000, "5GB", "50KB"):
        tiny.save_pretrained(folder, max_shard_size=size)
        sums = yaml.safe_load((folder / "config.yaml").read_text())["weights"]
        index = [safetensors_io.INDEX] if len(sums) > 1 else []
        assert names_of(folder) == sorted(["model-card.safetensors", *sums, *index])
        assert equal(PixelSAIL.from_pretrained(folder), tiny)


@pytest.mark.parametrize("size", ["five", "5 apples", 0, -1, "5", None])
def test_a_size_that_cannot_be_read_is_a_fault_of_usage(size: Any, tiny: PixelSAIL, tmp_path: Path) -> None:
    with pytest.raises(SailUsageError, match="max_shard_size is a size such as 5GB"):
        tiny.save_pretrained(tmp_path / "m", max_shard_size=size)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_read_one_at_a_time(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = safetensors_io.StoredTensor.read

    def watched(self: safetensors_io.StoredTensor) -> torch.Tensor:
        nonlocal most
        value = read(self)
        alive.append(weakref.ref(value))
        most = max(most, sum(known() is not None for known in alive))
        return value

    monkeypatch.setattr(safetensors_io.StoredTensor, "read", watched)
    model = PixelSAIL.from_pretrained(sharded)
    assert len(alive) == len(weights(model)) and most <= 2  # the one that is copied, and the one that follows it


# -- made from files that are gone ------------------------------------------------------------------------------------


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A local Hugging Face folder with the vocabulary of the laboratory."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = len(tiny_model().tokens)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=words, tie_word_embeddings=False, **sizes, **heads)).save_pretrained(
        tmp_path / "qwen"
    )
    return tmp_path / "qwen"


def from_decoder(cls: type[SailDecoder], decoder: Path) -> PixelSAIL:
    model = PixelSAIL(cls(pretrained=str(decoder), patch_size=8), IdentityUpsampler(), NoPrompts(4), mask_channels=8)
    assert model.config["backbone"]["init_args"]["pretrained"] == str(decoder), "as given, until it is built"
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("cls", [SailDecoder, SailQwen])
def test_a_model_made_from_a_decoder_loads_where_the_decoder_is_gone(
    cls: type[SailDecoder], decoder: Path, tmp_path: Path
) -> None:
    model = from_decoder(cls, decoder)
    folder = model.save_pretrained(tmp_path / "m")
    shutil.rmtree(decoder)
    again = PixelSAIL.from_pretrained(folder)
    assert equal(model, again) and type(again.model.backbone) is cls
    assert again.model.backbone.model.config.model_type == "qwen3"
    assert str(tmp_path) not in "".join((folder / name).read_text() for name in ("config.yaml", "README.md"))
    twice = again.save_pretrained(tmp_path / "twice")
    assert (twice / "config.yaml").read_text() == (folder / "config.yaml").read_text()


def test_a_checkpoint_of_such_a_model_does_too(decoder: Path, tmp_path: Path) -> None:
    model = from_decoder(SailDecoder, decoder)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    shutil.rmtree(decoder)
    assert equal(model, PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt", map_location="cpu"))


def test_a_checkpoint_keeps_how_losses_are_weighed(tmp_path: Path) -> None:
    model = tiny_model(language_weight=0.25, loss_normalization="microbatch")
    trainer = L.Trainer(accelerator="cpu", logger=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt", map_location="cpu")
    assert (again.language_weight, again.loss_normalization) == (0.25, "microbatch")


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_a_fault_that_lists_packaged_models() -> None:
    with pytest.raises(SailError, match="no model folder gone; packaged models: "):
        PixelSAIL.from_pretrained("gone")


def test_packaged_models_are_found_by_name_unless_a_folder_here_has_it(
    saved: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, workdir / "package/zoo/small")
    (workdir / "package/zoo/unfinished").mkdir()
    monkeypatch.setattr(model_folder, "files", lambda package: workdir / "package")
    assert model_folder.locate("small") == workdir / "package/zoo/small"
    assert model_folder.is_folder("small") and not model_folder.is_folder("unfinished")
    with pytest.raises(SailError, match="packaged models: small$"):
        model_folder.locate("unfinished")
    assert equal(PixelSAIL.from_pretrained("small"), PixelSAIL.from_pretrained(saved))
    (workdir / "small").mkdir()
    assert model_folder.locate("small") == Path("small")


# -- written whole or not at all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True], ids=["new folder", "folder with a model"])
def test_a_save_that_fails_leaves_what_was_there(
    before: bool, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    if before:
        shutil.copytree(saved, folder)
    held = {path.name: path.read_bytes() for path in folder.glob("*")}

    def fail(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError("no space left")

    model = exact_model()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="no space left"):
            model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == held
    assert model_folder.is_folder(folder) == before


def test_a_save_that_is_stopped_while_files_are_put_in_place_leaves_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = Path.replace, []

    def fail(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("stopped")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="stopped"):
            tiny_model().save_pretrained(folder, max_shard_size="50KB")
    assert not model_folder.is_folder(folder), "files of two models are never taken for one"
    tiny_model().save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.md", "config.yaml", "model.safetensors", "tokenizer.json"]
    )


def test_a_save_replaces_an_older_model(tmp_path: Path, saved: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    other = tiny_model(max_new_tokens=5)
    torch.nn.init.ones_(other.model.backbone.lm_head.weight)
    other.save_pretrained(folder)
    again = PixelSAIL.from_pretrained(folder)
    assert equal(other, again) and again.max_new_tokens == 5 and len(list(folder.iterdir())) == 4


def test_a_file_is_no_folder_to_save_to(tiny: PixelSAIL, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SailError, match="file is a file; name a folder"):
        tiny.save_pretrained(tmp_path / "file")


# -- with the command line --------------------------------------------------------------------------------------------


def test_its_config_is_one_for_the_command_line(saved: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "-c", str(saved / "config.yaml"), f"--ckpt_path={saved}", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["model"]
    assert shown["backbone"]["init_args"]["hidden_size"] == 32
    assert shown["tokenizer"] == str(saved / "tokenizer.json") and shown["mask_channels"] == 16


def test_the_command_line_names_a_broken_image_once(
    saved: Path, workdir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (workdir / "broken.png").write_text("no picture")
    args = ["predict", f"--ckpt_path={saved}", "--data.images=broken.png", f"--data.text={TEXT}"]
    assert main([*args, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]) == 1
    result = capsys.readouterr()
    assert (result.out + result.err + caplog.text).count("broken.png") == 1
    assert "broken.png is not a readable image (of no known format)" in result.err


def test_a_tokenizer_beside_a_config_is_meant_and_a_name_stays_a_name(folder: Path) -> None:
    assert read_config(folder / "config.yaml")["model"]["tokenizer"] == str(folder / "tokenizer.json")
    (folder / "other.yaml").write_text("model.tokenizer: laboratory")
    assert read_config(folder / "other.yaml") == {"model": {"tokenizer": "laboratory"}}


ASK = """
import hashlib, sys
import numpy as np
import torch
from sail_lightning import PixelSAIL, Box
model = PixelSAIL.load_from_checkpoint(sys.argv[1], map_location="cpu").eval()
image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
seg = torch.nn.functional.one_hot(torch.tensor(model.tokens.seg), len(model.tokens))
model.model.backbone.logits = lambda hidden: seg.float().expand(len(hidden), -1)
answer = model.predict(image, "segment <Prompt0> .", prompts=[Box(1, 2, 9, 9)], max_new_tokens=2)
print(answer.masks.shape, hashlib.sha256(np.packbits(answer.masks).tobytes()).hexdigest())
"""


def test_a_checkpoint_needs_neither_a_config_nor_the_folder_that_training_started_from(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "-c", "data/laboratory", "-c", str(folder / "config.yaml"), f"--model.weights={folder}"]
    fast = [
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
        "--data.token_budget=300",
    ]
    assert main([*fit, *fast, "--trainer.enable_progress_bar=false", "--model.optimizer.lr=0"]) == 0
    model = PixelSAIL.from_pretrained(folder)
    shutil.rmtree(folder)
    ckpt = next(workdir.rglob("last.ckpt"))
    capsys.readouterr()
    again = ["fit", "-c", str(next(workdir.rglob("config.yaml"))), f"--ckpt_path={ckpt}", "--print_config"]
    assert main(again) == 0 and yaml.safe_load(capsys.readouterr().out)["model"]["weights"] is None
    trained = PixelSAIL.load_from_checkpoint(ckpt, map_location="cpu").eval()
    assert equal(model, trained), "with a learning rate of 0, training leaves the weights that it started from"
    with script(model, model.tokens.seg, model.tokens.seg):
        masks = model.predict(picture(0), "segment <Prompt0> .", [Box(1, 2, 9, 9)], max_new_tokens=2).masks
    run = subprocess.run(
        [sys.executable, "-c", ASK, str(ckpt)], capture_output=True, text=True, env=os.environ, cwd=workdir, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{masks.shape} {hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()}"
