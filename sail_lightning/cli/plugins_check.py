"""`sail-lightning plugins check`: checks whether a plugin does what its socket requires, and prints a line per
check."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.logging_setup import silence_lightning
from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:  # torch takes seconds, and is not needed for --help
    from sail_lightning.interfaces import Plugin
    from sail_lightning.plugin_check import Result


def check_plugin_named(name: str, words: Sequence[str] = (), device: str = "cpu") -> int:
    """Checks a plugin and prints one line for each check.

    Args:
        name: The plugin's class name.
        words: Its arguments, as `--channels=8`.
        device: Where it is checked, `cpu` or `cuda`.

    Returns:
        The exit code: 0 if all checks pass, 1 if there is a fault.

    Raises:
        SailUsageError: No such plugin or argument, or no such device.
    """
    import torch

    from sail_lightning import registry
    from sail_lightning.plugin_check import check_plugin

    registry.discover()
    found = registry.find(name, registry.SOCKETS)
    if found is None:
        raise SailUsageError(f"no plugin named {name}; your own file: --plugins FILE")
    if device == "cuda" and not torch.cuda.is_available():
        raise SailUsageError("there is no CUDA device here; leave out --device")
    make, shown = maker(*found, words)
    print(f"{name} ({found[0].__name__}){f', made with {shown}' if shown else ''}")
    with _undisturbed():
        results = check_plugin(name, make, device, lambda result: print(_line(result), flush=True))
    faults = sum(result.state == "fault" for result in results)
    print(f"{len(results)} checks: {f'{faults} with a fault' if faults else 'all ok'}")
    return 1 if faults else 0


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Silences logs and warnings within this context, and uses one thread, which is faster for small tensors."""
    import torch

    silence_lightning()
    logger, threads = logging.getLogger("sail_lightning"), torch.get_num_threads()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)


def maker(socket: type, cls: type, words: Sequence[str]) -> tuple[Callable[[], Plugin], str]:
    """Returns a function that makes a plugin with arguments, which are typed as in YAML, and these arguments as text.

    Raises:
        SailUsageError: An argument does not exist, is missing, or has a value of another type.
    """
    from jsonargparse import ArgumentParser, Namespace

    from sail_lightning.cli.config_validation import explain
    from sail_lightning.interfaces import Backbone
    from sail_lightning.plugin_check.tiny import BACKBONE

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "plugin", fail_untyped=False)
    known = vars(parser.get_defaults(skip_validation=True).get("plugin") or Namespace())
    small = [f"--{key}={value}" for key, value in BACKBONE.items() if key in known] if socket is Backbone else []
    given = [*small, *words]
    if unexpected := [word for word in words if not re.match(r"--\w", word)]:
        raise SailUsageError(f"unexpected {unexpected[0]!r}; an argument of {cls.__name__} is written --ARGUMENT=VALUE")
    names = [word.removeprefix("--").partition("=")[0] for word in given]
    if unknown := [name for name in names if name.partition(".")[0] not in known]:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise SailUsageError(f"{cls.__name__} has no argument {unknown[0]!r}; {takes}")
    try:
        config = parser.parse_args([f"--plugin.{word.removeprefix('--')}" for word in given])
    except Exception as error:  # jsonargparse raises several kinds
        raise SailUsageError(_one_sentence(cls.__name__, str(error), explain)) from None

    def make() -> Any:
        return parser.instantiate(config).plugin if known else cls()

    return make, " ".join(dict(zip(names, given, strict=True)).values())


def _one_sentence(name: str, message: str, explain: Callable[[str], str]) -> str:
    flat = " ".join(message.split())
    if match := re.search(r"the following arguments are required: (.+)", flat):
        needed = [f"--{part.strip().removeprefix('--').removeprefix('plugin.')}=..." for part in match[1].split(",")]
        return f"{name} needs {' and '.join(needed)}"
    return f"{name}: {explain(message)}".replace("plugin.", "")


def _line(result: Result) -> str:
    return f"  {result.state:8} {result.check}{f': {result.fault}' if result.fault else ''}"
