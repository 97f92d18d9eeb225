"""`CoordinatePrompts`: injection, and where the region lies; and the boxes that encoding gives each region."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sail import packed, picture, tiny
from torch import nn

from sail_lightning.interfaces import Dims, Regions
from sail_lightning.plugins.prompt_encoders import CoordinatePrompts, PromptInjection
from sail_lightning.plugins.prompt_encoders.coordinates import fourier
from sail_lightning.sample import Box, Mask, Point, Prompt, Sample, Scribble, Turn

WIDTH = 6


def built(kind: type[PromptInjection], **settings: Any) -> PromptInjection:
    torch.manual_seed(0)
    encoder = kind(**settings)
    encoder.build(Dims(hidden_size=WIDTH, patch_size=16))
    return encoder


def regions() -> Regions:
    """Region 0 on rows 1 and 2, named at 7; region 1 on row 2, named at 8 and 9."""
    rows = ([40, 41], [1, 2, 2], [0, 0, 1], [7, 8, 9], [0, 1, 1])
    boxes = torch.tensor([[0.0, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 0.75]])
    return Regions(*(torch.tensor(listed) for listed in rows), boxes)


def test_it_starts_where_injection_does() -> None:
    embeddings, tokens = torch.randn(12, WIDTH), torch.randn(2, WIDTH)
    ours, plain = (built(kind)(embeddings, regions(), tokens) for kind in (CoordinatePrompts, PromptInjection))
    assert torch.equal(ours, plain)


def test_the_box_is_added_to_its_patches_and_to_the_words_that_name_it() -> None:
    encoder, plain = built(CoordinatePrompts), built(PromptInjection)
    assert isinstance(encoder, CoordinatePrompts)
    nn.init.normal_(encoder.place.weight)
    embeddings, tokens = torch.randn(12, WIDTH), torch.randn(2, WIDTH)
    expected = plain(embeddings, regions(), tokens).clone()
    places = fourier(regions().boxes, 6) @ encoder.place.weight.T
    for row, region in ((1, 0), (2, 0), (2, 1), (7, 0), (8, 1), (9, 1)):
        expected[row] += places[region]
    torch.testing.assert_close(encoder(embeddings, regions(), tokens), expected)


def test_coordinates_turn_from_half_a_turn_on() -> None:
    found = fourier(torch.tensor([[0.0, 0.25, 0.5, 1.0]]), 2)[0].view(2, 4, 2)  # sine and cosine, coordinate, frequency
    angles = [[math.pi * x * 2**j for j in range(2)] for x in (0.0, 0.25, 0.5, 1.0)]
    torch.testing.assert_close(found[0], torch.tensor(angles).sin())
    torch.testing.assert_close(found[1], torch.tensor(angles).cos())


def test_half_precision_does_not_blur_the_place() -> None:
    near = torch.tensor([[0.500, 0.5, 0.5, 0.5], [0.501, 0.5, 0.5, 0.5]])
    assert not torch.equal(*fourier(near, 6).bfloat16())


def ring() -> np.ndarray:
    mask = np.zeros((24, 40), bool)
    mask[3, 10:30] = mask[20, 10] = True
    return mask


@pytest.mark.parametrize(
    ("prompt", "box"),
    [
        (Box(10, 6, 20, 24), (10, 6, 20, 24)),
        (Box(-5, 2.5, 50, 30), (0, 2, 40, 24)),  # what lies in the image, whole pixels
        (Point(39, 0), (39, 0, 40, 1)),
        (Mask(ring()), (10, 3, 30, 21)),
        (Scribble(((4, 5), (8, 5), (8, 9))), (4, 5, 9, 10)),
    ],
)
def test_a_region_has_the_box_around_its_pixels(prompt: Prompt, box: tuple[float, ...]) -> None:
    model = tiny()
    batch = packed(model, [Sample(picture(24, 40), (Turn("describe <Prompt0>.", "a."),), prompts=(prompt,))])
    wanted = torch.tensor([box]) / torch.tensor([40, 24, 40, 24])
    torch.testing.assert_close(batch.regions.boxes, wanted)


def test_boxes_stay_with_their_regions_in_a_batch() -> None:
    model = tiny()
    turns = (Turn("describe <Prompt0> and <Prompt1>.", "a."),)
    first = Sample(picture(24, 40), turns, prompts=(Point(0, 0, id=1), Box(0, 0, 40, 24, id=0)))
    batch = packed(model, [first, Sample(None, (Turn("hello.", "a."),)), first])
    assert batch.regions.boxes.shape == (4, 4)
    assert torch.equal(batch.regions.boxes[:2], batch.regions.boxes[2:])
    assert batch.regions.boxes[1].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_regions_on_the_same_patch_are_told_apart_and_do_not_share_what_was_read() -> None:
    model = tiny(prompt_encoder=CoordinatePrompts(num_prompts=4)).eval()
    for parameter in (model.model.prompt_encoder.place.weight, *model.model.mask_head.parameters()):
        nn.init.normal_(parameter)
    image = picture(24, 40)
    questions = [(image, "please segment <Prompt0>.", [Point(*place)]) for place in ((1, 1), (6, 6), (1, 1))]
    together = model.predict_batch(questions, 2, "it is [SEG].")
    alone = [model.predict(*question, max_new_tokens=2, answer_prefix="it is [SEG].") for question in questions]
    assert [one.text for one in together] == [one.text for one in alone]
    assert all(np.array_equal(one.masks, other.masks) for one, other in zip(together, alone, strict=True))
    assert not np.array_equal(alone[0].masks, alone[1].masks)
