"""LoRA from the command line: set by options or YAML, kept by checkpoints, resumed, measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cli_harness import FIT, TINY, Command

from sail_lightning import PixelSAIL
from sail_lightning.pretrained.lora import adapted

LORA = ("--model.adapter=LoRA", "--model.adapter.r=2")
LAST = Path("checkpoints/last.ckpt")


def test_a_run_with_an_adapter_is_kept_resumed_and_measured(sail: Command) -> None:
    made = sail(*FIT, *LORA, "--name=lora")
    assert made.code == 0, made.err
    folder = Path("runs/lora/version_0")
    adapter = yaml.safe_load((folder / "config.yaml").read_text())["model"]["adapter"]
    assert adapter["class_path"].endswith(".LoRA") and adapter["init_args"]["r"] == 2
    model = PixelSAIL.load_from_checkpoint(folder / LAST, map_location="cpu")
    assert model.adapter is not None and model.adapter.r == 2 and list(adapted(model))
    rest = ("--data.token_budget=400", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    again = sail("fit", "-c", "data/laboratory", f"--ckpt_path={folder / LAST}", "--trainer.max_steps=3", *rest)
    assert again.code == 0, again.err
    tested = sail("test", f"--ckpt_path={folder / LAST}", "--data.test.samples=2", *rest[1:])
    assert tested.code == 0, tested.err


def test_yaml_and_options_are_merged(sail: Command) -> None:
    Path("lora.yaml").write_text("model:\n  adapter: {class_path: LoRA, init_args: {r: 3, targets: [q_proj]}}\n")
    shown = sail(*FIT, "-c", "lora.yaml", "--model.adapter.dropout=0.1", "--print_config")
    found = yaml.safe_load(shown.out)["model"]["adapter"]["init_args"]
    assert (found["r"], found["targets"], found["dropout"]) == (3, ["q_proj"], 0.1)
    shown = sail(*FIT, "-c", "lora.yaml", "--model.adapter=null", "--print_config")
    assert yaml.safe_load(shown.out)["model"]["adapter"] is None


def test_an_adapter_is_put_on_a_packaged_model(sail: Command) -> None:
    options = (*LORA, "--trainer.max_steps=1", *TINY[-3:])
    made = sail("fit", "-c", "data/laboratory", "--model.weights=sail-tiny", *options, "--name=tuned")
    assert made.code == 0, made.err
    model = PixelSAIL.load_from_checkpoint(Path("runs/tuned/version_0") / LAST, map_location="cpu")
    base = PixelSAIL.from_pretrained("sail-tiny").model.state_dict()
    frozen = {n.replace(".base_layer", ""): p for n, p in model.model.named_parameters() if not p.requires_grad}
    assert frozen and all((parameter == base[name]).all() for name, parameter in frozen.items())
    assert model.save_adapter("adapter").is_dir()
    again = PixelSAIL.from_pretrained("sail-tiny").load_adapter("adapter").model.state_dict()
    assert all((value == again[name]).all() for name, value in model.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.adapter=Lora",), ("model.adapter", "did you mean LoRA?")),
        (("--model.adapter=LoRA", "--model.adapter.rank=4"), ("LoRA has no argument 'rank'", "it takes r, alpha")),
        (("--model.adapter=LoRA", "--model.adapter.r=0"), ("model.adapter.r must be 1 or more",)),
        (("--model.adapter=LoRA", "--model.adapter.r=x"), ("model.adapter.r must be a whole number",)),
        (("--model.adapter=LoRA", "--model.adapter.targets=[qproj]"), ("no linear layer", "qproj", "q_proj")),
    ],
)
def test_a_wrong_adapter_is_one_sentence(options: tuple[str, ...], words: tuple[str, ...], sail: Command) -> None:
    assert sail(*FIT, *options).is_one_sentence(2, *words)
