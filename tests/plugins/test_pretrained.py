"""Decoders from a local Hugging Face folder: words are read exactly as before, nothing is lost or left to chance."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sail import packed, picture, tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sail_lightning import Box, PixelSAIL
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Dims
from sail_lightning.plugins.backbones import EncoderBackbone, SailDecoder, SailQwen
from sail_lightning.sample import Sample, Turn

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PICTURE_TOKENS = ("<vision>", "<vpatch>", "</vision>")
ADDED = ("[SEG]", "<p>", "</p>", "<Prompt0>", "<Prompt1>", "<Prompt2>", "<Prompt3>")
BYTES = 256
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """Bytes, the tokens of Qwen's chat, and more: known words of a folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True) for token in (*CHAT_TOKENS, *more)])
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|endoftext|>")


def folder_of(
    path: Path, kind: str = "qwen2", padding: int = 0, shard: str = "1GB", special: tuple[str, ...] = (), **words: Any
) -> Path:
    """A folder as `save_pretrained` writes it, with weights that are all away from their start."""
    words_of = tokenizer(*special)
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **(SIZES | words), vocab_size=len(words_of) + padding, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(path, max_shard_size=shard)
    words_of.save_pretrained(path)
    return path


def solo_folder(path: Path, patch: int = 8, **words: Any) -> Path:
    """A folder in the style of SOLO and SAIL: another `model_type`, a patch embedding, bfloat16."""
    folder_of(path, special=PICTURE_TOKENS)
    state = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    state["model.vis_embed.weight"] = torch.randn(SIZES["hidden_size"], 3 * patch * patch).bfloat16()
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    edit_config(path, model_type="solo", vision_patch_size=patch, torch_dtype="bfloat16", dtype="bfloat16", **words)
    edit_config(path, rope_parameters=None, rope_theta=1e4, rope_scaling={"type": "mrope", "mrope_section": [0, 2, 2]})
    edit_config(path, auto_map={"AutoModelForCausalLM": "modeling_solo.SoloForCausalLM"}, architectures=["SoloModel"])
    return path


def edit_config(path: Path, **changes: Any) -> None:
    """Changes words of a config.json; None removes one."""
    content = json.loads((path / "config.json").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (path / "config.json").write_text(json.dumps(content))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def sail(path: Path, kind: type[SailDecoder] = SailQwen, **settings: Any) -> PixelSAIL:
    """A Pixel-SAIL that starts from a folder."""
    settings.setdefault("patch_size", 8)
    return tiny(backbone=kind(pretrained=str(path), **settings), tokenizer=str(path)).eval()


def core(model: PixelSAIL) -> Any:
    return model.model.backbone


TEXTS = [
    Sample(None, (Turn("what is a circle?", "a shape, round and closed."),), source="text", id="0"),
    Sample(None, (Turn("where?", "there."), Turn("why, and how long has it been so?", "ask!")), source="text", id="1"),
]


@torch.no_grad()
def logits_of(model: PixelSAIL, samples: list[Sample]) -> list[tuple[Tensor, Tensor]]:
    """Ids (L,) and logits (L, V) of packed samples, through the whole model."""
    batch = packed(model, samples)
    logits = core(model).logits(model.model(batch).hidden)
    return list(zip(batch.ids.split(list(batch.plan.lengths)), logits.split(list(batch.plan.lengths)), strict=True))


FOLDERS: dict[str, tuple[type[SailDecoder], dict[str, Any]]] = {
    "Qwen2": (SailQwen, {}),
    "Qwen2, tied": (SailQwen, {"tie_word_embeddings": True}),
    "Qwen2, sharded": (SailQwen, {"shard": "20KB"}),
    "Qwen2, tied and sharded": (SailQwen, {"tie_word_embeddings": True, "shard": "20KB"}),
    "Qwen2.5, whose table is padded": (SailQwen, {"padding": 30}),
    "Qwen2.5, tied and padded": (SailQwen, {"padding": 30, "tie_word_embeddings": True}),
    "Qwen2, scaled": (SailQwen, {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 900.0}}),
    "Qwen2, yarn": (
        SailQwen,
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 900.0, "attention_factor": 1.3}},
    ),
    "Qwen3": (SailQwen, {"kind": "qwen3", "head_dim": 12}),
    "Qwen3, tied": (SailDecoder, {"kind": "qwen3", "head_dim": 8, "tie_word_embeddings": True}),
    "Llama": (SailDecoder, {"kind": "llama"}),
    "Llama, tied": (SailDecoder, {"kind": "llama", "tie_word_embeddings": True}),
    "Llama 3": (SailDecoder, {"kind": "llama", "rope_parameters": LLAMA3}),
    "Llama with biases": (SailDecoder, {"kind": "llama", "attention_bias": True, "mlp_bias": True}),
    "Mistral": (SailDecoder, {"kind": "mistral", "sliding_window": None}),
    "Gemma, which scales its embeddings": (SailDecoder, {"kind": "gemma", "head_dim": 8, "tie_word_embeddings": True}),
    "GLM, which turns half of its channels": (SailDecoder, {"kind": "glm", "head_dim": 16}),
    "Phi 3, whose matrices are joined": (SailDecoder, {"kind": "phi3"}),
    "OLMo 2": (SailDecoder, {"kind": "olmo2"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_words_alone_are_read_as_the_library_reads_them(name: str, tmp_path: Path) -> None:
    kind, words = FOLDERS[name]
    folder = folder_of(tmp_path / "hf", **words)
    if "shard" in words:
        assert len(list(folder.glob("*.safetensors"))) > 1
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = sail(folder, kind)
    known = BYTES + len(CHAT_TOKENS)
    with torch.no_grad():
        for ids, found in logits_of(model, TEXTS):
            assert ids.max() < known and len(ids) > 30
            wanted = original(ids[None]).logits[0, :, :known]
            assert wanted.std() > 0.3, "no small numbers that would hide a difference"
            torch.testing.assert_close(found[:, :known], wanted, atol=1e-5, rtol=0)


def test_answers_are_those_of_the_library(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", padding=5)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = sail(folder)
    text = "<|im_start|>user\nwhat is a circle?<|im_end|>\n"
    ids = list(model.tokens.tokenizer.encode(text, add_special_tokens=False))
    start = len(ids)
    for _ in range(model.max_new_tokens):
        with torch.no_grad():
            ids.append(int(original(torch.tensor([ids])).logits[0, -1, : BYTES + 3].argmax()))
        if ids[-1] in model.tokens.stop_token_ids:
            break
    assert model.predict(None, "what is a circle?").text == model.tokens.decode(ids[start:])


def test_known_words_keep_their_rows_and_new_ones_start_at_the_mean(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", padding=30)
    stored = load_file(folder / "model.safetensors")
    model = sail(folder)
    known = BYTES + len(CHAT_TOKENS)
    assert model.tokens.added == (*PICTURE_TOKENS, *ADDED)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = core(model).get_parameter(name)
        assert len(stored[name]) == known + 30 and len(table) == len(model.tokens) == known + len(model.tokens.added)
        assert torch.equal(table[:known], stored[name][:known])
        mean = stored[name][:known].double().mean(0).float()
        torch.testing.assert_close(table[known:], mean.expand(len(ADDED) + 3, -1), atol=1e-7, rtol=1e-6)
    others = {name for name in stored if name not in ("model.embed_tokens.weight", "lm_head.weight")}
    assert all(torch.equal(core(model).get_parameter(name), stored[name]) for name in others)


def test_special_tokens_that_the_folder_knows_keep_their_rows(tmp_path: Path) -> None:
    """A folder of a model that was trained with masks, in an order of its own."""
    folder = folder_of(tmp_path / "hf", special=("</p>", *PICTURE_TOKENS, "[SEG]", "<p>"))
    stored = load_file(folder / "model.safetensors")
    model = sail(folder)
    assert model.tokens.added == ADDED[3:]
    assert model.tokens.seg == BYTES + 3 + 4
    known = BYTES + 3 + 6
    assert torch.equal(core(model).model.embed_tokens.weight[:known], stored["model.embed_tokens.weight"])
    assert torch.equal(core(model).lm_head.weight[:known], stored["lm_head.weight"])


@pytest.mark.parametrize("separate", [False, True])
def test_tied_tables_stay_one(separate: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", tie_word_embeddings=True, padding=4)
    if separate:  # some tools store both
        edit_weights(folder, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == separate
    model = sail(folder)
    assert core(model).lm_head.weight is core(model).model.embed_tokens.weight
    again = PixelSAIL.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert core(again).lm_head.weight is core(again).model.embed_tokens.weight


# -- SOLO and SAIL ----------------------------------------------------------------------------------------------------


def test_a_folder_in_the_style_of_solo_brings_its_patch_embedding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = solo_folder(tmp_path / "solo")
    with caplog.at_level(logging.INFO, logger="sail_lightning"):
        model = sail(folder, patch_size=None)
    assert "config.json: model_type 'solo' is not known; it is taken as qwen2" in caplog.text
    assert "starts fresh" not in caplog.text
    stored = load_file(folder / "model.safetensors")
    assert model.model.dims.patch_size == 8
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(core(model).vis_embed.weight, stored["model.vis_embed.weight"].float())
    assert torch.equal(core(model).model.norm.weight, stored["model.norm.weight"].float())
    reference = folder_of(tmp_path / "reference", special=PICTURE_TOKENS)
    original = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    original.load_state_dict({name: t.float() for name, t in stored.items() if "vis_embed" not in name})
    with torch.no_grad():
        for ids, found in logits_of(model, TEXTS):
            wanted = original(ids[None]).logits[0]
            torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=0)
    assert model.predict(picture(20, 30), "segment <Prompt0>.", [Box(1, 2, 9, 9)]).text is not None


def test_a_text_only_folder_gets_a_fresh_patch_embedding_about_as_loud_as_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "hf")
    with caplog.at_level(logging.INFO, logger="sail_lightning"):
        model = sail(folder, patch_size=None)
    assert f"{folder} has no patch embedding; it starts fresh" in caplog.text
    assert model.model.dims.patch_size == 16
    patches = core(model).vis_embed(torch.randn(200, 3 * 16 * 16))
    assert patches.std().item() == pytest.approx(core(model).model.embed_tokens.weight.std().item(), rel=0.1)


@pytest.mark.parametrize("style", ["whole", "bare", "old"])
def test_names_with_and_without_their_beginning_are_the_same(style: str, tmp_path: Path) -> None:
    folder = solo_folder(tmp_path / "solo")
    wanted = core(sail(folder)).state_dict()

    def rename(state: dict[str, Tensor]) -> None:
        for name in list(state):
            if style == "bare" and name.startswith("model."):
                state[name.removeprefix("model.")] = state.pop(name)
        if style == "old":  # tensors that are computed, or of a prompt encoder
            state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
            state["model.vp_embed.weight"] = torch.ones(32, 32)

    edit_weights(folder, rename)
    found = core(sail(folder)).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def test_multimodal_sections_do_not_hide_the_base_of_the_frequencies(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    exact = core(sail(folder)).model.rotary_emb.frequencies
    for rope in (
        {"rope_parameters": {"rope_type": "mrope", "rope_theta": 777.0, "mrope_section": [0, 2, 2]}},
        {"rope_parameters": {"rope_type": "default", "type": "mrope", "rope_theta": 777.0, "mrope_section": [0, 2, 2]}},
        {"rope_parameters": None, "rope_theta": 777.0, "rope_scaling": {"type": "mrope", "mrope_section": [0, 2, 2]}},
        {"rope_parameters": None, "rope_theta": 777.0, "rope_scaling": {"rope_type": "mrope"}},
        {"rope_parameters": None, "rope_theta": 777.0, "rope_scaling": None},
    ):
        edit_config(folder, **rope)
        assert torch.equal(core(sail(folder)).model.rotary_emb.frequencies, exact), rope
    torch.testing.assert_close(exact, 777.0 ** (-torch.arange(0, 8, 2) / 8))


def test_other_rotary_sections_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = solo_folder(tmp_path / "solo")
    sail(folder)
    assert "rotary sections" not in caplog.text
    edit_config(folder, rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})
    sail(folder)
    assert "images were read with rotary sections [2, 1, 1]; here they are halves" in caplog.text


def test_an_encoder_takes_the_place_of_a_folders_patch_embedding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = solo_folder(tmp_path / "solo")
    with caplog.at_level(logging.INFO, logger="sail_lightning"):
        model = tiny(backbone=EncoderBackbone("test_vit", pretrained=str(folder)), tokenizer=str(folder)).eval()
    assert "vis_embed.weight is left out: images pass an encoder here" in caplog.text
    assert model.model.dims.patch_size == 16
    ours, plain = (logits_of(m, TEXTS) for m in (model, sail(folder)))
    assert all(torch.equal(a, b) for pair in zip(ours, plain, strict=True) for a, b in zip(*pair, strict=True))
    stored = model.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder)
    assert_same_answers(model, PixelSAIL.from_pretrained(stored))


# -- stored models need no folder -------------------------------------------------------------------------------------


def assert_same_answers(first: PixelSAIL, second: PixelSAIL) -> None:
    ours, theirs = (model.model.state_dict() for model in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    answers = [
        model.predict(picture(20, 30), "segment <Prompt0>.", [Box(1, 2, 9, 9)], answer_prefix="it is [SEG].")
        for model in (first, second)
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].masks.shape == (1, 20, 30)
    assert np.array_equal(answers[0].masks, answers[1].masks)


ORIGINS: dict[str, tuple[Callable[..., Path], type[SailDecoder], dict[str, Any]]] = {
    "Qwen2.5": (folder_of, SailQwen, {"padding": 7, "tie_word_embeddings": True}),
    "Llama 3": (folder_of, SailDecoder, {"kind": "llama", "rope_parameters": LLAMA3}),
    "SOLO": (solo_folder, SailQwen, {}),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_a_model_folder_outlives_the_folder_it_started_from(name: str, tmp_path: Path) -> None:
    make, kind, words = ORIGINS[name]
    folder = make(tmp_path / "hf", **words)
    model = sail(folder, kind)
    stored = model.save_pretrained(tmp_path / "model")
    shutil.rmtree(folder)
    assert str(tmp_path) not in (stored / "config.yaml").read_text(), "no path of this machine is stored"
    again = PixelSAIL.from_pretrained(stored)
    assert_same_answers(model, again)
    assert_same_answers(model, PixelSAIL.from_pretrained(again.save_pretrained(tmp_path / "again")))


@pytest.mark.parametrize("name", ORIGINS)
def test_a_lightning_checkpoint_needs_nothing_of_the_folder_but_its_tokenizer(name: str, tmp_path: Path) -> None:
    make, kind, words = ORIGINS[name]
    folder = make(tmp_path / "hf", **words)
    model = sail(folder, kind)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    kept = shutil.copy(folder / "tokenizer.json", tmp_path)
    shutil.rmtree(folder)
    assert_same_answers(model, PixelSAIL.load_from_checkpoint(tmp_path / "x.ckpt", tokenizer=str(kept)).eval())


def test_the_stored_config_holds_what_makes_the_decoder_and_nothing_else(tmp_path: Path) -> None:
    backbone = SailQwen(pretrained=str(solo_folder(tmp_path / "solo")))
    backbone.build(Dims(vocab_size=BYTES + 6))
    stored = backbone.export_init_args()
    assert stored["pretrained"] is None and stored["patch_size"] == 8
    assert stored["config"]["model_type"] == "qwen2" and stored["config"]["rope_theta"] == 1e4
    assert not {"auto_map", "architectures", "_name_or_path", "torch_dtype", "dtype"} & stored["config"].keys()


# -- mistakes ---------------------------------------------------------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda state: state.pop(name))


def put(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, lambda state: state.update({name: torch.ones(shape)}))


def write_config(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_text(content)


def words(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a weight is missing": (drop("model.layers.1.mlp.up_proj.weight"), "missing model.layers.1.mlp.up_proj.weight"),
    "a bias is missing": (drop("model.layers.0.self_attn.q_proj.bias"), "missing model.layers.0.self_attn.q_proj.bias"),
    "no language head": (drop("lm_head.weight"), "missing lm_head.weight"),
    "no embeddings": (drop("model.embed_tokens.weight"), "missing model.embed_tokens.weight"),
    "a weight too many": (put("model.layers.2.mlp.up_proj.weight", 48, 32), "unexpected model.layers.2.mlp.up_proj"),
    "another shape": (
        put("model.layers.0.mlp.up_proj.weight", 48, 31),
        "other shapes: model.layers.0.mlp.up_proj.weight 48 x 31 instead of 48 x 32",
    ),
    "a table that is no matrix": (
        put("model.embed_tokens.weight", 300),
        "other shapes: model.embed_tokens.weight 300 instead of 259 x 32",
    ),
    "a short table": (
        put("model.embed_tokens.weight", 258, 32),
        "model.embed_tokens.weight has 258 rows, the tokenizer 259 tokens; use the folder as the tokenizer",
    ),
    "a short head": (put("lm_head.weight", 100, 32), "lm_head.weight has 100 rows, the tokenizer 259 tokens"),
    "a patch embedding of another size": (
        put("model.vis_embed.weight", 32, 3 * 49),
        "other shapes: vis_embed.weight 32 x 147 instead of 32 x 192",
    ),
    "tied, but the head differs": (words(tie_word_embeddings=True), "says tie_word_embeddings, but lm_head differs"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "hf holds no checkpoint"),
    "half the weights": (truncate, "model.safetensors is damaged"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "hf has no config.json: it is no Hugging Face"),
    "half a config": (write_config('{"hidden_size": 32,'), "config.json is not valid JSON"),
    "a config that is a list": (
        write_config("[1, 2]"),
        "config.json does not describe a decoder: it is no JSON object",
    ),
    "a config without sizes": (words(hidden_size=None), "does not describe a decoder: it has no hidden_size"),
    "a config with a word for a size": (words(num_hidden_layers="two"), "it has no num_hidden_layers"),
    "a config with a wrong type": (words(rms_norm_eps="small"), "config.json: these settings do not describe a qwen2"),
    "heads that do not divide": (
        words(num_key_value_heads=3),
        "config.json: 4 heads cannot share 3 keys and values; num_key_value_heads must divide num_attention_heads",
    ),
    "a vision-language model": (
        words(model_type="clip"),
        "config.json: SailQwen takes decoders of type qwen2 or qwen3",
    ),
    "another family": (words(model_type="llama"), "config.json: SailQwen takes decoders of type qwen2 or qwen3, not"),
    "windows": (
        words(use_sliding_window=True, sliding_window=16, max_window_layers=1, layer_types=None),
        "config.json: a qwen2 decoder with sliding windows cannot be the core",
    ),
    "frequencies that change": (
        words(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        "config.json: rotary frequencies of type dynamic change with the length",
    ),
    "half a tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0",'),
        "tokenizer.json cannot be read",
    ),
    "names of another unknown kind": (
        lambda folder: (drop("model.layers.0.self_attn.q_proj.bias")(folder), edit_config(folder, model_type="solo")),
        "do not fit its config: missing model.layers.0.self_attn.q_proj.bias",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_answered_in_one_sentence(fault: str, tmp_path: Path) -> None:
    damage, message = FAULTS[fault]
    folder = folder_of(tmp_path / "hf")
    damage(folder)
    with pytest.raises(SailError, match=message) as caught:
        SailQwen(pretrained=str(folder), patch_size=8).build(Dims(vocab_size=BYTES + 3))
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and len(text) < 500


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf")
    backbone = SailQwen(pretrained=str(folder))
    with pytest.raises(SailError, match=rf"knows \d+ tokens, and {folder} 259; use the folder as the tokenizer"):
        tiny(backbone=backbone, tokenizer="laboratory")


def test_a_tokenizer_that_adds_words_takes_spare_rows_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "hf", padding=30)
    larger = tokenizer("<one>", "<two>")
    larger.save_pretrained(tmp_path / "larger")
    model = tiny(backbone=SailQwen(pretrained=str(folder)), tokenizer=str(tmp_path / "larger"))
    assert f"the tokenizer knows 2 tokens that {folder} lacks: they get spare rows of its tables" in caplog.text
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(core(model).model.embed_tokens.weight[: BYTES + 5], table[: BYTES + 5])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", shard="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SailError, match=shard.name):
        sail(folder)


@pytest.mark.parametrize("path", ["nowhere", "file.txt"])
def test_what_is_no_folder_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(SailError, match=rf"{path} has no config.json: it is no Hugging Face folder"):
        SailDecoder(pretrained=str(tmp_path / path)).build(Dims(vocab_size=40))


def test_a_window_that_covers_no_layer_is_no_window(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf")
    edit_config(folder, use_sliding_window=True, sliding_window=16, max_window_layers=2, layer_types=None)
    assert sail(folder) is not None


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("mistral", {"sliding_window": 8}, "a mistral decoder with sliding windows cannot be the core"),
        ("gemma2", {"head_dim": 8}, "a gemma2 decoder with sliding windows cannot be the core"),
        ("cohere", {}, "a cohere decoder cannot be the core: text alone would be read differently"),
        ("granite", {"logits_scaling": 3.0}, "a granite decoder cannot be the core: text alone would be read diff"),
        ("nemotron", {}, "a nemotron decoder cannot be the core: it is built differently from Llama"),
        ("phi", {}, "a phi decoder has no norm, and cannot be the core"),
        ("mamba", {}, "mamba decoder"),
    ],
)
def test_decoders_that_would_not_stay_themselves_are_refused(
    kind: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "hf", kind=kind, **more)
    with pytest.raises(SailUsageError, match=rf"config.json: .*{message}"):
        sail(folder, SailDecoder)


def test_an_unknown_kind_given_as_words_is_refused() -> None:
    with pytest.raises(SailUsageError, match="there is no decoder with model_type 'solo'"):
        SailDecoder(config=SIZES | {"model_type": "solo"}).build(Dims(vocab_size=40))


def test_either_a_folder_or_words_are_needed() -> None:
    for settings in ({}, {"pretrained": "hf", "config": SIZES}):
        with pytest.raises(SailUsageError, match="SailDecoder needs either pretrained"):
            SailDecoder(**settings)
    with pytest.raises(SailUsageError, match="SailQwen: hidden_size is a pretrained decoder's own; leave it out"):
        SailQwen(pretrained="hf", hidden_size=64)
