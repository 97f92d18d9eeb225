"""LLaVA: conversations with and without an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_writers import llava
from dataset_writers.scenes import dump

from sail_lightning.data.sources import Llava
from sail_lightning.data.sources.llava import conversation
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.sequence.tokenizer import SailTokenizer

ENCODER = Encoder(SailTokenizer("laboratory"), patch_size=16)


def said(*messages: str) -> list[dict[str, str]]:
    """Messages such as `human: hello`."""
    return [dict(zip(("from", "value"), message.split(": ", 1), strict=True)) for message in messages]


def test_llava_reads_questions_and_answers_with_their_image(data_root: Path) -> None:
    source = Llava()
    assert source.length == len(llava.RECORDS)
    sample = source[0]
    assert sample.image == str(data_root / "llava/images" / llava.PICTURES[750]) and sample.id == "000000000750"
    assert [(turn.question, turn.answer, turn.task) for turn in sample.turns] == [
        ("What is on the left?", "A thing.", "chat"),
        ("And on the right?", "Another thing, naïvely drawn.", "chat"),
    ]
    assert source[1].turns[0].question == "Who wrote this book?"
    assert all(source[index] == source.full_record(index) for index in range(source.length))


def test_e28_a_conversation_without_an_image_passes(data_root: Path) -> None:
    sample = Llava()[2]
    assert sample.image is None
    encoded = ENCODER.encode(sample)
    assert len(encoded.patches) == 0 and encoded.image_size is None


def test_every_record_can_be_laid_out(data_root: Path) -> None:
    source = Llava()
    assert [len(ENCODER.encode(source[index]).patches) > 0 for index in range(3)] == [True, True, False]


def test_images_are_known_by_name_and_none_is_none(data_root: Path) -> None:
    assert [bool(picture) for picture in Llava().image_keys()] == [True, True, False]


def test_answers_before_the_first_question_are_dropped_and_questions_in_a_row_are_one(data_root: Path) -> None:
    assert conversation(said("gpt: x", "gpt: y", "human: a", "human: <image>\nb", "gpt: c", "human: d")) == [
        ("a\nb", "c")
    ]
    (turn,) = Llava()[2].turns
    assert (turn.question, turn.answer) == ("Name a colour.\nOne word only.", "Red.")


@pytest.mark.parametrize("text", ["<image>\nWhat?", "What?\n<image>", "<image>What?", "\n<image>\nWhat?"])
def test_the_mark_of_the_image_is_taken_out(text: str) -> None:
    assert conversation([{"from": "human", "value": text}, *said("gpt: This.")]) == [("What?", "This.")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": 7, "conversations": said("system: be nice", "human: a", "gpt: b")}, "7: message 1 is from 'system'"),
        ({"id": 7, "conversations": said("human: a")}, "7: no question with an answer; give the record one"),
        ({"id": 7, "conversations": said("gpt: a")}, "7: no question with an answer"),
        ({"id": 7, "conversations": []}, "7: no question with an answer"),
        ({"id": 7}, "7: no question with an answer"),
        ({"id": 7, "conversations": [{"from": "human"}]}, "7: the key 'value' is missing; fix the record"),
        ({"conversations": [{"value": "a"}]}, "record 1: the key 'from' is missing"),
        (None, "record 1: no question with an answer"),
    ],
)
def test_a_broken_record_is_told_by_name_and_the_others_are_read(record: Any, message: str, tmp_path: Path) -> None:
    good = {"id": "good", "conversations": said("human: a", "gpt: b")}
    source = Llava(str(dump(tmp_path / "llava.json", [good, record, good])))
    with pytest.raises(SailError, match=f"llava.json {message}"):
        source[1]
    assert source[2].turns[0].answer == "b"
