"""Official checkpoints: converted, they answer as the official code did; converted back, they are what they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sail_lightning import LoRA, Mask, PixelSAIL
from sail_lightning.cli import main
from sail_lightning.conversion import official
from sail_lightning.conversion.convert import open_model, save_official
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import NoPrompts, PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler, IdentityUpsampler

GOLDEN = Path(__file__).parents[1] / "golden" / "official"
STATE_DICT = "official_tiny_state_dict.safetensors"
RUNS = ("gen1_noprompt", "gen2_two_prompts", "gen3_prefix_answer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """State dict, config and tokenizer, as somebody has them."""
    home = tmp_path / "official"
    home.mkdir()
    for name in (STATE_DICT, "config.json", "tokenizer_base.json"):
        shutil.copy(GOLDEN / name, home)
    return home


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key, None) if value is None else config.update({key: value})
    path.write_text(json.dumps(config))


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / STATE_DICT)
    change(tensors)
    save_file(tensors, folder / STATE_DICT)


def question(name: str) -> tuple[Path, str, list[Mask], str]:
    facts = json.loads((GOLDEN / "meta.json").read_text())["generation"][name]
    ids = facts["kwargs"].get("prompt_ids", [])
    masks = [np.asarray(Image.open(GOLDEN / f"{name}_promptmask{place}.png")) > 0 for place in range(len(ids))]
    prompts = [Mask(mask, id) for mask, id in zip(masks, ids, strict=True)]
    return GOLDEN / f"{name}_image.png", facts["text"], prompts, facts["kwargs"].get("prefix_answer", "")


@pytest.mark.parametrize("dtype", [[], ["--max-shard-size", "100KB"]])
def test_a_converted_folder_gives_the_official_words_and_masks(dtype: list[str], folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "ours"), *dtype]) == 0
    shutil.rmtree(folder)
    model = PixelSAIL.from_pretrained(tmp_path / "ours")
    for name in RUNS:
        image, text, prompts, begun = question(name)
        answer = model.predict(image, text, prompts, max_new_tokens=12, answer_prefix=begun)
        facts = json.loads((GOLDEN / "meta.json").read_text())["generation"][name]
        assert answer.text == begun + facts["prediction"]
        assert np.array_equal(answer.masks, load_file(GOLDEN / f"{name}.safetensors")["mask_bool"].numpy())


def test_back_to_official_is_bit_equal(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = load_file(folder / STATE_DICT)
    assert main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    targets = [tmp_path / "back", tmp_path / "back.pth", tmp_path / "back.safetensors"]
    for target in targets:
        assert main(["convert", str(tmp_path / "ours"), str(target), "--to", "official"]) == 0
    states = [
        load_file(targets[0] / official.OFFICIAL_FILE),
        torch.load(targets[1], weights_only=True)["state_dict"],
        load_file(targets[2]),
    ]
    for state in states:
        assert state.keys() == original.keys()
        assert all(torch.equal(state[name], original[name]) for name in original)
    assert main(["convert", str(targets[0]), str(tmp_path / "again")]) == 0
    assert main(["convert", str(targets[1]), str(tmp_path / "from_pth"), "--base", str(folder)]) == 0
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    for name in ("again", "from_pth"):
        other = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(ours[key], other[key]) for key in ours)
    assert "million parameters, 187 tokens" in capsys.readouterr().out


def test_eve_goes_through_a_model_folder_and_back(tmp_path: Path) -> None:
    home = tmp_path / "eve"
    home.mkdir()
    for name in ("eve_tiny_state_dict.safetensors", "eve_config.json", "tokenizer_base.json"):
        shutil.copy(GOLDEN / name, home)
    assert main(["convert", str(home), str(tmp_path / "ours")]) == 0
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "official"]) == 0
    assert main(["convert", str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    original = load_file(home / "eve_tiny_state_dict.safetensors")
    back = load_file(tmp_path / "back" / official.OFFICIAL_FILE)
    assert original.keys() - back.keys() == {"single_transformer.vp_embed.weight"}  # the official code never reads it
    assert all(torch.equal(back[name], original[name]) for name in back)
    picture = np.random.default_rng(0).integers(0, 256, (40, 28, 3), np.uint8)
    answers = [
        PixelSAIL.from_pretrained(tmp_path / name).predict(picture, "find it", answer_prefix="[SEG]", max_new_tokens=3)
        for name in ("ours", "again")
    ]
    assert answers[0].text == answers[1].text and np.array_equal(answers[0].masks, answers[1].masks)


def test_of_a_folder_with_both_families_the_main_one_is_read_and_the_other_by_name() -> None:
    assert type(open_model(GOLDEN).model.backbone).__name__ == "SailQwen"
    assert type(open_model(GOLDEN / "eve_tiny_state_dict.safetensors").model.backbone).__name__ == "EVEv2"


def test_another_order_of_tokens_keeps_each_token_its_row(folder: Path) -> None:
    order = ["<p>", "</p>", "<Prompt1>", "[SEG]", "<Prompt0>", "<NO_Prompt>", "<Prompt2>"]
    old = json.loads((folder / "config.json").read_text())["special_tokens"]
    rows = [180 + old.index(token) for token in order]

    def reorder(tensors: dict[str, torch.Tensor]) -> None:
        for name in (official.EMBEDDING, official.HEAD):
            tensors[name] = torch.cat([tensors[name][:180], tensors[name][rows]])

    change_tensors(folder, reorder)
    change_config(folder, special_tokens=order, token_ids=None)
    model = open_model(folder)
    assert model.tokens.ids["[SEG]"] == 183
    image, text, prompts, _ = question("gen2_two_prompts")
    answer = model.predict(image, text, prompts, max_new_tokens=12)
    assert answer.text == json.loads((GOLDEN / "meta.json").read_text())["generation"]["gen2_two_prompts"]["prediction"]
    assert np.array_equal(answer.masks, load_file(GOLDEN / "gen2_two_prompts.safetensors")["mask_bool"].numpy())


def test_without_a_list_the_tokens_are_those_of_the_official_rule(folder: Path) -> None:
    change_config(folder, special_tokens=None, token_ids=None, visual_prompt_nums=None)
    model = open_model(folder)
    assert [model.tokens.ids[token] for token in ("[SEG]", "<p>", "</p>", "<Prompt0>", "<Prompt2>")] == [
        180,
        181,
        182,
        183,
        185,
    ]
    assert model.model.prompt_encoder.num_prompts == 3
    assert official.added_tokens({}, 100, 103) == ("<p>", "</p>", "[SEG]")
    assert official.added_tokens({}, 100, 119)[-2:] == ("<Prompt14>", "<NO_Prompt>")
    with pytest.raises(SailError, match="100; name the tokens between with --special-tokens"):
        official.added_tokens({}, 100, 102)


def test_a_segmentation_only_model_without_prompts(folder: Path) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        for name in (official.EMBEDDING, official.HEAD):
            tensors[name] = tensors[name][:183].clone()
        del tensors["single_transformer.model.vp_embed.weight"]

    change_tensors(folder, shrink)
    change_config(folder, special_tokens=["<p>", "</p>", "[SEG]"], visual_prompt_nums=0, token_ids=None)
    model = open_model(folder)
    assert isinstance(model.model.prompt_encoder, NoPrompts)
    assert model.tokens.seg == 182
    assert len(model.predict(GOLDEN / "gen1_noprompt_image.png", "find it", answer_prefix="[SEG]").masks) >= 1


@pytest.mark.parametrize(
    ("patch_size", "stride", "hidden", "tied"), [(32, 2, 32, False), (16, 4, 64, True), (8, 2, 48, False)]
)
def test_other_sizes_come_back_as_they_were(
    patch_size: int, stride: int, hidden: int, tied: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    words = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    }
    model = PixelSAIL(
        backbone=SailQwen(config=words, patch_size=patch_size),
        upsampler=DeconvUpsampler(stride=stride, channels=None if hidden != 48 else 24),  # 24: with a pre-projector
        prompt_encoder=PromptInjection(5, overlap="last", rasterization="nearest_pil"),
        mask_channels=20,
    )
    model.configure_model()
    model.eval()
    back = open_model(save_official(model, tmp_path / "official"))
    state = model.model.state_dict()
    assert back.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.model.state_dict().items())
    assert (back.model.backbone.lm_head.weight is back.model.backbone.model.embed_tokens.weight) == tied
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    left, right = (
        one.predict(picture, "where is it?", answer_prefix="it is [SEG].", max_new_tokens=4) for one in (model, back)
    )
    assert left.text == right.text and np.array_equal(left.masks, right.masks)


def test_nothing_is_loaded_with_a_mismatch(folder: Path) -> None:
    original = load_file(folder / STATE_DICT)

    def fails(change: Any, match: str) -> None:
        save_file(dict(original), folder / STATE_DICT)
        change_tensors(folder, change)
        with pytest.raises(SailError, match=match):
            open_model(folder)

    norm = "single_transformer.model.norm.weight"
    fails(lambda tensors: tensors.pop(norm), "missing single_transformer.model.norm.weight")
    fails(lambda tensors: tensors.update(stranger=torch.zeros(1)), "unexpected stranger")
    fails(lambda tensors: tensors.update({norm: torch.zeros(3)}), "norm.weight 3 instead of 64")
    fails(lambda tensors: tensors.pop(official.EMBEDDING), "no checkpoint of Pixel-SAIL")
    fails(lambda tensors: tensors.update({official.EMBEDDING: torch.zeros(186, 64)}), "186 words, the tokenizer 187")


def test_what_training_left_behind_is_ignored(folder: Path) -> None:
    extra = {
        "mask2former_distill_linear.weight": torch.zeros(256, 32),
        "sam2_distill_linear.bias": torch.zeros(256),
        "single_transformer.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }
    change_tensors(folder, lambda tensors: tensors.update(extra))
    open_model(folder)


def test_usage_faults_are_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").unlink()
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 2
    assert "has no config.json; name the base model's folder with --base FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert main(["convert", str(folder), str(folder)]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert main(["convert", "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 40


def test_a_model_with_parts_of_ours_has_no_official_form() -> None:
    model = PixelSAIL(
        SailQwen(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=1), IdentityUpsampler(), NoPrompts()
    )
    with pytest.raises(SailUsageError, match="the official code has no IdentityUpsampler"):
        official.to_official(model)


def test_an_adapted_model_is_converted_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = SailQwen(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=1)
    model = PixelSAIL(backbone, DeconvUpsampler(stride=2), PromptInjection(2), adapter=LoRA(r=2))
    model.configure_model()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tensors, _ = official.to_official(model)
    assert not [name for name in tensors if "lora" in name or "base_layer" in name]
    wanted = model.model.state_dict()["backbone.model.layers.0.self_attn.q_proj.base_layer.weight"]
    assert not torch.equal(tensors["single_transformer.model.layers.0.self_attn.q_proj.weight"], wanted)
    back = open_model(save_official(model, tmp_path / "official"))
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    left, right = (one.predict(picture, "find it", answer_prefix="[SEG]", max_new_tokens=3) for one in (model, back))
    assert left.text == right.text and np.array_equal(left.masks, right.masks)
