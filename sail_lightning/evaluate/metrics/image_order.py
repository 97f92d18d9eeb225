"""The order of images by their names, in which nothing depends on how records come."""

from __future__ import annotations


def image_order(name: str) -> tuple[int, int, str, str]:
    """Sorts names of images: whole numbers first, by their value, as COCOeval does; then the others, as text."""
    if not (name.isascii() and name.isdecimal()):
        return 1, 0, "", name
    digits = name.lstrip("0")
    return 0, len(digits), digits, name
