"""Makes the general help and the help of a group from the first lines of the commands' docstrings."""

from __future__ import annotations

import inspect
import textwrap

from sail_lightning.cli.command import COMMANDS, FAULTS, Command, first_line, groups, module_of_group

SECTIONS = ("train and use a model", "compare", "teachers", "data", "configs, plugins, checkpoints")
"""Headings of the general help, in order; other headings follow."""
WIDTH, COLUMN = 118, 35
HEAD = """\
usage: sail-lightning COMMAND ...

Pixel-SAIL: one transformer that reads pixels and words and answers in text and masks."""
TAIL = """\
examples:
  sail-lightning fit -c quickstart --model.upsampler=BilinearUpsampler
  sail-lightning test --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt
  sail-lightning predict --ckpt_path sail-tiny --data.images photos/ --data.text "Please segment the red circle."

sail-lightning COMMAND --help describes it.   --version: the version"""


def general_help() -> str:
    """Returns the general help: every command by section, with the first line of its docstring, and examples."""
    lines: dict[str, list[str]] = {section: [] for section in SECTIONS}
    members = groups()
    for one in COMMANDS.values():
        group = one.name.split()[0]
        if " " not in one.name:
            lines.setdefault(one.section, []).append(_line(_usage(one), one.summary))
        elif one is members[group][0]:
            verbs = "|".join(other.name.split()[1] for other in members[group])
            lines.setdefault(one.section, []).append(_line(f"{group} {verbs}", first_line(module_of_group(group))))
    body = "\n".join(f"{section}:\n{chr(10).join(found)}" for section, found in lines.items() if found)
    broken = "".join(f"\nnot loaded: {name}: {fault}" for name, fault in FAULTS.items())
    return f"{HEAD}\n\n{body}\n\n{TAIL}{broken}"


def group_help(group: str) -> str:
    """Returns the help of a group: what each of its commands does."""
    found = groups()[group]
    usage = f"usage: sail-lightning {group} {'|'.join(one.name.split()[1] for one in found)} ..."
    listed = "\n".join(_line(_usage(one).partition(" ")[2], one.summary) for one in found)
    about = f"{text}\n\n" if (text := module_of_group(group)) else ""
    return f"{usage}\n\n{about}{listed}\n\nsail-lightning {group} COMMAND --help describes it."


def _usage(one: Command) -> str:
    """Returns a command's name and its arguments: `compare FIRST SECOND`."""
    named = [
        parameter.name.upper() if parameter.default is parameter.empty else f"[{parameter.name.upper()}]"
        for parameter in inspect.signature(one.function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return " ".join([one.name, *named])


def _line(usage: str, summary: str) -> str:
    gap = COLUMN - len(usage) - 2
    start = f"  {usage}{' ' * max(2, gap)}"
    return start + textwrap.shorten(summary, WIDTH - len(start), placeholder=" ...")
