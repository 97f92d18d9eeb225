"""What the laboratory draws regions as."""

from __future__ import annotations

import pytest

from sail_lightning.data.sources import LaboratorySource
from sail_lightning.data.synthetic.grammar import PROMPTS
from sail_lightning.data.synthetic.laboratory import Laboratory
from sail_lightning.errors import SailUsageError
from sail_lightning.sample import Box, Mask, Point

TASKS = {"vres": 0.5, "describe": 0.5}


@pytest.mark.parametrize(("form", "kind"), [("mask", Mask), ("box", Box), ("point", Point)])
def test_one_form_can_be_chosen(form: str, kind: type) -> None:
    source = LaboratorySource("test", 30, tasks=TASKS, prompts={form: 1.0})
    drawn = [prompt for index in range(30) for prompt in source[index].prompts]
    assert len(drawn) >= 30 and {type(prompt) for prompt in drawn} == {kind}


def test_scenes_and_objects_are_the_same_whatever_they_are_drawn_as() -> None:
    masks, boxes = (
        LaboratorySource("test", 20, tasks={"describe": 1.0}, prompts={form: 1.0}) for form in ("mask", "box")
    )
    for index in range(20):
        assert (masks[index].image == boxes[index].image).all()
        assert masks[index].turns == boxes[index].turns


def test_left_out_it_is_as_it_was() -> None:
    plain, result = Laboratory(tasks=TASKS), Laboratory(tasks=TASKS, prompts=dict(PROMPTS))
    for index in range(10):
        one, other = plain[index], result[index]
        assert one.turns == other.turns and list(map(type, one.prompts)) == list(map(type, other.prompts))
    assert plain != result and PROMPTS == {"mask": 0.4, "box": 0.3, "point": 0.3}


def test_an_unknown_form_is_told() -> None:
    with pytest.raises(ValueError, match="unknown key 'circle' in prompts"):
        Laboratory(prompts={"circle": 1.0})


@pytest.mark.parametrize(
    ("settings", "result"),
    [
        ({"samples": -1}, "samples must be 1 or more, not -1"),
        ({"samples": 2, "min_objects": 200, "max_objects": 200}, "200 objects do not fit in 64 x 64 pixels"),
        ({"min_objects": 200, "max_objects": 200}, "200 objects do not fit in 64 x 64 pixels"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_told(settings: dict[str, int], result: str) -> None:
    with pytest.raises(SailUsageError, match=f"^LaboratorySource: {result}"):
        LaboratorySource(**settings)[0]  # type: ignore[arg-type]
