"""Makes a record of a model's prediction and its truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sail_lightning.errors import SailError
from sail_lightning.evaluate.benchmarks import MASK_TASKS, Benchmark, benchmark_of, check_task
from sail_lightning.evaluate.metrics.masks import ignored
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.image.preprocessing import load_mask
from sail_lightning.sample import BoolMask
from sail_lightning.sequence.chat_template import phrases_of

if TYPE_CHECKING:
    from sail_lightning.encoding.transform import EncodedSample
    from sail_lightning.generation.prediction import Prediction


def record_of(
    item: EncodedSample, prediction: Prediction, benchmark: Benchmark = None, number: int | None = None
) -> EvalRecord:
    """Returns the record of an answer to the last turn of a sample. Masks stay pixels; nothing is run-length coded.

    Args:
        item: The question; its sample holds the truth.
        prediction: The model's answer.
        benchmark: Name of the benchmark, a name for each task, or None, which names it by the task.
        number: Index of the sample in its source, None if it is not known.

    Raises:
        SailError: A true mask is not of the image's size; the message names the sample.
        SailUsageError: The benchmark cannot judge questions of this task.
    """
    sample, turn = item.sample, item.sample.turns[-1]
    name = benchmark_of(benchmark, turn.task)
    check_task(name, turn.task)
    targets = _true_masks(item)
    fields: dict[str, Any] = {"listed": turn.task in MASK_TASKS or not turn.answer}
    if fields["listed"]:
        nothing = turn.task == "refer" and not any(mask.any() for mask in targets)
        fields |= {"pred": prediction.masks, "target": () if nothing else tuple(targets)}
        fields["ignore"] = ignored(sample, turn.targets)
    if turn.task == "caption":
        fields |= {"reference": (sample.meta.get("caption", turn.answer),), "phrases": tuple(prediction.phrases)}
        fields["reference_phrases"] = phrases_of(turn.answer)
    elif turn.task == "choice":
        fields |= {"choices": tuple(turn.choices), "true_answer": turn.answer}
    elif turn.task in ("describe", "chat"):
        fields["reference"] = (turn.answer,)
    return EvalRecord(
        id=sample.id or ("" if number is None else str(number)),
        benchmark=name,
        question=turn.question,
        prediction=prediction.text,
        size=item.image_size,
        extra={"task": turn.task} if number is None else {"number": number, "task": turn.task},
        **fields,
    )


def _true_masks(item: EncodedSample) -> list[BoolMask]:
    sample, size = item.sample, item.image_size or (0, 0)
    masks = [load_mask(sample.masks[index]) for index in sample.turns[-1].targets]
    if wrong := [mask.shape for mask in masks if mask.shape != size]:
        name = " ".join(part for part in (sample.source, sample.id) if part)
        raise SailError(f"{name}: a mask of {wrong[0]} pixels (height, width), but the image has {size}")
    return masks
