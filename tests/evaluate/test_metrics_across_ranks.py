"""Two ranks report what one would."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torchmetrics.classification import BinaryJaccardIndex
from torchmetrics.text import CharErrorRate

from sail_lightning.evaluate import Cider, EvalRecord, Judge, MaskAveragePrecision, MeanScore, TorchMetric

SECONDS = 60


class Emptiness(MeanScore):
    """Has something to say about answers without a mask only."""

    takes = "masks"

    def answer_score(self, record: EvalRecord) -> float | None:
        return None if len(record.target) and record.masks()[1].any() else 0.25


def judge() -> Judge:
    own = {"jaccard": BinaryJaccardIndex(), "cer": TorchMetric(CharErrorRate(), "text"), "empty": Emptiness()}
    return Judge(metrics=own)


def answer(metrics: Judge, index: int) -> None:
    """Adds answer `index` of a fixed stream. Multiple choice comes at even indices only, captions only at 7."""
    rng = np.random.default_rng(index)
    masks, targets = rng.random((2, 9, 7)) < 0.4, rng.random((2, 9, 7)) < rng.choice([0.0, 0.5])
    task = "caption" if index == 7 else ("choice", "refer", "vres", "describe")[index % 4]
    truth = {"choice": "B", "caption": "<p> red </p> [SEG] <p> blue </p> [SEG]"}.get(task, "red")
    text = ("B.", "red", "<p> red </p> [SEG]")[index % 3]
    by_masks = task in ("caption", "refer", "vres")
    fields: dict[str, Any] = {"pred": masks, "target": targets} if by_masks else {}
    fields |= {"true_answer": truth, "choices": ("red", "blue")} if task == "choice" else {"reference": (truth,)}
    if task == "caption":
        fields["phrases"] = ("red", "blue")
    metrics.update(EvalRecord(prediction=text, listed=by_masks, extra={"task": task}, **fields))


def gathered(ranks: range) -> dict[str, float]:
    """The figures that need all samples at once, of a fixed stream; each rank takes the indices that `ranks` names."""
    cider, precision = Cider(), MaskAveragePrecision()
    captions = ("a red car", "two dogs on the grass", "the man", "a red dog", "a car")
    for index in ranks:
        rng = np.random.default_rng(index)
        cider.update(EvalRecord(prediction=captions[index % 5], reference=(captions[(index + 3) % 5], "a dog")))
        target = rng.random((2, 5, 5)) < 0.5
        pred = target ^ (rng.random((2, 5, 5)) < 0.2)
        precision.update(EvalRecord(f"picture {index}", pred=pred, target=target))
    return {key: float(value) for metric in (cider, precision) for key, value in metric.compute().items()}


def work(rank: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = judge()
    for index in range(rank, 16, 2):
        answer(metrics, index)
    first = metrics.compute()
    if rank == 0:  # rank 1 has nothing new, yet must take part again
        answer(metrics, 16)
    second = metrics.compute()
    metrics.reset()
    if rank == 1:
        answer(metrics, 7)
    shared = gathered(range(rank, 7, 2))
    one_sided = gathered(range(5) if rank == 0 else range(0))  # rank 1 has nothing, yet must take part
    pipe.send((first, second, metrics.compute(), shared, one_sided))
    dist.destroy_process_group()


def alone(*indices: int) -> dict[str, float]:
    metrics = judge()
    for index in indices:
        answer(metrics, index)
    return metrics.compute()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and binds gloo to the loopback interface by its Linux name")
def test_two_ranks_report_the_figures_of_one_to_the_last_bit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # spawned processes would import torch again
    pipes, processes = [], []
    for rank in range(2):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(rank, str(tmp_path / "store"), sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        results = []
        for pipe in pipes:
            assert pipe.poll(SECONDS), "a rank still waits: not all ranks take part in the same collectives"
            results.append(pipe.recv())
        for process in processes:
            process.join(SECONDS)
    finally:
        for process in processes:
            process.kill()
    assert results[0] == results[1]
    assert results[0][:3] == (alone(*range(16)), alone(*range(17)), alone(7))
    assert results[0][3:] == (gathered(range(7)), gathered(range(5)))
    assert all(0 < figure < 10 for figure in results[0][3].values())
    assert {"ciou", "n_acc", "vres_giou", "exact_match", "mcq_accuracy", "gcg_miou", "jaccard", "cer"} <= set(
        results[0][0]
    )
