"""Images to patches: the official resize rule, the patch layout, and regions on the patch grid.

An image becomes a grid of patches of P x P pixels, each flattened channel first (C, row, column). Patches stay uint8
until they are on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageOps, UnidentifiedImageError

from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import decode_rle
from sail_lightning.sample import BoolMask, Box, ImageRef, Mask, MaskRef, Point, Prompt
from sail_lightning.settings.renames import renamed

MAX_SIDE = 1024
"""Default longest side of a resized image, in pixels (as in the official code)."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""File name endings of images."""
ResizeRule = Literal["longest", "area"]
CoverageRule = Literal["any", "nearest_pil", "nearest_torch"]
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Per-channel mean and standard deviation of pixels in [0, 1] (ImageNet's, as in the official code)."""


def resized_size(
    size: tuple[int, int], patch: int, max_side: int = MAX_SIDE, rule: ResizeRule = "longest"
) -> tuple[int, int]:
    """The (height, width), multiples of `patch`, that an image of (height, width) is resized to.

    The rule `longest` (Pixel-SAIL) rounds the longer side up to a multiple of the patch, at most the whole patches in
    `max_side`, which must hold one patch. The shorter side follows the aspect ratio, rounded up to whole patches, at
    least one (official code: zero for extreme shapes). The rule `area` (EVE) enlarges small images and shrinks large
    ones to about `max_side` squared pixels.
    """
    if rule == "area":
        ratio = math.sqrt(size[0] * size[1]) / max_side
        height, width = (max(math.ceil(side / ratio / patch) * patch, patch) for side in size)
        return height, width
    longer, shorter = max(size), min(size)
    new_longer = min(math.ceil(longer / patch), max_side // patch) * patch
    new_shorter = max(math.ceil(int(new_longer * shorter / longer) / patch) * patch, patch)
    return (new_longer, new_shorter) if size[0] >= size[1] else (new_shorter, new_longer)


def load_image(image: ImageRef) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 in RGB; grey and palette images are converted, transparency is dropped.

    Raises:
        SailError: The file is missing or not a readable image, or the array has another shape or type.
    """
    content = _content(image)
    if isinstance(content, np.ndarray):
        return content
    with _opened(content, image) as opened:
        opened.load()
        return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))  # `convert` always copies


@dataclass(frozen=True)
class ExifImage:
    """An image file turned as its EXIF orientation says, as viewers show it; it can be used as an `ImageRef`.

    Photographs of phones would lie on their side without it. Images of data sets are read as they are stored, because
    their annotations count pixels of the stored image (official behaviour).
    """

    path: str | Path

    def __call__(self) -> NDArray[np.uint8]:
        with _opened(Path(self.path), self.path) as opened:
            opened.load()
            image: Image.Image = opened
            with suppress(Exception):  # a damaged orientation, for which PIL raises many errors, is ignored
                image = ImageOps.exif_transpose(opened)
            return np.asarray(image.convert("RGB"))

    def __str__(self) -> str:
        return str(self.path)


def orientation(image: ImageRef) -> int:
    """The EXIF orientation of an image, 2 to 8, by which its stored pixels must be turned; 1 means upright.

    It is 1 for TIFF, which PIL turns while it reads. Raises the same errors as `load_image`.
    """
    content = _content(image)
    if isinstance(content, np.ndarray):
        return 1
    with _opened(content, image) as opened, suppress(Exception):  # damaged EXIF, for which PIL raises many errors
        turn = int(opened.getexif().get(ExifTags.Base.Orientation, 1))
        return turn if 2 <= turn <= 8 and opened.format != "TIFF" else 1
    return 1


def image_size(image: ImageRef) -> tuple[int, int]:
    """The (height, width) of an image, from the header of a file. Raises the same errors as `load_image`."""
    content = _content(image)
    if isinstance(content, np.ndarray):
        return content.shape[0], content.shape[1]
    with _opened(content, image) as opened:
        return opened.height, opened.width


def _content(image: ImageRef) -> NDArray[np.uint8] | Path | BytesIO:
    """The array, path or file content of an image reference; an array is checked."""
    content = image() if callable(image) else image
    if isinstance(content, bytes):
        return BytesIO(content)
    if not isinstance(content, np.ndarray):
        return Path(content)
    if content.ndim != 3 or content.shape[2] != 3 or content.dtype != np.uint8 or 0 in content.shape:
        raise SailError(f"an image must be (H, W, 3) uint8, not {content.shape} {content.dtype}")
    return content


@contextmanager
def _opened(content: Path | BytesIO, image: ImageRef) -> Iterator[Image.Image]:
    """Opens an image; errors in opening it, and in reading it within the context, become a SailError with its name."""
    name = content if isinstance(content, Path) else image
    try:
        with Image.open(content) as opened:
            yield opened
    except FileNotFoundError:
        raise SailError(f"no image {name}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SailError(f"{name} is not a readable image ({_reason(error)}); replace or remove it") from None


def resize_image(
    image: NDArray[np.uint8], patch: int, max_side: int = MAX_SIDE, rule: ResizeRule = "longest"
) -> NDArray[np.uint8]:
    """An image (H, W, 3) resized to its `resized_size`; the same array if it has that size.

    As in the official code, PIL resizes with antialiasing: bilinear, or bicubic by the rule `area`.
    """
    height, width = resized_size(image.shape[:2], patch, max_side, rule)
    if image.shape[:2] == (height, width):
        return image
    filter = Image.Resampling.BICUBIC if rule == "area" else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((width, height), filter))


def patchify(
    image: NDArray[np.uint8], patch: int, max_side: int = MAX_SIDE, rule: ResizeRule = "longest"
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Patches (rows*columns, 3*P*P) uint8 of a resized image (H, W, 3), row by row, and their grid (rows, columns)."""
    image = resize_image(image, patch, max_side, rule)
    grid = (image.shape[0] // patch, image.shape[1] // patch)
    cells = image.reshape(grid[0], patch, grid[1], patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cells).reshape(grid[0] * grid[1], 3 * patch * patch), grid


def load_mask(mask: MaskRef) -> BoolMask:
    """A mask reference as an array (H, W) bool; COCO RLEs and PNG files are decoded.

    A pixel of a PNG file is on if it is neither zero nor fully transparent.

    Raises:
        SailError: The file is missing or unreadable, or an RLE is damaged.
    """
    if isinstance(mask, np.ndarray):
        return mask.astype(bool, copy=False)
    if isinstance(mask, dict):
        return decode_rle(mask)
    if callable(mask):
        return mask()
    try:
        with Image.open(mask) as opened:
            if "A" in opened.getbands():  # the colour of transparent pixels is often white
                colours = np.asarray(opened.convert("RGBA"))
                seen: BoolMask = colours[..., :3].any(axis=2) & (colours[..., 3] > 0)
                return seen
            array = np.asarray(opened if opened.mode in ("1", "L", "P", "I", "I;16") else opened.convert("L"))
    except FileNotFoundError:
        raise SailError(f"no mask file {mask}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SailError(f"{mask} is not a readable mask ({_reason(error)}); replace or remove it") from None
    on: BoolMask = array > 0
    return on


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without the file name, which messages of PIL and of the system repeat."""
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return str(getattr(error, "strerror", None) or error)


def region_mask(prompt: Prompt, size: tuple[int, int]) -> BoolMask:
    """The pixels that a visual prompt covers, (H, W) bool, for an image of `size` (height, width).

    Raises:
        SailError: The region is empty or outside the image, or its mask has another size.
    """
    height, width = size
    if isinstance(prompt, Mask):
        covered = load_mask(prompt.mask)
        if covered.shape != size:
            raise SailError(
                f"the prompt mask is {covered.shape[1]} x {covered.shape[0]} pixels, the image {width} x {height}; "
                "draw it at the image's size"
            )
    elif isinstance(prompt, Box):
        covered = np.zeros(size, bool)
        top, left = max(math.floor(prompt.y0), 0), max(math.floor(prompt.x0), 0)
        covered[top : max(math.ceil(prompt.y1), 0), left : max(math.ceil(prompt.x1), 0)] = True
    elif isinstance(prompt, Point):
        covered = np.zeros(size, bool)
        if 0 <= prompt.x < width and 0 <= prompt.y < height:
            covered[int(prompt.y), int(prompt.x)] = True
    else:
        canvas = Image.new("1", (width, height))
        ImageDraw.Draw(canvas).line(list(prompt.points), fill=1)
        covered = np.asarray(canvas)
    if not covered.any():
        raise SailError(f"the prompt {_shown(prompt)} covers nothing of the image ({width} x {height} pixels)")
    return covered


def patch_coverage(mask: BoolMask, grid: tuple[int, int], patch: int, rule: CoverageRule = "any") -> NDArray[np.bool_]:
    """The patches (rows, columns) bool of the resized image that a mask (H, W) touches.

    The rule `any` maps the mask directly onto the grid, so that no pixel that is on is lost. The official rules first
    resize the mask with nearest neighbours, `nearest_pil` as PIL does (Pixel-SAIL) and `nearest_torch` as torch does
    (EVE). They differ from `any` where an image shrinks: thin regions vanish.
    """
    if rule != "any":
        row_source = _nearest_sources(mask.shape[0], grid[0] * patch, rule)
        column_source = _nearest_sources(mask.shape[1], grid[1] * patch, rule)
        small = mask[row_source][:, column_source]
        return np.asarray(small.reshape(grid[0], patch, grid[1], patch).any(axis=(1, 3)))
    rows = _ranges(mask.shape[0], grid[0], patch)
    columns = _ranges(mask.shape[1], grid[1], patch)
    padded = np.pad(mask, ((0, 1), (0, 1)))
    by_row = np.logical_or.reduceat(padded, rows.ravel(), axis=0)[::2]
    return np.logical_or.reduceat(by_row, columns.ravel(), axis=1)[:, ::2]


def _nearest_sources(old: int, new: int, rule: CoverageRule) -> NDArray[np.int64]:
    if rule == "nearest_torch":  # torch computes in single precision
        return np.minimum((np.arange(new) * np.float32(old / new)).astype(np.int64), old - 1)
    return np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(np.int64), old - 1)


def _ranges(old: int, cells: int, patch: int) -> NDArray[np.int64]:
    """The source pixels [first, end) of each cell along one side: those that nearest neighbours would read and, where
    the image shrinks, those that they would skip."""
    sources = _nearest_sources(old, cells * patch, "nearest_pil")
    first, end = sources[::patch].copy(), sources[patch - 1 :: patch] + 1
    first[0] = 0
    first[1:] = np.minimum(first[1:], end[:-1])
    end[-1] = old
    return np.stack([first, end], axis=1)


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, Mask):
        named = f"Mask({prompt.mask})" if isinstance(prompt.mask, str | Path) else "Mask"
        return named if prompt.id is None else f"{named} of <Prompt{prompt.id}>"
    return repr(prompt)


__getattr__ = renamed(__name__, {"Upright": "ExifImage"})
