"""Visual prompts as they are written on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.data.prompt_syntax import FORMS, parse_prompt
from sail_lightning.errors import SailUsageError
from sail_lightning.sample import Box, Mask, Point, Prompt, Scribble

NUMBERS = st.floats(-1e6, 1e6).map(lambda number: number + 0.0)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("box:10,20,200,180", Box(10, 20, 200, 180)),
        ("2=box: 1.5, 2 ,3,4", Box(1.5, 2, 3, 4, id=2)),
        ("point:40,60", Point(40, 60)),
        ("0=point:-1,1e2", Point(-1, 100, id=0)),
        ("scribble:1,2,3,4,5,6", Scribble(((1, 2), (3, 4), (5, 6)))),
        ("mask:cat.png", Mask("cat.png")),
        ("14=mask: a b,c=d:e.png ", Mask("a b,c=d:e.png", id=14)),
    ],
)
def test_forms(text: str, prompt: Prompt) -> None:
    assert parse_prompt(text) == prompt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "box",
        "box:",
        "box:1,2,3",
        "box:1,2,3,4,5",
        "box:1,2,1,4",
        "box:5,2,1,4",
        "box:a,b,c,d",
        "box:0,0,inf,inf",
        "box:nan,0,1,1",
        "point:1",
        "point:1,2,3",
        "point:nan,1",
        "scribble:1,2",
        "scribble:1,2,3",
        "circle:1,2,3",
        "-1=point:1,2",
        "x=point:1,2",
        "mask:",
    ],
)
def test_other_forms_are_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(SailUsageError) as caught:
        parse_prompt(text)
    message = str(caught.value)
    assert repr(text) in message and message.endswith(FORMS) and "\n" not in message


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=6), st.none() | st.integers(0, 99))
def test_numbers_survive_being_written(points: list[tuple[float, float]], id: int | None) -> None:
    name = "" if id is None else f"{id}="
    written = ",".join(f"{x!r},{y!r}" for x, y in points)
    assert parse_prompt(f"{name}scribble:{written}") == Scribble(tuple(points), id)
    x, y = points[0]
    assert parse_prompt(f"{name}point:{x!r},{y!r}") == Point(x, y, id)
