"""Folders that a command writes to, checked before it works."""

from __future__ import annotations

import os
from pathlib import Path

from sail_lightning.errors import SailUsageError


def output_folder(name: str | Path, option: str = "--out") -> Path:
    """The folder that an option names; it need not be there, and is not made.

    Raises:
        SailUsageError: It can be no folder, because it or a folder above it is a file, or it may not be written.
    """
    folder = Path(name)
    try:
        there = folder.stat()
    except FileNotFoundError:
        there = None
    except OSError as error:
        raise SailUsageError(f"{folder} can be no folder ({error.strerror}); give {option} another") from None
    if there is not None and not folder.is_dir():
        raise SailUsageError(f"{folder} is a file; give {option} a folder")
    nearest = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not os.access(nearest, os.W_OK):
        raise SailUsageError(f"{nearest} may not be written to; give {option} another folder")
    return folder
