"""What the data module hands to validate, test and predict; training: `tests/callbacks/test_resume.py`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from inference_harness import picture, script, tiny_model
from PIL import Image

from sail_lightning import Box, PixelSAIL, Prediction
from sail_lightning.data.datamodule import SailDataModule, find_images
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.errors import SailError, SailUsageError

TEXT = "please segment the red circle."


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five images in two folders, one of them broken, and a text beside them."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(["b.png", "a.JPG", "more/c.png", "more/d.bmp"]):
        Image.fromarray(picture(index, 24 + 8 * index, 24)).save(folder / name)
    (folder / "broken.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def trainer(**settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return L.Trainer(accelerator="cpu", **(quiet | settings))


def predict(model: PixelSAIL, data: SailDataModule) -> list[list[Prediction]]:
    found: Any = trainer().predict(model, datamodule=data)
    return found


def names(answers: list[list[Prediction]]) -> list[str]:
    return [Path(answer.source).name for batch in answers for answer in batch]


# -- images ---------------------------------------------------------------------------------------------------------


def test_folders_are_searched_whole_and_in_order(pictures: Path) -> None:
    found = [path.relative_to(pictures).as_posix() for path in find_images(str(pictures))]
    assert found == ["a.JPG", "b.png", "broken.png", "more/c.png", "more/d.bmp"]


def test_files_and_folders_keep_the_order_in_which_they_are_named(pictures: Path) -> None:
    found = find_images([str(pictures / "b.png"), str(pictures / "more"), str(pictures / "a.JPG")])
    assert [path.name for path in found] == ["b.png", "c.png", "d.bmp", "a.JPG"]


def test_a_folder_that_is_called_like_an_image_is_none(pictures: Path) -> None:
    (pictures / "album.png").mkdir()
    Image.fromarray(picture(9)).save(pictures / "album.png" / "e.png")
    assert [path.name for path in find_images(str(pictures))][:2] == ["a.JPG", "e.png"]


def test_a_missing_name_is_a_fault(pictures: Path) -> None:
    with pytest.raises(SailError, match="no image or folder gone.png"):
        find_images([str(pictures), "gone.png"])


def test_a_folder_without_images_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SailError, match=r"no image in .*; known file name endings: .png"):
        find_images(str(tmp_path))


# -- predict ----------------------------------------------------------------------------------------------------------


def test_a_broken_image_is_reported_once_and_all_others_are_answered(
    tiny: PixelSAIL, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = SailDataModule(images=str(pictures), text=TEXT, eval_batch_size=2)
    with caplog.at_level(logging.WARNING), script(tiny):
        answers = predict(tiny, data)
    assert names(answers) == ["a.JPG", "b.png", "c.png", "d.bmp"]
    assert [len(batch) for batch in answers] == [2, 2]
    assert [answer.question for batch in answers for answer in batch] == [TEXT] * 4
    assert data.broken == [
        f"{pictures / 'broken.png'} is not a readable image (of no known format); replace or remove it"
    ]
    result = [record.getMessage() for record in caplog.records if "broken.png" in record.getMessage()]
    assert result == [f"skipped: {data.broken[0]}"]


def test_a_second_run_forgets_what_was_broken_before(tiny: PixelSAIL, pictures: Path) -> None:
    data = SailDataModule(images=str(pictures), text=TEXT)
    for _ in range(2):
        with script(tiny):
            predict(tiny, data)
        assert len(data.broken) == 1


def test_only_broken_images_give_no_answer(tiny: PixelSAIL, pictures: Path) -> None:
    data = SailDataModule(images=[str(pictures / "broken.png")], text=TEXT)
    assert not names(predict(tiny, data)) and len(data.broken) == 1


def test_a_prompt_outside_one_image_skips_that_image(tiny: PixelSAIL, pictures: Path) -> None:
    data = SailDataModule(images=str(pictures / "more"), text=TEXT, prompts=["box:0,45,9,60"])
    with script(tiny):
        answers = predict(tiny, data)
    assert names(answers) == ["d.bmp"]
    assert answers[0][0].prompts == (Box(0, 45, 9, 60),)
    assert len(data.broken) == 1 and "c.png: the prompt Box" in data.broken[0]


def test_a_wrong_question_stops_at_once(tiny: PixelSAIL, pictures: Path) -> None:
    with pytest.raises(SailUsageError, match="<Prompt2>"):
        predict(tiny, SailDataModule(images=str(pictures), text="describe <Prompt2> ."))


@pytest.mark.parametrize("given", [{}, {"images": "x.png"}, {"text": TEXT}, {"images": [], "text": TEXT}])
def test_predict_needs_images_and_a_question(given: dict[str, Any], tiny: PixelSAIL) -> None:
    with pytest.raises(SailUsageError, match=r"predict needs --data.images .* and --data.text"):
        predict(tiny, SailDataModule(**given))


def test_a_prompt_is_read_when_the_data_are_made() -> None:
    with pytest.raises(SailUsageError, match="'bx:1' is no prompt"):
        SailDataModule(prompts=["bx:1"])


# -- validate and test ------------------------------------------------------------------------------------------------


def test_all_questions_of_a_source_are_judged(tiny: PixelSAIL) -> None:
    source = LaboratorySource("val", samples=7)
    sizes: list[int] = []
    keep = L.pytorch.callbacks.LambdaCallback(
        on_test_batch_end=lambda trainer, module, outputs, *rest: sizes.append(len(outputs))
    )
    with script(tiny):
        figures = trainer(callbacks=[keep]).test(
            tiny, datamodule=SailDataModule(test=source, eval_batch_size=3), verbose=False
        )
    assert sizes == [3, 3, 1] and figures[0]
    assert all(name.startswith("test/") and 0 <= value <= 1 for name, value in figures[0].items())


def test_a_source_without_an_end_cannot_be_judged(tiny: PixelSAIL) -> None:
    with pytest.raises(SailUsageError, match="LaboratorySource has no end"):
        trainer().test(tiny, datamodule=SailDataModule(test=LaboratorySource("test")), verbose=False)


def test_verbs_name_the_source_that_they_lack(tiny: PixelSAIL) -> None:
    with pytest.raises(SailUsageError, match="test needs data.test"):
        trainer().test(tiny, datamodule=SailDataModule(), verbose=False)
    with pytest.raises(SailUsageError, match="fit needs data.train"):
        trainer(max_steps=1).fit(tiny_model(), datamodule=SailDataModule())
