"""LLaVA-665K: conversations with and without an image, and the irregular ones that the set has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import dump, photo
from sail_lightning.data.sources import layout

PICTURES = {750: "coco/train2017/000000000750.jpg", 751: "ocr_vqa/images/751.jpg"}
RECORDS: list[dict[str, Any]] = [
    {
        "id": "000000000750",
        "image": PICTURES[750],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is on the left?"},
            {"from": "gpt", "value": " A thing. "},
            {"from": "human", "value": "And on the right?"},
            {"from": "gpt", "value": "Another thing, naïvely drawn."},
        ],
    },
    {
        "id": "751",
        "image": PICTURES[751],
        "conversations": [
            {"from": "human", "value": "Who wrote this book?\n<image>"},
            {"from": "gpt", "value": "Nobody."},
        ],
    },
    {
        "id": "words alone",
        "conversations": [
            {"from": "gpt", "value": "This answers nothing."},
            {"from": "human", "value": "Name a colour."},
            {"from": "human", "value": "One word only."},
            {"from": "gpt", "value": "Red."},
            {"from": "human", "value": "This is never answered."},
        ],
    },
]


def write(root: Path) -> None:
    """The JSON, and the images in the folders of their own sets."""
    for number, path in PICTURES.items():
        photo(number).save(root / layout.LLAVA_IMAGES / path)
    dump(root / layout.LLAVA, RECORDS)
