"""Shell completion, run by bash itself."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_harness import Command

from sail_lightning import registry
from sail_lightning.cli import command
from sail_lightning.cli.completion import completion_script
from sail_lightning.cli.configs import config_names

BASH = shutil.which("bash") or ""
needs_bash = pytest.mark.skipif(not BASH, reason="no bash here")


@pytest.fixture(scope="module")
def script() -> str:
    registry.load_shipped()
    return completion_script("bash")


def completed(script: str, words: str, folder: Path) -> set[str]:
    """What bash offers for the last of these words, split as bash splits them."""
    split = shlex.split(words)
    if words.endswith(" "):
        split.append("")
    call = f"COMP_WORDS=({' '.join(map(shlex.quote, split))}); COMP_CWORD={len(split) - 1}; _sail_lightning"
    shown = subprocess.run(
        [BASH, "--norc", "-c", f'{script}\n{call}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return set(shown.stdout.split())


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sail-lightning pl", {"plugins"}),
        ("sail-lightning configs s", {"show", "schema"}),
        ("sail-lightning configs show quick", {"quickstart"}),
        ("sail-lightning fit -c model/sail_t", {"model/sail_tiny"}),
        ("sail-lightning fit --model.upsampler = Dec", {"DeconvUpsampler"}),
        ("sail-lightning fit --model.upsampler=Dec", {"--model.upsampler=DeconvUpsampler"}),
        ("sail-lightning fit --model.upsampler Bil", {"BilinearUpsampler"}),
        ("sail-lightning fit --model.optimizer = Muon", {"MuonAdamW", "Muon"}),
        ("sail-lightning fit --trainer.callbacks+ = EM", {"EMA", "EMAWeightAveraging"}),
        ("sail-lightning fit --data.train = RefCOCOM", {"RefCOCOM"}),
        ("sail-lightning fit --model.backbone.siz", {"--model.backbone.size"}),
        ("sail-lightning fit --model.backbone.size = ti", {"tiny"}),
        ("sail-lightning fit --model.loss_normalization = ", {"window", "microbatch"}),
        ("sail-lightning fit --model.loss_norm", {"--model.loss_normalization"}),
        ("sail-lightning plugins Lang", {"LanguageLoss"}),
    ],
)
def test_bash_completes(words: str, offered: set[str], script: str, tmp_path: Path) -> None:
    assert completed(script, words, tmp_path) == offered


@needs_bash
def test_all_commands_are_offered(script: str, tmp_path: Path) -> None:
    assert completed(script, "sail-lightning ", tmp_path) == set(command.verbs())


@needs_bash
def test_files_are_offered_where_anything_may_stand(script: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert "mine.yaml" in completed(script, "sail-lightning fit -c ", tmp_path)
    assert set(config_names()) <= completed(script, "sail-lightning fit -c ", tmp_path)
    assert completed(script, "sail-lightning fit --ckpt_path mi", tmp_path) == {"mine.yaml"}


def test_the_command_prints_it_with_the_users_classes(sail: Command, user_plugin: Path) -> None:
    shown = sail("completion", "bash", "--plugins", user_plugin)
    assert shown.code == 0 and "MyCliUpsampler" in shown.out
    assert sail("completion", "zsh").out.splitlines()[1] == "autoload -U +X bashcompinit && bashcompinit"


def test_another_shell_is_refused(sail: Command) -> None:
    assert sail("completion", "csh").is_one_sentence(2, "csh", "bash", "zsh")
