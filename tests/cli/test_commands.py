"""Help, versions and the commands of our own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli_harness import Command
from PIL import Image

from sail_lightning import __version__, registry
from sail_lightning.cli import command, main
from sail_lightning.cli.configs import config_names, config_root

command.load_packaged()
NAMES = [name for name in command.COMMANDS if command.COMMANDS[name].function.__module__.startswith("sail_lightning.")]


@pytest.mark.parametrize(
    "args", [[], ["--help"], ["data"], ["configs"], *([*name.split(), "--help"] for name in NAMES)]
)
def test_help_fits_one_screen(args: list[str], sail: Command) -> None:
    shown = sail(*args)
    lines = shown.out.splitlines()
    assert shown.code == 0 and lines[0].startswith(f"usage: sail-lightning {' '.join(args[:-1])}".rstrip())
    assert len(lines) <= 40 and max(map(len, lines)) <= 120


def test_full_help_lists_every_option(sail: Command) -> None:
    shown = sail("fit", "--full_help")
    assert shown.code == 0 and "--trainer.max_steps" in shown.out and "--model.mask_channels" in shown.out


def test_general_help_names_every_command(sail: Command) -> None:
    words = re.split(r"[\s|]+", sail("--help").out)
    assert [name for name in NAMES if not set(name.split()) <= set(words)] == []


def test_help_and_version_import_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from sail_lightning.cli import main; "
        "first = [main(a) for a in ([], ['--version'], ['fit', '--help'])]; slow = 'jsonargparse' in sys.modules; "
        "more = [main(a) for a in (['plugins', '--help'], ['configs', 'list'], ['data', 'check', '--help'])]; "
        "assert [*first, *more] == [0] * 6; "
        "print(slow, sorted({'torch', 'lightning', 'mmengine'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"sail-lightning {__version__}" in done.stdout
    assert done.stdout.splitlines()[-1] == "False []"


def test_module_runs_as_the_command_does(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sail_lightning", "fitt"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no command fitt; did you mean fit?")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data", "chekc"], ["no command data chekc; did you mean data check?"]),
        (["data", "zzz"], ["no command data zzz; there are data check, data convert"]),
        (["--fit"], ["a command must come first, before --fit: "]),
        (["data", "--count=3"], ["data needs a command, before --count=3: data check"]),
    ],
    ids=" ".join,
)
def test_an_unknown_command_is_one_sentence(args: list[str], words: list[str], sail: Command) -> None:
    assert sail(*args).is_one_sentence(2, *words)


def test_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def stopped() -> None:
        try:
            interrupted()
        except KeyboardInterrupt:
            sys.exit(1)  # what Lightning's Trainer does

    for function in (interrupted, stopped):
        monkeypatch.setitem(command.COMMANDS, "configs list", command.Command("configs list", function, "data"))
        assert main(["configs", "list"]) == 130


def test_unknown_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(command.COMMANDS, "configs list", command.Command("configs list", broken, "data"))
    with pytest.raises(ZeroDivisionError):
        main(["configs", "list"])


# -- configs ----------------------------------------------------------------------------------------------------------


def test_configs_lists_all_with_their_purpose(sail: Command) -> None:
    lines = sail("configs", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split()) > 2 for line in lines)


def test_configs_shows_the_file(sail: Command) -> None:
    assert sail("configs", "show", "quickstart").out == (config_root() / "quickstart.yaml").read_text()


def test_configs_copies_and_never_overwrites_unasked(sail: Command, workdir: Path) -> None:
    assert sail("configs", "copy", "model/sail_tiny").code == 0
    target = workdir / "sail_tiny.yaml"
    target.write_text("mine")
    assert sail("configs", "copy", "model/sail_tiny").is_one_sentence(2, "sail_tiny.yaml exists", "--force")
    assert target.read_text() == "mine"
    assert sail("configs", "copy", "model/sail_tiny", ".", "--force").code == 0
    assert yaml.safe_load(target.read_text())["model"]["mask_channels"] == 64


def test_configs_suggests_the_nearest_name(sail: Command) -> None:
    assert sail("configs", "show", "quikstart").is_one_sentence(2, "quikstart", "did you mean quickstart?")


# -- plugins ----------------------------------------------------------------------------------------------------------


def test_plugins_lists_all_swap_points_and_their_classes_on_one_screen(sail: Command) -> None:
    out = sail("plugins").out
    for point in registry.swap_points():
        assert re.search(rf"^{point.name} +{point.where}  ", out, re.MULTILINE)
        assert [name for name in point.registry.module_dict if not re.search(rf"\b{name}\b", out)] == []
    assert len(out.splitlines()) <= 50 and max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "listed", "absent"),
    [
        ("Upsampler", "DeconvUpsampler", "SailQwen"),
        ("upsampler", "DeconvUpsampler", "SailQwen"),
        ("upsamplers", "DeconvUpsampler", "SailQwen"),
        ("prompt_encoders", "NoPrompts", "SailQwen"),
        ("sockets", "SDPAAttention", "MaskLoss"),
        ("losses", "CosineDistillation", "SailQwen"),
        ("sources", "RefCOCO", "SailQwen"),
        ("optimizers", "MuonAdamW", "WarmupCosine"),
        ("optimisers", "AdamW", "WarmupCosine"),
        ("schedules", "WarmupCosine", "MuonAdamW"),
        ("callbacks", "EMA", "MuonAdamW"),
        ("adapters", "LoRA", "MuonAdamW"),
    ],
)
def test_plugins_of_one_kind(sail: Command, name: str, listed: str, absent: str) -> None:
    out = sail("plugins", name).out
    assert re.search(rf"^  {listed} ", out, re.MULTILINE) and not re.search(rf"^  {absent} ", out, re.MULTILINE)


def test_own_optimizers_are_listed_before_those_of_torch(sail: Command) -> None:
    out = sail("plugins", "optimizers").out
    assert out.index("  MuonAdamW") < out.index("  AdamW ") and "  Muon  " in out


def test_only_schedules_that_take_the_number_of_steps_are_listed(sail: Command) -> None:
    out = sail("plugins", "schedules").out
    assert "  CosineAnnealingLR " in out and "OneCycleLR" not in out


@pytest.mark.parametrize(("name", "kind"), [("RefCOCO", "Source"), ("MaskLoss", "MaskLoss"), ("EMA", "Callback")])
def test_plugins_shows_any_class(sail: Command, name: str, kind: str) -> None:
    out = sail("plugins", name).out
    assert f"{name} ({kind}, " in out and "arguments:" in out and "file:  " in out


def test_plugins_shows_the_arguments_of_a_parent_that_kwargs_lead_to(sail: Command) -> None:
    out = sail("plugins", "EncoderBackbone").out
    assert (
        "encoder: str" in out
        and "num_key_value_heads: int (1 or more) | None, default None" in out
        and "kwargs" not in out
    )


def test_plugins_by_a_wildcard(sail: Command) -> None:
    names = re.findall(r"^  (\w+)", sail("plugins", "*prompts*").out, re.MULTILINE)
    expected = {"NoPrompts", "NormMatchedPrompts", "CoordinatePrompts", "CocoPrompts", "Pix2CapPrompts", "SamPrompts"}
    assert set(names) == expected
    assert sail("plugins", "Nothing*").is_one_sentence(2, "no class matches Nothing*")


def test_plugin_page_shows_arguments_defaults_docs_and_file(sail: Command) -> None:
    out = sail("plugins", "SailQwen").out
    assert "size: Literal['tiny', '0.5b', '3b'], default 'tiny'" in out
    assert "activation_checkpointing: bool, default False" in out
    assert "recompute each layer" in out and "sail_qwen.py" in out


def test_plugins_includes_the_users_file(sail: Command, user_plugin: Path) -> None:
    listed = sail("plugins", "Upsampler", "--plugins", user_plugin)
    assert re.search(r"MyCliUpsampler +Made by a user\.  \[users_upsampler\]", listed.out)
    assert str(user_plugin) in sail("plugins", "MyCliUpsampler", "--plugins", user_plugin).out


def test_broken_installed_plugins_are_noted_not_fatal(sail: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SOURCES, "theirs (their-package)", "ImportError: no module named gone")
    shown = sail("plugins")
    assert shown.code == 0 and "their-package" in shown.err and "ImportError: no module named gone" in shown.err


def test_unknown_plugin_suggests_the_nearest(sail: Command) -> None:
    assert sail("plugins", "DeconvUpsample").is_one_sentence(2, "did you mean DeconvUpsampler?")


# -- data -------------------------------------------------------------------------------------------------------------


def test_data_show_draws_a_contact_sheet(sail: Command, workdir: Path) -> None:
    shown = sail("data", "show", "-c", "quickstart", "--split=val", "--count=2", "--out=a/sheet.png")
    assert shown.code == 0 and "a/sheet.png: 2 samples of data.val" in shown.out
    with Image.open(workdir / "a/sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_data_show_takes_a_sources_arguments(sail: Command) -> None:
    assert sail("data", "show", "-c", "quickstart", "--split=test", "--data.test.samples=1").out.count("1 samples") == 1
    wrong = sail("data", "show", "-c", "quickstart", "--data.train.siz=3")
    assert wrong.is_one_sentence(2, "LaboratorySource has no argument 'siz'", "did you mean size?")


def test_data_show_without_data_says_what_to_add(sail: Command) -> None:
    assert sail("data", "show", "-c", "model/sail_tiny").is_one_sentence(2, "data.train", "-c data/laboratory")
