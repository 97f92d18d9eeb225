"""Official mmengine configs, and what `configs import` makes of them."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config

from sail_lightning.cli.configs import config_root
from sail_lightning.conversion.mmengine_config import Imported, convert, read
from sail_lightning.conversion.mmengine_config.ledger import Fate
from sail_lightning.errors import SailError, SailUsageError

OFFICIAL = Path(__file__).parents[2] / "examples" / "official_config.py"
EVE = """
model["type"] = SimpleEVE
model["patch_size"] = 32
model["single_transformer"]["pretrained_model_name_or_path"] = "pretrained/EVE-7B-HD-v2.0"
for data in train_dataset["datasets"]:
    data["patch_size"] = 32
    data["image_preprocessor"] = dict(pretrained_model_name_or_path="openai/eve-anyratio-res1600-patch16")
"""
Import = Callable[..., Imported]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Imports the full config with lines at its end, or another text."""

    def make(*lines: str, text: str | None = None) -> Imported:
        path = tmp_path / "config.py"
        path.write_text("\n".join([OFFICIAL.read_text(encoding="utf-8") if text is None else text, *lines]))
        return convert(read(path))

    return make


def packaged(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((config_root() / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def fates(found: Imported, key: str) -> set[Fate]:
    """What became of keys that end like this."""
    return {entry.fate for entry in found.entries if entry.key.endswith(key)}


def note(found: Imported, key: str) -> str:
    (text,) = {entry.note for entry in found.entries if entry.key.endswith(key)}
    return text


# -- the full recipe --------------------------------------------------------------------------------------------------


def test_the_full_mixture_is_the_packaged_one(imported: Import) -> None:
    mixture = imported().config["data"]["train"]["init_args"]
    ours = packaged("data/cotrain")["data"]["train"]["init_args"]
    renamed = {"osprey_detail_description": "osprey_detail"}
    assert {renamed.get(name, name): count for name, count in mixture["repeats"].items()} == ours["repeats"]
    classes = [Counter(source["class_path"] for source in one["sources"].values()) for one in (mixture, ours)]
    assert classes[0] == classes[1]


def test_its_training_is_the_packaged_one(imported: Import) -> None:
    found, recipe = imported().config, packaged("recipe/official")
    assert found["model"]["optimizer"] == recipe["model"]["optimizer"]
    assert found["model"]["schedule"]["init_args"] == {"warmup_ratio": 0.05, "final_ratio": 0.0}
    assert found["data"]["mask_sample_weight"] == recipe["data"]["mask_sample_weight"]
    wanted = {key: value for key, value in recipe["trainer"].items() if key != "max_steps"}
    assert {key: found["trainer"][key] for key in wanted} == wanted


def test_its_teachers_are_the_packaged_ones(imported: Import) -> None:
    found, recipe = imported().config["model"], packaged("recipe/distill_both")["model"]
    assert found["mask_channels"] == recipe["mask_channels"]
    found["teachers"]["mask2former"]["init_args"]["folder"] = "teachers/mask2former-swin-large-coco-panoptic"
    assert found["teachers"] == recipe["teachers"]


def test_paths_of_a_source_are_the_official_ones(imported: Import) -> None:
    sources = imported().config["data"]["train"]["init_args"]["sources"]
    assert sources["refcoco_plus"]["init_args"] == {
        "name": "refcoco+",
        "split_by": "unc",
        "annotations": "data/ref_seg/refcoco+",
        "images": "data/ref_seg/refcoco+/coco2014/train2014",
        "objects": 5,
    }
    assert sources["grandf"]["init_args"]["annotations"].endswith("annotations/GranDf_HA_GCG_train.json")


def test_the_number_of_steps_is_left_to_the_user_and_said(imported: Import) -> None:
    found = imported()
    assert "max_steps" not in found.config["trainer"]
    assert fates(found, "train_cfg.max_epochs") == {Fate.DROPPED}
    assert any(line.startswith("Set trainer.max_steps") for line in found.notes)
    assert found.command("mine.yaml") == "sail-lightning fit -c mine.yaml --trainer.max_steps=STEPS"


def test_a_batch_size_becomes_a_token_budget_which_is_not_the_same(imported: Import) -> None:
    found = imported("train_dataloader['batch_size'] = 2")
    assert (found.config["model"]["max_tokens"], found.config["data"]["token_budget"]) == (8192, 16384)
    assert any("batch_size=2 became data.token_budget=16384, which is not the same" in line for line in found.notes)


# -- the report -------------------------------------------------------------------------------------------------------


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of all that is not a dictionary, or a list of dictionaries, with content."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(part, dict) for part in value):
        for position, part in enumerate(value):
            yield from leaves(part, f"{path}[{position}]")
    else:
        yield path


def reported(text: str) -> set[str]:
    """The keys that a report's lines are about, positions and ranges of a list written out."""
    keys: set[str] = set()
    for line in text.splitlines():
        if not line.startswith("  ") or line.startswith("  - "):
            continue
        if " = " not in line:  # names that share an explanation
            keys |= set(line.strip().partition(": ")[0].split(", "))
            continue
        key = line.strip().partition(" = ")[0]
        positions = re.search(r"\[([\d, -]+)\]", key)
        for part in positions[1].split(", ") if positions else [""]:
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1) if part else [None]:
                keys.add(key if number is None else key.replace(f"[{positions[1]}]", f"[{number}]"))  # type: ignore[index]
    return keys


def test_every_key_of_the_official_config_is_in_the_report(imported: Import) -> None:
    found = imported("model['new_idea'] = dict(strength=3)", "train_dataset['datasets'][4]['shuffled'] = True")
    keys = reported(found.report())
    wanted = set(leaves(Config.fromfile(found.source, import_custom_modules=False).to_dict()))
    assert len(wanted) > 700
    missing = [
        key for key in wanted if not any(key == known or key.startswith((f"{known}.", f"{known}[")) for known in keys)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("model['new_idea'] = dict(strength=3)", "model.new_idea.strength"),
        ("optim_wrapper['optimizer']['fused'] = True", "optim_wrapper.optimizer.fused"),
        ("train_dataset['datasets'][24]['shuffled'] = True", "datasets[24].shuffled"),
        ("default_hooks['profiler'] = dict(type='Profiler')", "default_hooks.profiler.type"),
        ("strategy = dict(type='DeepSpeedStrategy')", "strategy.type"),
    ],
)
def test_a_key_that_is_not_known_is_named_as_not_carried_over(line: str, key: str, imported: Import) -> None:
    found = imported(line)
    assert fates(found, key) == {Fate.DROPPED}
    assert note(found, key) == "this importer does not know the key"


def test_a_value_that_is_impossible_here_is_not_called_carried(imported: Import) -> None:
    found = imported("model['loss_dice']['naive_dice'] = False")
    assert fates(found, "loss_dice.naive_dice") == {Fate.DROPPED}
    assert "always True" in note(found, "loss_dice.naive_dice")


def test_a_checkpoint_that_is_set_but_given_to_nothing_is_said_to_have_no_effect(imported: Import) -> None:
    found = imported()
    (entry,) = [entry for entry in found.entries if entry.key == "pretrained_pth"]
    assert entry.value == "work_dirs/earlier/iter_100.pth" and "had no effect" in entry.note
    assert "weights" not in found.config["model"]


def test_a_name_is_said_to_be_part_of_what_it_is_used_in(imported: Import) -> None:
    found = imported()
    assert {entry.note for entry in found.entries if entry.key == "lr"} == {"part of optim_wrapper, reported there"}


# -- variants ---------------------------------------------------------------------------------------------------------


def test_lora_has_pefts_defaults_where_the_config_names_none(imported: Import) -> None:
    adapter = "model['single_transformer_lora'] = dict(type=LoraConfig, r=128, lora_dropout=0.05)"
    found = imported("from peft import LoraConfig", adapter).config["model"]
    assert found["adapter"] == {"class_path": "LoRA", "init_args": {"r": 128, "alpha": 8, "dropout": 0.05}}
    assert found["backbone"]["init_args"]["activation_checkpointing"] is True


def test_a_checkpoint_to_start_from_is_a_folder_that_convert_makes(imported: Import) -> None:
    found = imported("model['pretrained_pth'] = 'work_dirs/x/iter_7.pth'")
    assert found.config["model"]["weights"] == "work_dirs/x/iter_7"
    command = "sail-lightning convert work_dirs/x/iter_7.pth work_dirs/x/iter_7 --base pretrained/decoder-0.5B/"
    assert any(command in line for line in found.notes)


def test_a_checkpoint_that_load_from_replaces_is_not_called_carried(imported: Import) -> None:
    found = imported("model['pretrained_pth'] = 'a/iter_1.pth'", "load_from = 'b/iter_2.pth'")
    assert found.config["model"]["weights"] == "b/iter_2"
    assert (fates(found, "model.pretrained_pth"), fates(found, "load_from")) == ({Fate.DROPPED}, {Fate.CARRIED})
    assert note(found, "model.pretrained_pth") == "load_from is loaded after it"
    assert [line for line in found.notes if "sail-lightning convert a/" in line] == []


def test_teachers_of_a_run_that_does_not_distil_are_not_carried_over(imported: Import) -> None:
    found = imported("model['use_distill'] = False")
    assert "teachers" not in found.config["model"]
    assert fates(found, "model.mask2former_model") == {Fate.DROPPED}


def test_eve_has_its_own_stride_image_size_and_prompts(imported: Import) -> None:
    start = "from projects.ST.models.sa2va_ST_eve import Sa2VASTEVEModel as SimpleEVE"
    found = imported(start, EVE, "model['seg_pred_down_ratio'] = 16")
    assert found.config["model"]["backbone"]["class_path"] == "EVEv2"
    assert found.config["model"]["upsampler"]["init_args"]["stride"] == 8
    assert found.config["model"]["max_side"] == 1600
    assert found.config["model"]["prompt_encoder"]["init_args"] == {"num_prompts": 15, "projection": False}
    assert any("random weights" in line for line in found.notes)


def test_without_prompts_the_sets_about_prompts_are_left_out_and_named(imported: Import) -> None:
    found = imported("model['visual_prompt_nums'] = 0")
    assert found.config["model"]["prompt_encoder"]["class_path"] == "NoPrompts"
    sources = found.config["data"]["train"]["init_args"]["sources"]
    assert not any("prompts" in name or "osprey" in name for name in sources) and "refcoco" in sources
    assert fates(found, "datasets[25]") == {Fate.DROPPED}


def test_an_augmented_set_keeps_its_shapes(imported: Import) -> None:
    more = "train_dataset['datasets'].append(dict(pix2cap_prompts, type=Shaped, prompt_ratios=dict(mask=0.2, box=0.8)))"
    found = imported("from projects.ST.dataset.x import PixelCapAgumentedVisualPromptDataset as Shaped", more)
    mixture = found.config["data"]["train"]["init_args"]
    assert mixture["sources"]["pix2cap_prompts_shaped"]["init_args"]["shapes"] == {"mask": 0.2, "box": 0.8}
    assert mixture["repeats"]["pix2cap_prompts_shaped"] == 10


def test_a_set_that_is_not_ours_is_named_and_the_rest_kept(imported: Import) -> None:
    found = imported("train_dataset['datasets'][24] = dict(type='my.VideoDataset', folder='x')")
    assert "llava" not in found.config["data"]["train"]["init_args"]["sources"]
    assert "there is no source for VideoDataset" in note(found, "datasets[24]")


def test_two_sets_of_one_class_have_names_of_their_own(imported: Import) -> None:
    found = imported("train_dataset['datasets'].append(llava_again)")
    sources = found.config["data"]["train"]["init_args"]["sources"]
    assert sources["llava_2"]["init_args"]["annotations"] == "data/llava_data/more.json"


def test_iterations_become_steps_of_the_optimiser(imported: Import) -> None:
    scheduler = (
        "param_scheduler = [dict(type=LinearLR, by_epoch=False, begin=0, end=100),"
        " dict(type=CosineAnnealingLR, by_epoch=False, eta_min=4e-6, begin=100, end=2001)]"
    )
    found = imported("train_cfg = dict(by_epoch=False, max_iters=2001)", scheduler).config
    assert found["trainer"]["max_steps"] == 251
    schedule = found["model"]["schedule"]["init_args"]
    assert schedule["warmup_ratio"] == pytest.approx(100 / 2001, abs=1e-6)
    assert schedule["final_ratio"] == pytest.approx(0.1)


def test_an_optimiser_of_another_library_is_named(imported: Import) -> None:
    found = imported("optim_wrapper['optimizer'] = dict(type='bitsandbytes.PagedAdamW32bit', lr=1e-4)")
    assert "optimizer" not in found.config["model"]
    assert "PagedAdamW32bit is none of AdamW" in note(found, "optim_wrapper.optimizer")


# -- reading ----------------------------------------------------------------------------------------------------------


def test_packages_that_a_config_imports_need_not_be_installed(imported: Import) -> None:
    assert [name for name in ("xtuner", "mmdet", "projects") if importlib.util.find_spec(name)] == []
    assert imported().config["model"]["backbone"]["class_path"] == "SailQwen"


def test_modules_of_the_standard_library_are_imported(imported: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE", "some/folder")
    found = imported(
        "import os",
        "from copy import deepcopy",
        "model['tokenizer'] = deepcopy(tokenizer)",
        "model['tokenizer']['pretrained_model_name_or_path'] = os.path.join(os.environ['BASE'], 'x')",
    )
    assert found.config["model"]["tokenizer"] == "some/folder/x"


def test_a_config_whose_types_are_texts_and_which_has_a_base_is_read(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(
        "model = dict(type='Sa2VASTModel', seg_hidden_states=64)\nrandomness = dict(seed=3)\n"
    )
    (tmp_path / "child.py").write_text("_base_ = ['base.py']\nmodel = dict(seg_hidden_states=32)\n")
    found = convert(read(tmp_path / "child.py"))
    assert found.config["model"]["mask_channels"] == 32 and found.config["seed_everything"] == 3


def test_a_config_that_inherits_with_read_base_is_read(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(
        "from x.y import Sa2VASTModel\nmodel = dict(type=Sa2VASTModel, seg_hidden_states=64)\n"
    )
    (tmp_path / "child.py").write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"
        "model['seg_hidden_states'] = 32\n"
    )
    assert convert(read(tmp_path / "child.py")).config["model"]["mask_channels"] == 32


def test_custom_imports_are_not_imported(imported: Import) -> None:
    text = "model = dict(type='Sa2VASTModel')\ncustom_imports = dict(imports=['no_such_module'])\n"
    assert fates(imported(text=text), "custom_imports") == {Fate.DROPPED}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = dict(", "line 1: SyntaxError"),
        ("from x import Y\nlr = 1\nmodel = dict(lr=lr * rate)", "line 3: NameError: name 'rate' is not defined"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye"),
        ("from x import size\nmodel = dict(size=size())", "line 2: RuntimeError: it calls something that it imports"),
        ("lr = 1\n", "the type of its model is nothing"),
        (
            "model = dict(type='projects.VideoLLaVASAMModel')",
            "the type of its model is VideoLLaVASAMModel; only Sa2VAST",
        ),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_in_a_sentence(text: str, words: str, imported: Import) -> None:
    with pytest.raises(SailError, match="config.py") as refused:
        imported(text=text)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_other_files_are_refused_before_anything_is_executed(tmp_path: Path) -> None:
    with pytest.raises(SailUsageError, match=r"give a \.py file"):
        read(tmp_path / "config.yaml")
    with pytest.raises(SailError, match="there is no config"):
        read(tmp_path / "missing.py")
