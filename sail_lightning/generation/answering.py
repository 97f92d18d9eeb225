"""Questions to predictions with a model bundle, in torch alone: what `PixelSAIL.predict` does, without Lightning."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.errors import SailUsageError
from sail_lightning.generation.engine import generate
from sail_lightning.generation.prediction import Prediction
from sail_lightning.image.preprocessing import ExifImage, load_image
from sail_lightning.model.bundle import ModelBundle
from sail_lightning.sample import ImageRef, Prompt, Sample, Turn

Question = Sample | tuple[ImageRef | None, str] | tuple[ImageRef | None, str, Sequence[Prompt]]
"""A question in any accepted form: a sample (its last turn), or an image, a text and, if any, prompts."""


def answer_questions(
    bundle: ModelBundle, questions: Iterable[Question], max_new_tokens: int | None = None, answer_prefix: str = ""
) -> list[Prediction]:
    """Answers many questions together; the answers equal those to one question at a time.

    The model answers in eval mode and is left in the mode that it was in. An image that occurs twice is read once.

    Args:
        bundle: A built model with its tokenizer.
        questions: What is asked.
        max_new_tokens: Longest answer; None takes the bundle's own setting.
        answer_prefix: How every answer begins, such as `It is [SEG].`; it is part of the answer, masks included.

    Raises:
        SailError: an image is missing or broken, or a prompt covers nothing of it.
        SailUsageError: an empty text or one over the limit, a prompt id that is out of range, given twice or named
            without a prompt, `max_new_tokens` below 1.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SailUsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    encoder = bundle.encoder
    encoded = [
        encoder.encode(as_sample(question), answers=False, answer_prefix=answer_prefix) for question in questions
    ]
    training = bundle.model.training
    bundle.model.eval()
    try:
        return answer_encoded(bundle, encoded, max_new_tokens)
    finally:
        bundle.model.train(training)


def answer_encoded(
    bundle: ModelBundle, batch: Sequence[EncodedSample], max_new_tokens: int | None = None
) -> list[Prediction]:
    """Answers questions that are encoded already; the model is in eval mode."""
    start = time.perf_counter()
    answers = generate(bundle.model, bundle.tokens, batch, max_new_tokens or bundle.max_new_tokens)
    seconds = (time.perf_counter() - start) / max(1, len(batch))
    predictions = []
    images: dict[Any, NDArray[np.uint8]] = {}  # an image that several questions are about is decoded once
    for item, answer in zip(batch, answers, strict=True):
        sample = item.sample
        image = next(iter(sample.images), None)
        named = isinstance(image, str | Path | ExifImage)
        key = image if named else id(image)
        if image is not None and key not in images:
            images[key] = load_image(image)
        predictions.append(
            Prediction(
                text=bundle.tokens.decode(answer.ids),
                masks=answer.masks,
                image=images.get(key),
                question=sample.turns[-1].question,
                prompts=sample.prompts,
                source=str(image) if named else sample.id,
                finish=answer.finish,
                seconds=seconds,
                meta=sample.meta,
            )
        )
    return predictions


def as_sample(question: Question) -> Sample:
    """A question in any accepted form as a `Sample` with one open turn."""
    if isinstance(question, Sample):
        return question
    image, text, *rest = question
    prompts = tuple(rest[0]) if rest else ()
    name = str(Path(image)) if isinstance(image, str | Path) else ""
    return Sample(
        image=ExifImage(image) if isinstance(image, str | Path) else image,
        turns=(Turn(text),),
        prompts=prompts,
        source=name,
    )
