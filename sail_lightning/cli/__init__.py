"""The command line. This file only sends each command to its own; neither torch nor Lightning is imported here."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from sail_lightning import __version__
from sail_lightning.errors import SailError, SailUsageError

VERBS = ("fit", "validate", "test", "predict")
"""Commands that go to LightningCLI."""
COMMANDS = (
    *("plugins", "configs", "data", "convert", "bench", "quickstart"),
    *("compare", "perbench", "features", "expert", "ablate", "completion"),
)
"""Commands of our own: `run(args) -> exit code` in the module of the same name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: what follows `sail-lightning`; that of the process if None.

    Returns:
        the exit code: 0; 1 for a fault; 2 for a command that was written wrongly; 130 if it was interrupted. Faults
        that the user can mend are one sentence on stderr; any other exception passes through with its traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    command = args[0] if args and not args[0].startswith("-") else ""
    try:
        return _dispatch(command, args)
    except SailUsageError as error:
        _complain(str(error), command)
        return 2
    except SailError as error:
        _complain(str(error), command)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        # Lightning turns an interrupt into exit code 1.
        return 130 if isinstance(stop.__context__, KeyboardInterrupt) else _code(stop)


def _dispatch(command: str, args: list[str]) -> int:
    from sail_lightning.cli import pages

    if args and args[0] in ("--version", "-V"):
        print(f"sail-lightning {__version__}")
        return 0
    if not command:
        if args and args[0] not in ("--help", "-h"):
            raise SailUsageError(f"a command must come first, before {args[0]}: {', '.join((*VERBS, *COMMANDS))}")
        print(pages.TOP)
        return 0
    if command in VERBS:
        if any(arg in ("--help", "-h") for arg in args):
            print(pages.VERB[command])
            return 0
        from sail_lightning.cli import rescoring

        if command == "test" and rescoring.asks_for(args[1:]):
            return rescoring.run(args[1:])
        from sail_lightning.cli.lightning_cli import run

        return run(args).exit_code
    if command in COMMANDS:
        code: int = importlib.import_module(f"sail_lightning.cli.{command}").run(args[1:])
        return code
    near = difflib.get_close_matches(command, (*VERBS, *COMMANDS), 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*VERBS, *COMMANDS))}"
    raise SailUsageError(f"no command {command}; {hint}")


def _complain(message: str, command: str) -> None:
    known = f" {command}" if command in (*VERBS, *COMMANDS) else ""
    sys.stderr.write(f"error: {message}\n  more: sail-lightning{known} --help\n")


def _code(stop: SystemExit) -> int:
    if isinstance(stop.code, int) or stop.code is None:
        return stop.code or 0
    sys.stderr.write(f"{stop.code}\n")
    return 1
