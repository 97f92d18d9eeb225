"""mmengine: which modules its lazy reading of a config imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standard_library_imported() -> Iterator[None]:
    """Makes mmengine import modules of the standard library within this context when it reads a config, as it intends.

    It recognises them by their folder, and mistakes those of a virtual environment for other packages.
    """
    from mmengine.config import config, utils

    def is_standard(module: str) -> bool:
        return module.partition(".")[0] in sys.stdlib_module_names or module.startswith("mmengine.config")

    places = (config, utils)
    before = [place._is_builtin_module for place in places]
    try:
        for place in places:
            place._is_builtin_module = is_standard
        yield
    finally:
        for place, function in zip(places, before, strict=True):
            place._is_builtin_module = function
