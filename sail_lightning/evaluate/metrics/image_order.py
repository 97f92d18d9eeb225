"""The order of images by their names, which does not depend on the order of records."""

from __future__ import annotations


def image_order(name: str) -> tuple[int, int, str, str]:
    """Returns the sorting key of an image's name: whole numbers come first, by value, as in COCOeval, then other names,
    as text."""
    if not (name.isascii() and name.isdecimal()):
        return 1, 0, "", name
    digits = name.lstrip("0")
    return 0, len(digits), digits, name
