"""`sail-lightning plugins`, which lists what can be swapped, and `plugins check`, which checks a plugin."""

from __future__ import annotations

from typing import Literal

from sail_lightning.cli.command import command

SECTION = "configs, plugins, checkpoints"


@command(section=SECTION)
def plugins(name: str | None = None) -> None:
    """Lists all that can be swapped; a class's arguments, defaults and source.

    Without a name: all swap points; with a swap point (Upsampler, losses, sockets): its classes; with a class: its
    arguments; with a wildcard ("*Prompts*"): the classes that match.

    Examples:
        sail-lightning plugins MyUpsampler --plugins my_upsampler.py

    Args:
        name: A swap point, a class or a wildcard.
    """
    from sail_lightning.cli.plugins import show  # after --help: it takes seconds

    show(name)


@command("plugins check", section=SECTION)
def check(name: str, *arguments: str, device: Literal["cpu", "cuda"] = "cpu") -> int:
    """Checks a plugin: shapes, gradients, precision, zero rows, checkpoints; takes a few seconds.

    --ARGUMENT=VALUE sets an argument of the plugin, as its YAML would; a backbone is made small unless its sizes are
    given. Each line is `ok`, a `fault` with what to do, or `not run` because of a fault above; the exit code is 0 if
    all are ok.

    Examples:
        sail-lightning plugins check MyUpsampler --plugins my_upsampler.py
        sail-lightning plugins check MyUpsampler --plugins my_upsampler.py --channels=8

    Args:
        name: The plugin's class name.
        arguments: Its arguments, as `--channels=8`.
        device: Device of the checks.
    """
    from sail_lightning.cli.plugins_check import check_plugin_named  # after --help: it takes seconds

    return check_plugin_named(name, arguments, device)
