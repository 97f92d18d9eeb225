"""Base of sources of files in the package's own format, whatever they are stored as."""

from __future__ import annotations

from typing import Any

from sail_lightning.data.sources.indexed import IndexedSource, data_path


class OwnFormatSource(IndexedSource):
    """Base of sources of records as `sail_lightning.data.jsonl` describes them.

    Args:
        path: Path of the file.
        images: Folder that relative paths of images and PNG masks start from; null is the folder of the file.
    """

    def __init__(self, path: str, images: str | None = None) -> None:
        super().__init__([path])
        self.root = (self.files[0].parent if images is None else data_path(images)).absolute()

    def settings(self) -> Any:
        return str(self.root)  # image keys may contain the folder
