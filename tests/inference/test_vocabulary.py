"""Weights of a folder in a model whose tokenizer orders its tokens differently: rows are matched by name."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference_harness import chatter, picture, script, tiny_model
from torch import Tensor, nn

from sail_lightning import Box, PixelSAIL
from sail_lightning.errors import SailError
from sail_lightning.interfaces import Backbone
from sail_lightning.plugins.backbones import EncoderBackbone, EVEv2, SailDecoder, SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.pretrained.embedding_remap import vocab_parameters

TEXT = "please segment the red circle."
EMBEDDING, HEAD = "backbone.model.embed_tokens.weight", "backbone.lm_head.weight"


@pytest.fixture(scope="module")
def saved(tiny: PixelSAIL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


def tokenizer(saved: Path, path: Path, tokens: list[str]) -> str:
    """The tokenizer of a folder with these tokens, in this order."""
    content = json.loads((saved / "tokenizer.json").read_text())
    special = {item["content"]: item for item in content["added_tokens"]}
    content["model"]["vocab"] = {token: row for row, token in enumerate(tokens)}
    content["added_tokens"] = [special[token] | {"id": row} for row, token in enumerate(tokens) if token in special]
    path.write_text(json.dumps(content))
    return str(path)


def order(model: PixelSAIL) -> list[str]:
    """Tokens by id."""
    table = model.tokens.tokenizer.get_vocab()
    return sorted(table, key=table.__getitem__)


def shuffled(model: PixelSAIL, seed: int = 0) -> list[str]:
    tokens = order(model)
    random.Random(seed).shuffle(tokens)
    return tokens


def rows(model: PixelSAIL, key: str) -> dict[str, Tensor]:
    table = model.model.state_dict()[key]
    return {token: table[row] for row, token in enumerate(order(model))}


def test_a_model_with_another_order_of_tokens_gives_the_same_answers(
    saved: Path, tiny: PixelSAIL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tokenizer(saved, tmp_path / "other.json", shuffled(tiny))
    with caplog.at_level(logging.INFO, "sail_lightning"):
        model = PixelSAIL.from_pretrained(saved, tokenizer=other)
    assert "rows are matched by name" in caplog.text and "WARNING" not in caplog.text
    assert order(model) != order(tiny) and model.tokens.seg != tiny.tokens.seg
    for key in (EMBEDDING, HEAD):
        mine, theirs = rows(model, key), rows(tiny, key)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[token], theirs[token]) for token in mine)
    with chatter(model), chatter(tiny):
        for seed in range(3):
            left, right = (one.predict(picture(seed), TEXT) for one in (model, tiny))
            assert left.text == right.text and np.array_equal(left.masks, right.masks)


def test_a_model_saved_in_the_other_order_can_be_brought_back(saved: Path, tiny: PixelSAIL, tmp_path: Path) -> None:
    other = tokenizer(saved, tmp_path / "other.json", shuffled(tiny))
    folder = PixelSAIL.from_pretrained(saved, tokenizer=other).save_pretrained(tmp_path / "m", max_shard_size="30KB")
    again = PixelSAIL.from_pretrained(folder, tokenizer=str(saved / "tokenizer.json"))
    ours, theirs = again.model.state_dict(), tiny.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 2}
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "SailQwen": lambda: SailQwen(**SIZES),
    "SailDecoder": lambda: SailDecoder(
        config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
        }
    ),
    "EVEv2": lambda: EVEv2(**SIZES, mm_hidden_size=12),
    "EncoderBackbone": lambda: EncoderBackbone("test_vit", **SIZES),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_comes_back_from_shards_and_in_another_order_with_the_same_masks(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = PixelSAIL(BACKBONES[name](), DeconvUpsampler(), PromptInjection(num_prompts=4), max_side=64).eval()
    model.configure_model()
    for part, weight in model.model.named_parameters():  # masks that are neither full nor empty
        if part.startswith(("upsampler", "mask_head")):
            nn.init.normal_(weight, std=0.0 if part.endswith("bias") else 1.0)
    saved = model.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    other = tokenizer(saved, tmp_path / "other.json", shuffled(model))
    again, moved = PixelSAIL.from_pretrained(saved), PixelSAIL.from_pretrained(saved, tokenizer=other)
    answers = []
    for one in (model, again, moved):
        with script(one, one.tokens.seg, one.tokens.seg):
            answers.append(one.predict(picture(2, 48, 64), "segment <Prompt1> .", [Box(4, 4, 30, 30, id=1)]))
    assert answers[0].masks.any() and not answers[0].masks.all()
    for answer in answers[1:]:
        assert answer.text == answers[0].text and np.array_equal(answer.masks, answers[0].masks)
    assert type(again.model.backbone).__name__ == name and again.config == moved.config | {
        "tokenizer": again.config["tokenizer"]
    }


def test_training_starts_from_such_a_folder_too(saved: Path, tiny: PixelSAIL, tmp_path: Path) -> None:
    other = tokenizer(saved, tmp_path / "other.json", shuffled(tiny, 1))
    backbone = SailQwen(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_key_value_heads=2)
    parts = (backbone, DeconvUpsampler(), PromptInjection(num_prompts=4))
    model = PixelSAIL(*parts, tokenizer=other, mask_channels=16, weights=str(saved))
    model.configure_model()
    assert all(torch.equal(row, rows(tiny, HEAD)[token]) for token, row in rows(model, HEAD).items())


def test_only_what_speaks_the_vocabulary_is_moved(tmp_path: Path) -> None:
    """The MLP happens to be as wide as the vocabulary is long, and its matrices look like tables."""
    words = len(tiny_model().tokens)
    backbone = SailQwen(hidden_size=32, intermediate_size=words, num_layers=1, num_heads=2, num_key_value_heads=2)
    model = PixelSAIL(backbone, DeconvUpsampler(), PromptInjection(num_prompts=4))
    saved = model.save_pretrained(tmp_path / "m")
    other = tokenizer(saved, tmp_path / "other.json", shuffled(model))
    again = PixelSAIL.from_pretrained(saved, tokenizer=other)
    ours, theirs = again.model.state_dict(), model.model.state_dict()
    assert ours["backbone.model.layers.0.mlp.up_proj.weight"].shape == ours[HEAD].shape
    assert {key for key in ours if not torch.equal(ours[key], theirs[key])} == {EMBEDDING, HEAD}


def test_tied_tables_are_moved_once_and_stay_tied(tmp_path: Path) -> None:
    backbone = SailQwen(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
    model = PixelSAIL(backbone, DeconvUpsampler(), PromptInjection(num_prompts=4))
    saved = model.save_pretrained(tmp_path / "m")
    again = PixelSAIL.from_pretrained(saved, tokenizer=tokenizer(saved, tmp_path / "o.json", shuffled(model)))
    assert again.model.backbone.lm_head.weight is again.model.backbone.model.embed_tokens.weight
    assert all(torch.equal(row, rows(model, HEAD)[token]) for token, row in rows(again, HEAD).items())


def test_special_tokens_that_a_folder_lacks_start_at_the_mean_and_are_named(
    saved: Path, tiny: PixelSAIL, caplog: pytest.LogCaptureFixture
) -> None:
    model = PixelSAIL.from_pretrained(saved, prompt_encoder=PromptInjection(num_prompts=17))
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"{saved} lacks tokens, which start at the mean of its rows: <Prompt15> <Prompt16>"
    ]
    for key in (EMBEDDING, HEAD):
        mine, theirs = rows(model, key), rows(tiny, key)
        mean = tiny.model.state_dict()[key].mean(0)
        for token, row in mine.items():
            assert torch.equal(row, theirs[token]) if token in theirs else torch.allclose(row, mean, atol=1e-6), token
        assert mine.keys() - theirs.keys() == {"<Prompt15>", "<Prompt16>"}


def test_tokens_that_the_model_lacks_are_named(
    tiny: PixelSAIL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    larger = tiny_model(PromptInjection(num_prompts=17))
    saved = larger.save_pretrained(tmp_path / "m")
    few = PromptInjection(num_prompts=4)
    model = PixelSAIL.from_pretrained(saved, tokenizer="laboratory", prompt_encoder=few)
    assert caplog.messages == [f"tokenizer laboratory lacks tokens of {saved}: <Prompt15> <Prompt16>"]
    assert order(model) == order(tiny)
    assert all(torch.equal(row, rows(larger, HEAD)[token]) for token, row in rows(model, HEAD).items())


@pytest.mark.parametrize(
    ("words", "named"), [(["umbrella"], "'umbrella' of"), (["x", "y", "z"], "'x' and 2 other tokens")]
)
def test_a_word_that_a_folder_lacks_is_refused(
    words: list[str], named: str, saved: Path, tiny: PixelSAIL, tmp_path: Path
) -> None:
    other = tokenizer(saved, tmp_path / "other.json", [*order(tiny), *words])
    with pytest.raises(SailError, match=f"no weights for {named}.* tokenizer {other}; use the folder's tokenizer"):
        PixelSAIL.from_pretrained(saved, tokenizer=other)


def test_a_table_that_is_shorter_than_the_tokenizer_of_its_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    from shutil import copytree

    folder = Path(copytree(saved, tmp_path / "copy"))
    model = PixelSAIL.from_pretrained(saved)
    (tmp_path / "longer").mkdir()
    content = Path(tokenizer(saved, tmp_path / "longer/t.json", ["new", *order(model)])).read_text()
    (folder / "tokenizer.json").write_text(content)
    rows = len(order(model))
    with pytest.raises(SailError, match=f"{EMBEDDING} {rows} x 32 instead of {rows + 1} x 32"):
        PixelSAIL.from_pretrained(folder, tokenizer=str(saved / "tokenizer.json"))


class Unusual(SailQwen):
    """Its head has a bias, and its embedding is a bare table, in half precision."""

    def build(self, dims: Any) -> Any:
        built = super().build(dims)
        self.table = nn.Parameter(torch.randn(dims.vocab_size, built.hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(dims.vocab_size))
        return built

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.addmm(self.bias, hidden, self.lm_head.weight.T)


def test_vocabulary_tables_are_found_by_what_they_do() -> None:
    backbone = Unusual(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=2)
    model = PixelSAIL(backbone, DeconvUpsampler(), PromptInjection(num_prompts=4)).bfloat16()
    model.configure_model()
    model.bfloat16()
    found = vocab_parameters(backbone, 32, len(model.tokens))
    assert {id(p) for p in found} == {id(backbone.table), id(backbone.bias), id(backbone.lm_head.weight)}
