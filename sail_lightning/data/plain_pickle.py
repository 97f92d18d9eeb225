"""Reads pickled annotations (`refs(unc).p`) as plain containers; nothing that they name is imported or run (E40)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from sail_lightning.errors import SailError


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside")


def load(path: Path) -> Any:
    """The lists, dictionaries, strings and numbers of a pickle, also one of Python 2.

    Raises:
        SailError: The pickle cannot be read, or names a class or a function.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except FileNotFoundError:
        raise SailError(f"no annotation file {path}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise SailError(
            f"{path} is not a pickle of plain lists and dictionaries ({error}); save it as JSON where it was made"
        ) from None
