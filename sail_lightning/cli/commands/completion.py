"""Completion by the shell."""

from __future__ import annotations

from typing import Literal

from sail_lightning.cli.command import command


@command(section="configs, plugins, checkpoints")
def completion(shell: Literal["bash", "zsh"]) -> None:
    """Prints a script with which a shell completes commands, options and names.

    With --plugins FILE it includes the names of your own plugins.

    Examples:
        sail-lightning completion bash > ~/.local/share/bash-completion/completions/sail-lightning
        sail-lightning completion zsh >> ~/.zshrc

    Args:
        shell: The shell that runs the script.
    """
    from sail_lightning.cli.completion import completion_script  # after --help: it takes seconds

    print(completion_script(shell), end="")
