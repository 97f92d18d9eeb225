"""What an expert learns from: masks that answers name, and their classes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_sail import blob, picture

from sail_lightning.data.sources import Source
from sail_lightning.data.sources.laboratory import LaboratorySource
from sail_lightning.errors import SailError
from sail_lightning.experts.instances import InstanceDataset, class_names, collate, named_masks
from sail_lightning.sample import Sample, Turn

ANSWER = "<p> a small Red circle </p> [SEG], <p> a white cross </p> [SEG], [SEG]."


class Listed(Source):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def length(self) -> int:
        return len(self.samples)


def sample(height: int = 24, width: int = 40, answer: str = ANSWER) -> Sample:
    masks = tuple(blob(height, width, seed) for seed in range(3))
    return Sample(picture(height, width), (Turn("?", answer, "caption", (0, 1, 2)),), masks, source="here", id="7")


def identity(size: tuple[int, int]) -> tuple[int, int]:
    return size


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (1, ["circle", "cross", "object"]),
        (2, ["red circle", "white cross", "object"]),
        (0, ["object", "object", "object"]),
    ],
)
def test_the_last_words_of_a_phrase_are_a_masks_class(words: int, names: list[str]) -> None:
    assert named_masks(sample(), words) == list(enumerate(names))


def test_a_mask_is_taken_once_and_a_name_wins_over_none() -> None:
    turns = (Turn("?", "it is [SEG].", "refer", (1,)), Turn("?", "<p> a star </p> [SEG].", "caption", (1,)))
    both = Sample(picture(8, 8), turns, (blob(8, 8), blob(8, 8, 1)))
    assert named_masks(both, 1) == [(1, "star")]
    assert named_masks(Sample(both.image, turns[::-1], both.masks), 1) == [(1, "star")]


def test_classes_of_the_laboratory_are_what_its_scenes_show() -> None:
    source = LaboratorySource(tasks={"caption": 1.0})
    assert class_names(source, 60, 1) == ["circle", "cross", "square", "triangle"]
    pairs = class_names(source, 300, 2)
    assert len(pairs) == 20 and "red circle" in pairs and "red triangle" not in pairs


def test_without_masks_there_is_nothing_to_learn() -> None:
    with pytest.raises(SailError, match="the first 1 records hold no mask"):
        class_names(Listed([Sample(picture(8, 8), (Turn("?", "nothing."),))]), 1, 1)


def test_instances_are_the_images_and_masks_at_the_experts_size() -> None:
    data = InstanceDataset(Listed([sample()]), ["circle", "cross"], 1, lambda size: (2 * size[0], 2 * size[1]), 1)
    found = data[0]
    assert found is not None
    assert found.pixels.shape == (3, 48, 80) and found.pixels.dtype == torch.uint8
    assert found.labels.tolist() == [0, 1], "the third has a class that is not known"
    doubled = np.kron(np.stack(sample().masks[:2]), np.ones((1, 2, 2), bool))
    assert np.array_equal(found.masks.numpy(), doubled)


def test_records_without_known_masks_are_left_out_of_batches() -> None:
    nothing = Sample(picture(24, 40), (Turn("?", "no."),))
    data = InstanceDataset(Listed([nothing, sample(), sample(32, 24)]), ["circle", "cross"], 1, identity, 3)
    assert data[0] is None
    batch = collate([data[place] for place in range(3)])
    assert batch is not None
    assert batch.pixels.shape == (2, 3, 32, 40)
    assert not batch.pixels[0, :, 24:].any() and not batch.pixels[1, :, :, 24:].any()
    assert [tuple(masks.shape) for masks in batch.masks] == [(2, 32, 40), (2, 32, 40)]
    assert torch.equal(batch.pixels[1, :, :, :24], torch.from_numpy(picture(32, 24)).permute(2, 0, 1))
    assert collate([None, None]) is None


def test_masks_of_another_size_are_told_by_record() -> None:
    wrong = Sample(picture(24, 40), sample().turns, tuple(blob(8, 8, seed) for seed in range(3)), source="s", id="9")
    with pytest.raises(SailError, match="s 9: its masks and its image have different sizes"):
        InstanceDataset(Listed([wrong]), ["circle"], 1, identity, 1)[0]


def test_each_pass_over_a_finite_source_is_shuffled_anew() -> None:
    source = Listed([sample(8 + 2 * number, 16) for number in range(7)])
    data = InstanceDataset(source, ["circle", "cross", "object"], 1, identity, 21, seed=3)
    whole = [one.pixels.shape[1] for one in (data[place] for place in range(21)) if one is not None]
    passes = [whole[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(one) for one in passes] == [[8, 10, 12, 14, 16, 18, 20]] * 3
    assert len({tuple(one) for one in passes}) > 1


def test_training_draws_another_record_where_one_has_no_masks_always_the_same() -> None:
    nothing = Sample(picture(24, 40), (Turn("?", "no."),))
    source = Listed([nothing, *(sample(8 + 2 * number, 16) for number in range(5)), nothing])

    def heights() -> list[int]:
        data = InstanceDataset(source, ["circle"], 1, identity, 14, seed=3)
        return [one.pixels.shape[1] for one in (data[place] for place in range(14)) if one is not None]

    assert len(heights()) == 14 and heights() == heights()
    with pytest.raises(SailError, match="100 records, drawn one after the other, hold no known mask"):
        InstanceDataset(Listed([nothing]), ["circle"], 1, identity, 1, seed=0)[0]


def test_a_dataset_goes_to_other_processes() -> None:
    data = InstanceDataset(Listed([sample()]), ["circle"], 1, identity, 1, seed=0)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[0].pixels, data[0].pixels)  # type: ignore[union-attr]
