"""What files of our own format share, whatever they are stored as."""

from __future__ import annotations

from typing import Any

from sail_lightning.data.sources.indexed import IndexedSource, data_path


class OwnFormatSource(IndexedSource):
    """A file of records as `sail_lightning.data.jsonl` describes them.

    Args:
        path: of the file.
        images: the folder that file names of pictures and PNG masks start from; null is the folder of the file.
    """

    def __init__(self, path: str, images: str | None = None) -> None:
        super().__init__([path])
        self.root = (self.files[0].parent if images is None else data_path(images)).absolute()

    def settings(self) -> Any:
        return str(self.root)  # the folder may be part of what names a picture
