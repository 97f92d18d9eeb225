"""The generated model card, and the way to the Hugging Face Hub."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from inference_harness import tiny_model
from safetensors.torch import load_file

from sail_lightning import PixelSAIL
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import NoPrompts
from sail_lightning.plugins.upsamplers import IdentityUpsampler
from sail_lightning.pretrained import hub
from sail_lightning.pretrained.card import part_of


def card_of(model: PixelSAIL, folder: Path, **saving: Any) -> str:
    return (model.save_pretrained(folder, **saving) / "README.md").read_text(encoding="utf-8")


def section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n\n")[2].partition("\n\n## ")[0]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


# -- the card ---------------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_hub_asks_for(tiny: PixelSAIL, tmp_path: Path) -> None:
    front = yaml.safe_load(card_of(tiny, tmp_path / "m", licence="CC BY-NC 4.0").split("---\n")[1])
    assert front["license"] == "cc-by-nc-4.0"
    assert front["library_name"] == "sail-lightning" and front["pipeline_tag"] == "image-text-to-text"
    assert "image-segmentation" in front["tags"]
    assert yaml.safe_load(card_of(tiny, tmp_path / "m").split("---\n")[1])["license"] == "unknown"


def test_a_card_counts_what_is_stored_by_part(tiny: PixelSAIL, tmp_path: Path) -> None:
    card = card_of(tiny, tmp_path / "m", dtype=torch.float16)
    stored = load_file(tmp_path / "m/model.safetensors")
    counts = {name: int(count.replace(",", "")) for name, count in cells(section(card, "Parameters"))[2:]}
    total = counts.pop("total")
    assert total == sum(counts.values()) == sum(value.numel() for value in stored.values())
    assert counts["backbone.model.embed_tokens"] == stored["backbone.model.embed_tokens.weight"].numel()
    assert counts["mask_head"] == sum(value.numel() for key, value in stored.items() if key.startswith("mask_head."))
    assert counts.keys() >= {"backbone.model.layers", "backbone.vis_embed", "upsampler", "prompt_encoder"}
    assert "Stored as float16." in card


def test_tied_weights_count_once(tmp_path: Path) -> None:
    backbone = SailQwen(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
    model = PixelSAIL(backbone, IdentityUpsampler(), NoPrompts(4))
    rows = dict(cells(section(card_of(model, tmp_path / "m"), "Parameters")))
    assert "backbone.lm_head" not in rows and rows["backbone.model.embed_tokens"] == f"{len(model.tokens) * 32:,}"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("backbone.model.layers.11.self_attn.q_proj.weight", "backbone.model.layers"),
        ("backbone.encoder.blocks.0.weight", "backbone.encoder.blocks"),
        ("backbone.vis_embed.weight", "backbone.vis_embed"),
        ("backbone.class_vector", "backbone"),
        ("upsampler.blocks.0.up.weight", "upsampler"),
        ("mask_head.seg_projector.0.bias", "mask_head"),
    ],
)
def test_every_tensor_belongs_to_a_part(name: str, part: str) -> None:
    assert part_of(name) == part


def test_a_card_shows_metrics_with_their_protocol(tiny: PixelSAIL, tmp_path: Path) -> None:
    metrics: dict[str, dict[str, float | str]] = {
        "RefCOCO val": {"ciou": 0.7123, "giou": 0.5},
        "RefCOCO testA": {"protocol": "official", "ciou": 1, "n_acc": math.nan},
    }
    text = section(card_of(tiny, tmp_path / "m", metrics=metrics), "Metrics")
    assert cells(text) == [
        ["", "ciou", "giou", "n_acc"],
        ["---", "---:", "---:", "---:"],
        ["RefCOCO val (standard protocol)", "0.7123", "0.5000", "-"],
        ["RefCOCO testA (official protocol)", "1.0000", "-", "-"],
    ]
    assert "Protocol `standard`: the definitions of" in text and "Protocol `official`: the official code's" in text


@pytest.mark.parametrize("name", ["standard", "default"])
def test_the_protocol_of_a_card_is_called_as_the_judges_is(tiny: PixelSAIL, tmp_path: Path, name: str) -> None:
    text = section(card_of(tiny, tmp_path / "m", metrics={"val": {"protocol": name, "ciou": 0.5}}), "Metrics")
    assert "val (standard protocol)" in text and "Protocol `standard`: the definitions of" in text
    assert "default" not in text


def test_a_card_names_data_and_licences(tiny: PixelSAIL, tmp_path: Path) -> None:
    card = card_of(tiny, tmp_path / "m", data={"RefCOCO": "CC BY 4.0", "mine": ""}, licence="Apache-2.0")
    assert section(card, "Data") == "- RefCOCO: CC BY 4.0\n- mine: licence not stated"
    assert "- Weights: Apache-2.0." in section(card, "Licences")
    card = card_of(tiny, tmp_path / "m", data=["RefCOCO"])
    assert section(card, "Data") == "- RefCOCO: licence not stated" and "- Weights: not stated." in card


def test_what_is_not_known_is_said_to_be_unknown(tiny: PixelSAIL, tmp_path: Path) -> None:
    card = card_of(tiny, tmp_path / "m")
    assert "training data are not stated" in section(card, "Data")
    assert "None were given" in section(card, "Metrics")


def test_a_card_shows_how_to_load_the_model_in_three_lines_that_work(
    tiny: PixelSAIL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    code = section(card_of(tiny, tmp_path / "path/to/this/folder"), "Load it").partition("```python\n")[2][:-4]
    assert len(code.splitlines()) == 3
    Image.new("RGB", (24, 16)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # our own words
    assert names["answer"].masks.shape[1:] == (16, 24)


def test_a_card_is_the_same_everywhere_and_says_how_far_the_model_goes(tmp_path: Path) -> None:
    model = tiny_model(max_side=96)
    card = card_of(model, tmp_path / "one")
    assert card == card_of(tiny_model(max_side=96), tmp_path / "two") and str(tmp_path) not in card
    limits = section(card, "Limits")
    assert "at most 96 pixels a side" in limits and "a vision token is 8 pixels" in limits
    assert "4 visual prompts" in limits and "8 tokens an answer" in limits
    settings = yaml.safe_load(section(card, "Settings").partition("```yaml\n")[2].rstrip().removesuffix("```"))
    assert settings["model"] == yaml.safe_load((tmp_path / "one/config.yaml").read_text())["model"]


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        ({"metrics": {"ciou": 0.7}}, "metrics are rows of numbers.*'ciou'"),
        ({"metrics": {"val": {"ciou": "high"}}}, "metrics are rows of numbers.*'val'"),
        ({"metrics": {"val": {"protocol": "official"}}}, "metrics are rows of numbers.*'val'"),
        ({"data": "RefCOCO"}, "data is a list of names.*'RefCOCO'"),
        ({"card": "# Mine", "licence": "MIT"}, "either a card, or metrics, data and licence"),
    ],
)
def test_what_no_card_can_be_made_of_is_a_fault_of_usage(
    saving: dict[str, Any], words: str, tiny: PixelSAIL, tmp_path: Path
) -> None:
    with pytest.raises(SailUsageError, match=words):
        tiny.save_pretrained(tmp_path / "m", **saving)
    assert list(tmp_path.iterdir()) == []


# -- the hub ----------------------------------------------------------------------------------------------------------


class StandIn:
    """What of HfApi is used, without a network."""

    calls: list[tuple[str, dict[str, Any]]] = []
    keep = Path()
    fault: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("init", {"token": token}))

    def create_repo(self, repo_id: str, **given: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **given}))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, folder_path: Path, **given: Any) -> None:
        if self.fault is not None:
            raise self.fault
        shutil.copytree(folder_path, self.keep)
        self.calls.append(("upload_folder", given))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[StandIn]:
    monkeypatch.setattr(hub, "HfApi", StandIn)
    monkeypatch.setattr(StandIn, "calls", [])
    monkeypatch.setattr(StandIn, "keep", tmp_path / "uploaded")
    return StandIn


def test_a_model_is_pushed_as_a_whole_folder_private_unless_asked(tiny: PixelSAIL, api: type[StandIn]) -> None:
    assert tiny.push_to_hub("me/model", licence="MIT", max_shard_size="50KB") == "https://hub.example/me/model"
    assert api.calls[0] == ("init", {"token": None})
    assert api.calls[1] == ("create_repo", {"repo_id": "me/model", "private": True, "exist_ok": True})
    name, given = api.calls[2]
    assert name == "upload_folder" and given["repo_id"] == "me/model"
    assert given["delete_patterns"] == "model*.safetensors*", "shards of an older model do not stay"
    again = PixelSAIL.from_pretrained(api.keep)
    assert torch.equal(again.model.backbone.lm_head.weight, tiny.model.backbone.lm_head.weight)
    assert "license: mit" in (api.keep / "README.md").read_text()


def test_what_is_asked_for_is_passed_on(tiny: PixelSAIL, api: type[StandIn]) -> None:
    tiny.push_to_hub("me/model", private=False, token="secret")
    assert api.calls[0][1] == {"token": "secret"} and api.calls[1][1]["private"] is False


def test_saving_never_pushes(tiny: PixelSAIL, api: type[StandIn], tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "m")
    assert api.calls == []


def test_a_fault_of_the_network_is_one_sentence(
    tiny: PixelSAIL, api: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    for fault in (ConnectionError("no route\nto host"), PermissionError("403: you may not"), ValueError()):
        monkeypatch.setattr(api, "fault", fault)
        with pytest.raises(SailError, match=r"cannot push to me/model: .*login \(hf auth login\)$") as caught:
            tiny.push_to_hub("me/model", token="secret")
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("repo_id", "words"), [("me/model", "HF_HUB_OFFLINE is set; unset it"), ("a/b/c", "check the name")]
)
def test_the_real_client_s_faults_are_sentences_too(
    repo_id: str, words: str, tiny: PixelSAIL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing leaves this machine: the client is offline, as in all tests."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    with pytest.raises(SailError, match=f"cannot push to {repo_id}: .*{words}") as caught:
        tiny.push_to_hub(repo_id, token="hf_none")
    assert "\n" not in str(caught.value)
