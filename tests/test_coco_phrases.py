"""`examples/coco_phrases.py`: phrases that fit exactly one object, and its mask."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sail_lightning.errors import SailError

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A source over one photo of 100 x 80 pixels with the given objects: category, box, more."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    coco_phrases = pytest.importorskip("coco_phrases")

    def source(*objects: tuple[int, tuple[int, int, int, int], dict[str, Any]], **settings: Any) -> Any:
        annotations = [
            {
                "id": place,
                "image_id": 7,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "segmentation": [corners(*box)],
                **more,
            }
            for place, (category, box, more) in enumerate(objects)
        ]
        content = {
            "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
            "annotations": annotations,
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return coco_phrases.CocoPhrases(str(path), str(tmp_path), **settings)

    yield source
    sys.modules.pop("coco_phrases", None)


def corners(x: int, y: int, width: int, height: int) -> list[int]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def questions(source: Any) -> list[str]:
    return [turn.question for turn in source[0].turns]


def test_a_single_object_is_named_by_its_category_and_its_mask_is_its_polygon(make: Any) -> None:
    source = make((1, (10, 20, 30, 40), {}))
    (turn,) = source[0].turns
    assert (turn.question, turn.answer, turn.targets) == ("Please segment the dog.", "It is [SEG].", (0,))
    wanted = np.zeros((80, 100), bool)
    wanted[20:60, 10:40] = True
    assert np.array_equal(source[0].masks[0](), wanted)
    assert (source.length, source[0].id, source[0].image.name) == (1, "7", "a.jpg")


def test_two_of_a_kind_are_told_apart_by_where_they_are(make: Any) -> None:
    source = make((1, (0, 20, 30, 30), {}), (1, (60, 22, 20, 30), {}), (2, (30, 50, 20, 20), {}))
    assert questions(source) == [
        "Please segment the left dog.",
        "Please segment the right dog.",
        "Please segment the cat.",
    ]


def test_what_cannot_be_told_apart_is_not_asked_about(make: Any) -> None:
    crowd = make((1, (0, 0, 30, 30), {"iscrowd": 1}), (1, (60, 0, 30, 30), {}), (2, (0, 40, 30, 30), {}))
    assert questions(crowd) == ["Please segment the cat."]
    close = make((1, (20, 20, 30, 30), {}), (1, (22, 22, 30, 30), {}), (2, (0, 60, 20, 20), {}))
    assert questions(close) == ["Please segment the cat."]
    tiny = make((1, (0, 0, 4, 4), {}), (2, (0, 60, 20, 20), {}))
    assert questions(tiny) == ["Please segment the cat."]


def test_for_a_test_each_question_stands_alone_with_its_own_mask(make: Any) -> None:
    objects = (1, (0, 20, 30, 30), {}), (2, (30, 50, 20, 20), {})
    together, apart = make(*objects), make(*objects, separate=True)
    assert (together.length, apart.length) == (2, 2)
    for place, sample in enumerate([apart[0], apart[1]]):
        (turn,), (mask,) = sample.turns, sample.masks
        assert (turn.question, turn.targets) == (together[0].turns[place].question, (0,))
        assert np.array_equal(mask(), together[0].masks[place]())


def test_each_conversation_on_a_photo_begins_with_another_phrase(make: Any) -> None:
    source = make((1, (0, 20, 30, 30), {}), (2, (30, 50, 20, 20), {}))
    first, second = ([turn.question for turn in source[place].turns] for place in range(2))
    assert second == first[::-1]
    for left, right in zip(source[0].masks, reversed(source[1].masks), strict=True):
        assert np.array_equal(left(), right())


def test_limits_and_faults(make: Any, tmp_path: Path) -> None:
    assert len(make((1, (0, 0, 30, 30), {}), (2, (50, 0, 40, 40), {}), phrases=1)[0].turns) == 1
    with pytest.raises(SailError, match="no photo with an object that can be named"):
        make((1, (0, 0, 2, 2), {}))
    with pytest.raises(SailError, match="instances.json: a record lacks 3, or names an absent one"):
        make((3, (0, 0, 30, 30), {}))
    (tmp_path / "instances.json").write_text("{}")
    from coco_phrases import CocoPhrases

    with pytest.raises(SailError, match="no COCO instances file"):
        CocoPhrases(str(tmp_path / "instances.json"), str(tmp_path))
    with pytest.raises(SailError, match="no annotations"):
        CocoPhrases(str(tmp_path / "none.json"), str(tmp_path))
