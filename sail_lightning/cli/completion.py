"""Shell completion: a script that completes commands, packaged configs, options and the names of swappable classes.

The script is static, because importing torch would take seconds. Write it again to complete new plugins.
"""

from __future__ import annotations

import shlex
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sail_lightning import registry
from sail_lightning.cli import command
from sail_lightning.cli.configs import config_names
from sail_lightning.settings.signatures import Argument, arguments_of, parts_of

Shell = Literal["bash", "zsh"]
OWN_OPTIONS = ("config", "plugins", "name", "runs", "ckpt_path", "seed_everything", "print_config", "full_help", "help")
"""Options of `fit`, `validate`, `test` and `predict` beside those of their sections."""
VERBS = ("fit", "validate", "test", "predict")
"""Commands that take these options."""
SWITCHES = ("true", "false")
SCRIPT = """\
# {shell} completion of sail-lightning, written by: sail-lightning completion {shell}
{zsh}_sail_lightning() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" option="" prefix="" words=""
  local verb="${{COMP_WORDS[1]}}" group="${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}"
  COMPREPLY=()
  if [[ $cur == --*=* ]]; then option="${{cur%%=*}}"; prefix="$option="; cur="${{cur#*=}}"
  elif [[ $cur == "=" ]]; then option="$prev"; cur=""
  elif [[ $prev == "=" ]]; then option="${{COMP_WORDS[COMP_CWORD-2]}}"
  elif [[ $prev == -* && $cur != -* ]]; then option="$prev"
  fi
  if [[ -n $option ]]; then
    case "$option" in
{values}
    esac
    [[ -n $words ]] && COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$cur"))
    [[ -z $words || $option == -c || $option == --config ]] && COMPREPLY+=($(compgen -P "$prefix" -f -- "$cur"))
    return
  fi
  if (( COMP_CWORD == 1 )); then words={commands}
  elif [[ $cur == -* ]]; then
    case "$verb" in
      {verbs}) words={options} ;;
      *) words={other_options} ;;
    esac
  elif (( COMP_CWORD == 2 )); then
    case "$verb" in
{seconds}
    esac
  elif (( COMP_CWORD == 3 )); then
    case "$group" in
      "configs show"|"configs copy") words={configs} ;;
    esac
  fi
  if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur"))
  else COMPREPLY=($(compgen -f -- "$cur"))
  fi
}}
complete -o filenames -o nosort -F _sail_lightning sail-lightning
"""


def completion_script(shell: Shell) -> str:
    """Returns the completion script of a shell, with all commands and classes registered so far.

    Args:
        shell: The shell, `bash` or `zsh`; zsh runs the script of bash.
    """
    command.load_packaged()
    registry.load_shipped()
    registry.discover()
    values = _values()
    members = [name for point in registry.swap_points() for name in (point.name, *point.members)]
    seconds = {group: [one.name.split()[1] for one in found] for group, found in command.groups().items()}
    seconds["plugins"] = list(dict.fromkeys([*seconds["plugins"], *members]))
    seconds["completion"] = [*typing.get_args(Shell)]
    configs = config_names()
    return SCRIPT.format(
        shell=shell,
        zsh="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        values=_cases({"-c|--config": configs, **{key: words for key, words in values.items() if words}}),
        commands=_quoted(command.verbs()),
        verbs="|".join(VERBS),
        options=_quoted([*(f"--{name}" for name in OWN_OPTIONS), "-c", *values]),
        other_options=_quoted(["-c", "--plugins", "--help"]),
        seconds=_cases(seconds),
        configs=_quoted(configs),
    )


def _values() -> dict[str, list[str]]:
    """Returns all options of the sections (`--model.upsampler`), each with the words that may follow it if they are
    few."""
    from sail_lightning.cli.lightning_cli import SECTIONS

    found: dict[str, list[str]] = {}
    for section, cls in SECTIONS.items():
        for name, argument in arguments_of(cls).items():
            option = f"--{section}.{name}"
            found[option] = _words(argument)
            for base, given in _swap_points(argument.hint):
                if option == "--trainer.callbacks":
                    found[f"{option}+"] = found[option]
                    continue
                for member in registry.members_of(base).values():
                    for inner, one in list(arguments_of(member).items())[given:]:
                        words = found.setdefault(f"{option}.{inner}", [])  # of all classes with this argument
                        words += [word for word in _words(one) if word not in words]
    return found


def _swap_points(hint: Any) -> list[tuple[type, int]]:
    """Returns the swap points that a type accepts, and how many of their leading arguments the model fills in."""
    from sail_lightning.cli.config_schema import given_arguments

    parts = dict.fromkeys(parts_of(hint))
    return [(part, given_arguments(hint)) for part in parts if registry.is_swap_point(part)]


def _words(argument: Argument) -> list[str]:
    """Returns the words that an argument accepts: class names, choices, true and false; none where it accepts any
    value."""
    words: list[str] = []
    for part in parts_of(argument.hint):
        if registry.is_swap_point(part):
            words += registry.members_of(part)
        elif typing.get_origin(part) is Literal:
            words += map(str, typing.get_args(part))
        elif part is bool:
            words += SWITCHES
    return list(dict.fromkeys(words))


def _cases(words: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"      {pattern}) words={_quoted(names)} ;;" for pattern, names in words.items())


def _quoted(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))
