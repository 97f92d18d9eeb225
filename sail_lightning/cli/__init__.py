"""The command line. This file only sends each command to its own; neither torch nor Lightning is imported here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sail_lightning import __version__
from sail_lightning.errors import SailError, SailUsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after `sail-lightning`; None takes those of the process.

    Returns:
        The exit code: 0; 1 for a fault; 2 for a command that was written wrongly; 130 if it was interrupted. Faults
        that the user can fix are one sentence on stderr; any other exception passes through with its traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(args)
    except SailUsageError as error:
        _complain(str(error), args)
        return 2
    except SailError as error:
        _complain(str(error), args)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        # Lightning turns an interrupt into exit code 1.
        return 130 if isinstance(stop.__context__, KeyboardInterrupt) else _code(stop)


def dispatch(args: Sequence[str]) -> int:
    """Runs one command; its faults are raised.

    Args:
        args: The words after `sail-lightning`.

    Returns:
        The exit code.

    Raises:
        SailUsageError: No such command, or wrong words.
        SailError: A fault that the user can fix.
    """
    from sail_lightning.cli import command, help_text

    if args and args[0] in ("--version", "-V"):
        print(f"sail-lightning {__version__}")
        return 0
    if not args or args[0] in command.HELP:
        command.load_packaged()
        command.load_users(args)
        print(help_text.general_help())
        return 0
    if args[0].startswith("-"):
        command.load_packaged()
        raise SailUsageError(f"a command must come first, before {args[0]}: {', '.join(command.verbs())}")
    found, name, words = command.find(args)
    if found is None:
        if words and words[0] not in command.HELP:
            verbs = ", ".join(one.name for one in command.groups()[name])
            raise SailUsageError(f"{name} needs a command, before {words[0]}: {verbs}")
        print(help_text.group_help(name))
        return 0
    return found.run(words)


def _complain(message: str, args: Sequence[str]) -> None:
    from sail_lightning.cli.command import COMMANDS, verbs

    known = " ".join(args[:2]) if " ".join(args[:2]) in COMMANDS else "".join(args[:1])
    shown = f" {known}" if known in (*COMMANDS, *verbs()) else ""
    sys.stderr.write(f"error: {message}\n  more: sail-lightning{shown} --help\n")


def _code(stop: SystemExit) -> int:
    if isinstance(stop.code, int) or stop.code is None:
        return stop.code or 0
    sys.stderr.write(f"{stop.code}\n")
    return 1
