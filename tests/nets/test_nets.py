"""What must not change when code moves: losses step by step, answers, and files that earlier versions wrote.

On the kind of machine that recorded them, results are equal to the last bit. On any machine, answers have the same
words and the losses of the run in float64 agree to `TOLERANCE`. Those of a run in float32 with Muon, which amplifies
the last bits of each product, are compared on the recording kind of machine only.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import DoublePrecision, Precision
from recorded_runs import ANSWERS, BEFORE, LOSSES, QUESTIONS, STEPS, answers, machine, read_losses, train

from sail_lightning import PixelSAIL
from sail_lightning.cli import main
from sail_lightning.data.sources import LaboratorySource
from sail_lightning.data.stream import AccumulationWindows, PackedStream
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.training.optim import MuonAdamW, WarmupCosine, parameter_groups

pytestmark = pytest.mark.filterwarnings("ignore:.* is now .*; the old name goes with the next version:FutureWarning")
"""The files that an earlier version wrote hold names of that version."""
TOLERANCE = 1e-6
"""Largest difference of a loss on another kind of machine, absolute or as a share of the loss."""
RECORDED = json.loads(LOSSES.read_text(encoding="utf-8"))
EXPECTED = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))
THE_SAME = machine() == RECORDED["machine"]
exact = pytest.mark.skipif(not THE_SAME, reason=f"float32 losses were recorded on {RECORDED['machine']}")


def assert_losses(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    """Equal here if this is the kind of machine that recorded them, else close."""
    assert [step.keys() for step in found] == [step.keys() for step in wanted]
    if THE_SAME:
        assert found == wanted
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("quickstart", marks=exact),
        "quickstart_float64",
        pytest.param("mixture_with_teachers", marks=[exact, pytest.mark.slow]),
    ],
)
def test_training_steps_give_the_recorded_losses(name: str, tmp_path: Path) -> None:
    found = train(name, tmp_path)
    assert len(found) == STEPS
    assert_losses(found, RECORDED[name])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param("quickstart", torch.float32, marks=exact), ("quickstart_float64", torch.float64)],
)
def test_a_plain_pytorch_loop_gives_the_losses_of_the_trainer(name: str, dtype: torch.dtype) -> None:
    precision = DoublePrecision() if dtype == torch.float64 else Precision()
    torch.manual_seed(0)
    with precision.module_init_context():
        model = PixelSAIL(
            backbone=SailQwen(size="tiny", intermediate_size=256),
            upsampler=DeconvUpsampler(),
            prompt_encoder=PromptInjection(num_prompts=4),
            mask_channels=64,
            max_side=64,
            max_new_tokens=64,
        )
        model.configure_model()
    model.configure_teachers()
    model.train()
    optimizer: torch.optim.Optimizer = (
        MuonAdamW(parameter_groups(model), lr=3e-3, adamw_lr=1.5e-3, weight_decay=0.05)
        if dtype == torch.float32
        else torch.optim.AdamW(parameter_groups(model), lr=1e-3)
    )
    schedule = WarmupCosine(optimizer, STEPS, warmup_ratio=0.03)
    source = LaboratorySource(split="train", max_objects=4, tasks={"refer": 1.0})
    batches = AccumulationWindows(PackedStream(source, model.encoder, 1200, packing_buffer_size=32), size=1)
    found = []
    for _, batch in zip(range(STEPS), batches, strict=False):
        with precision.forward_context():
            sums, counts = model.losses(batch)
        parts = {key: value / max(1.0, getattr(batch.counts, counts[key])) for key, value in sums.items()}
        loss = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        found.append({"train/loss": loss.item()} | {f"train/{key}": value.item() for key, value in parts.items()})
    assert_losses([dict(sorted(step.items())) for step in found], RECORDED[name])


@pytest.mark.slow
def test_sail_tiny_gives_the_recorded_answers() -> None:
    wanted = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    found = answers()
    assert len(found) == len(wanted) == QUESTIONS
    assert [(one["question"], one["text"]) for one in found] == [(one["question"], one["text"]) for one in wanted]
    if THE_SAME:
        assert found == wanted


@pytest.fixture(params=["plain", "lora"])
def earlier_run(request: pytest.FixtureRequest, workdir: Path) -> tuple[str, Path, Path]:
    """The name of a run of version 0.1.0 before its modules moved, its config.yaml and its last checkpoint."""
    if request.param == "lora":
        pytest.importorskip("peft")
    folder = workdir / request.param
    shutil.copytree(BEFORE / request.param, folder)
    checkpoint = folder / "last.ckpt"
    checkpoint.write_bytes(gzip.decompress((folder / "last.ckpt.gz").read_bytes()))
    return request.param, folder / "config.yaml", checkpoint


def answers_of(model: PixelSAIL) -> list[Any]:
    """What a model says to twelve held-out questions, its answers begun so that there are masks."""
    source = LaboratorySource(split="test", samples=12)
    found = model.predict_batch([source[index] for index in range(12)], answer_prefix="it is [SEG]. and")
    return [[one.text, [item["segmentation"] for item in one.to_coco()]] for one in found]


def test_an_earlier_checkpoint_loads_and_answers_as_before(earlier_run: tuple[str, Path, Path]) -> None:
    name, _, checkpoint = earlier_run
    assert answers_of(PixelSAIL.load_from_checkpoint(checkpoint).eval()) == EXPECTED[f"{name}_answers"]


def test_an_earlier_model_folder_loads_and_answers_as_before() -> None:
    assert answers_of(PixelSAIL.from_pretrained(BEFORE / "model-folder")) == EXPECTED["plain_answers"]


def test_an_earlier_run_resumes_from_its_own_config(earlier_run: tuple[str, Path, Path]) -> None:
    name, config, checkpoint = earlier_run
    steps = ("--trainer.max_steps=6", "--trainer.log_every_n_steps=1", "--name=resumed")
    assert main(["fit", "-c", str(config), "--ckpt_path", str(checkpoint), *steps]) == 0
    assert_losses(read_losses(Path("runs/resumed/version_0/metrics.csv")), EXPECTED[f"{name}_resumed"])


def test_an_earlier_checkpoint_becomes_a_model_folder_that_answers_as_before(
    earlier_run: tuple[str, Path, Path], workdir: Path
) -> None:
    name, _, checkpoint = earlier_run
    assert main(["convert", str(checkpoint), str(workdir / "folder")]) == 0
    assert answers_of(PixelSAIL.from_pretrained(workdir / "folder")) == EXPECTED[f"{name}_answers"]


def test_an_earlier_checkpoint_is_tested_from_the_command_line(earlier_run: tuple[str, Path, Path]) -> None:
    _, _, checkpoint = earlier_run
    assert main(["test", "--ckpt_path", str(checkpoint), "--data.test.samples=2", "--trainer.accelerator=cpu"]) == 0
    assert os.path.isfile("runs/test/version_0/report.md")
