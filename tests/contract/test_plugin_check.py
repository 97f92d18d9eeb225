"""Each check can fail: it names the plugin that breaks its rule, and no other check does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_plugins import BROKEN, SOUND, ForgetfulUpsampler

from sail_lightning import registry
from sail_lightning.cli import main
from sail_lightning.errors import SailUsageError
from sail_lightning.plugin_check import Result, check_plugin
from sail_lightning.plugin_check.run import COMPUTING, stages_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my_upsampler.py"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Registers a class, checks it as far as its first fault, and forgets it again."""
    before = {base: dict(socket.module_dict) for base, socket in registry.SOCKETS.items()}

    def run(cls: type[Any]) -> list[Result]:
        registry.register(cls)
        return check_plugin(cls.__name__)

    yield run
    for base, socket in registry.SOCKETS.items():
        socket.module_dict.clear()
        socket.module_dict.update(before[base])


def faults(results: list[Result]) -> dict[str, str]:
    return {result.check: result.fault for result in results if result.state == "fault"}


@pytest.mark.parametrize(("cls", "check", "words"), BROKEN, ids=[f"{c.__name__}-{name}" for c, name, _ in BROKEN])
def test_a_broken_plugin_is_named_by_precisely_the_check_of_its_rule(
    cls: type[Any], check: str, words: tuple[str, ...], checked: Any
) -> None:
    found = faults(checked(cls))
    both = {"comes back from a checkpoint", "comes back from a model folder"} if cls is ForgetfulUpsampler else {check}
    assert found.keys() == both
    assert [word for word in words if word not in found[check]] == [], found[check]
    assert "\n" not in found[check] and len(found[check]) < 400


@pytest.mark.parametrize("cls", SOUND)
def test_a_plugin_that_breaks_nothing_passes_every_check(cls: type[Any], checked: Any) -> None:
    assert {(result.state, result.fault) for result in checked(cls)} == {("ok", "")}


@pytest.mark.parametrize("name", ["MaskLoss", "EMA", "Nobody"])
def test_a_name_that_is_no_plugin_of_a_socket_is_refused(name: str) -> None:
    registry.load_shipped()
    with pytest.raises(SailUsageError, match=f"^no plugin named {name} \\(checks are for .*Upsampler") as fault:
        check_plugin(name)
    assert "\n" not in str(fault.value)


def test_every_check_has_a_plugin_that_it_refuses() -> None:
    named = {check.name for socket in COMPUTING for stage in stages_of(socket) for check in stage}
    assert named == {check for _, check, _ in BROKEN}


def test_checks_after_a_fault_are_said_not_to_have_run(checked: Any) -> None:
    cls, name, _ = next(case for case in BROKEN if case[1] == "publishes its sizes")
    results = checked(cls)
    place = [result.check for result in results].index(name)
    assert {result.state for result in results[:place]} == {"ok"}
    assert {result.state for result in results[place + 1 :]} == {"not run"}
    assert len(results) == sum(map(len, stages_of(registry.find(cls.__name__)[0])))  # type: ignore[index]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sail(checked: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workdir: Path) -> Any:
    """Runs `sail-lightning plugins check` and gives its exit code and output; plugins are forgotten afterwards."""
    sources = dict(registry.SOURCES)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["plugins", "check", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    monkeypatch.setattr(sys, "path", [*sys.path])
    yield run
    registry.SOURCES.clear()
    registry.SOURCES.update(sources)
    for name in ("my_upsampler", "wrong"):
        sys.modules.pop(name, None)


WRONG = '''
from dataclasses import replace

from torch import nn

from sail_lightning.interfaces import Upsampler
from sail_lightning.registry import register


@register
class Wrong(Upsampler):
    """Says 8 channels, gives 7."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.channels = channels

    def build(self, dims):
        self.fold = nn.ConvTranspose2d(dims.hidden_size, 7, 2, stride=2)
        return replace(dims, feature_channels=self.channels, feature_stride=dims.patch_size // 2)

    def forward(self, features):
        return self.fold(features)
'''


def test_the_command_prints_a_line_for_each_check_and_succeeds(sail: Any) -> None:
    code, out, err = sail("MyUpsampler", f"--plugins={EXAMPLE}", "--channels=9")
    first, *lines, last = out.splitlines()
    assert (code, err) == (0, "")
    assert first == "MyUpsampler (Upsampler), made with --channels=9"
    assert len(lines) == 13 and all(line.startswith("  ok ") for line in lines)
    assert last == "13 checks: all ok"


def test_the_command_names_the_fault_and_fails(sail: Any, workdir: Path) -> None:
    (workdir / "wrong.py").write_text(WRONG)
    code, out, err = sail("Wrong", "--plugins=wrong.py")
    assert (code, err) == (1, "")
    assert (
        "  fault    gives mask features of the published sizes: Wrong.forward returned a tensor of shape "
        "(2, 7, 6, 10), but (B, feature_channels, h*k, w*k) = (2, 8, 6, 10) is expected\n" in out
    )
    assert "  not run  comes back from a checkpoint\n" in out
    assert out.endswith("13 checks: 1 with a fault\n")
    assert sail("Wrong", "--plugins=wrong.py", "--channels=7")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Nobody",), ("no plugin named Nobody", "--plugins FILE")),
        (("NoPrompts", "--many=3"), ("NoPrompts has no argument 'many'", "num_prompts")),
        (("NoPrompts", "--num_prompts=x"), ("num_prompts", "x")),
        (("NoPrompts", "--num_prompts=1", "x"), ("unexpected 'x'", "--ARGUMENT=VALUE")),
        (("SDPAAttention", "--x=1"), ("SDPAAttention has no argument 'x'", "it takes none")),
        (("Mask2FormerTeacher",), ("Mask2FormerTeacher needs --folder=...",)),
        ((), ("plugins check needs NAME",)),
    ],
)
def test_a_wrong_command_is_refused_in_one_sentence(words: tuple[str, ...], said: tuple[str, ...], sail: Any) -> None:
    code, out, err = sail(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 2
    assert [word for word in said if word not in err] == []


def test_help_shows_an_example(sail: Any) -> None:
    code, out, _ = sail("--help")
    assert code == 0
    assert "sail-lightning plugins check MyUpsampler --plugins my_upsampler.py" in out
