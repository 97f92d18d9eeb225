"""The paper's mixture, on written sets in the published formats: every record of a pass is read, and a model trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from tiny_sail import tiny

from sail_lightning.cli.data_config import read_source
from sail_lightning.data.datamodule import SailDataModule
from sail_lightning.data.sources import Mixture
from sail_lightning.plugins.prompt_encoders import PromptInjection

RECIPES = Path(__file__).parents[2] / "configs" / "recipe"


def mixture(*configs: str) -> Mixture:
    found = read_source(list(configs), "train", [], [])
    assert isinstance(found, Mixture)
    return found


@pytest.fixture
def cotrain(data_root: Path) -> Iterator[Mixture]:
    yield mixture("data/cotrain")


def test_a_pass_holds_every_set_as_often_as_the_official_recipe_says(cotrain: Mixture) -> None:
    assert len(cotrain.children) == 20
    alone = sum(source.length or 0 for source in cotrain.children.values())
    repeated = {"grandf": 9, "pix2cap_prompts": 9, "osprey_detail": 9, "refcoco": 3, "refcoco_plus": 3, "refcocog": 3}
    repeated |= {"grefcoco": 2, "pix2cap": 1}
    assert cotrain.length == alone + sum(more * (cotrain.children[name].length or 0) for name, more in repeated.items())


def test_every_record_of_a_pass_is_encoded(cotrain: Mixture) -> None:
    encoder = tiny(prompt_encoder=PromptInjection(num_prompts=15), max_side=64, max_tokens=4096).encoder
    tasks: Counter[str] = Counter()
    assert cotrain.length is not None
    for number in range(cotrain.length):
        sample = cotrain.sample_record(number, np.random.default_rng(number))
        encoded = encoder.encode(sample)
        assert len(encoded.seg_rows) == len(encoded.masks)
        tasks.update(turn.task for turn in sample.turns)
    assert tasks.keys() == {"refer", "caption", "describe", "choice", "chat"} or tasks.keys() >= {
        "refer",
        "caption",
        "describe",
        "chat",
    }


def test_a_model_trains_on_it_and_nothing_is_skipped(cotrain: Mixture) -> None:
    data = SailDataModule(cotrain, token_budget=600, num_workers=0, mask_sample_weight=0.1, max_error_rate=0.0)
    trainer = L.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(tiny(prompt_encoder=PromptInjection(num_prompts=15), max_side=64, max_tokens=4096), datamodule=data)
    assert data.faults == 0 and trainer.global_step == 6


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_a_small_file_and_names_sets_that_are_there(path: Path, data_root: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 15
    command = text.splitlines()[0]
    configs = [word for word in command.split() if "/" in word and not word.startswith("#")]
    source = read_source([name for name in configs if not name.startswith("model/")], "train", [], [])
    sources = source.children or {"": source}
    assert all(part.length for part in sources.values())
