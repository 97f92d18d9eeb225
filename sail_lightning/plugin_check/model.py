"""Checks of any plugin inside a tiny Pixel-SAIL: training, precision, checkpoints and model folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from sail_lightning.model.model import ModelOutput
from sail_lightning.module import PixelSAIL
from sail_lightning.plugin_check.check import Fault, Subject, require
from sail_lightning.plugin_check.tiny import noise, packed, records, text_records
from sail_lightning.sample import Box, Sample

WITHOUT_IMAGES = ("model.upsampler.", "model.mask_head.", "model.prompt_encoder.", "distill.")
"""Name prefixes of the parameters that a batch of text only does not train."""
AUTOCAST = 0.05
"""Largest relative difference that bfloat16 autocast may make to a loss."""


def gives_every_parameter_a_gradient(subject: Subject) -> None:
    """In a batch of images, prompts, masks and text, every weight of the model has a gradient."""
    found = _gradients(subject.model(), records())
    missing = [name for name, grad in found.items() if grad is None or not grad.any()]
    require(not missing, f"no gradient reaches {_some(missing)}; every parameter must take part in the output")
    broken = [name for name, grad in found.items() if grad is not None and not grad.isfinite().all()]
    require(not broken, f"the gradient of {_some(broken)} is not finite")


def gives_zero_gradients_without_images(subject: Subject) -> None:
    """In a batch of text only, the parts for images have gradients of zero, for which parallel processes wait."""
    found = _gradients(subject.model(), text_records())
    missing = [name for name, grad in found.items() if grad is None]
    require(
        not missing,
        f"in a batch of text only, {_some(missing)} has no gradient at all, where zero is expected; "
        "compute with zero rows instead of leaving the weights out",
    )
    moved = [
        name for name, grad in found.items() if name.startswith(WITHOUT_IMAGES) and grad is not None and grad.any()
    ]
    require(not moved, f"in a batch of text only, {_some(moved)} has a gradient that is not zero")


def computes_in_bfloat16(subject: Subject) -> None:
    """A model whose weights are bfloat16 gives finite bfloat16 outputs, losses and gradients."""
    model = subject.model(torch.bfloat16)
    output = model.model(packed(model, records()), taps={"vision", "mask"})
    others = sorted({str(tensor.dtype) for tensor in _outputs(output)} - {"torch.bfloat16"})
    require(not others, f"a model of bfloat16 gives outputs of {', '.join(others)}")
    require(all(tensor.isfinite().all() for tensor in _outputs(output)), "a model of bfloat16 gives infinite outputs")
    broken = [name for name, grad in _gradients(model, records()).items() if grad is None or not grad.isfinite().all()]
    require(not broken, f"in bfloat16 the gradient of {_some(broken)} is missing or not finite")


def agrees_under_autocast(subject: Subject) -> None:
    """Under bfloat16 autocast losses stay about the same, and every weight has a finite gradient."""
    model = subject.model()
    batch = packed(model, records())
    exact, _ = model.losses(batch)
    with torch.autocast(subject.device, torch.bfloat16):
        sums, _ = model.losses(batch)
    for name, value in sums.items():
        ours, wanted = value.item(), exact[name].item()
        require(
            abs(ours - wanted) <= AUTOCAST * abs(wanted),
            f"under bfloat16 autocast the {name} loss is {ours:.4g} instead of {wanted:.4g}",
        )
    _backward(sums.values())
    broken = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    require(not broken, f"under bfloat16 autocast the gradient of {_some(broken)} is missing or not finite")


def comes_back_from_a_checkpoint(subject: Subject) -> None:
    """A Lightning checkpoint restores the same model, and contains no teachers."""
    model = subject.model()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
        torch.manual_seed(1)  # weights that are initialised instead of restored must differ
        again = PixelSAIL.load_from_checkpoint(path, map_location=torch.device(subject.device))
        stored = torch.load(path, weights_only=True)["state_dict"]
    _require_same(model, again, "a checkpoint")
    require(not list(again.distill.parameters()), "a loaded checkpoint has teachers before training begins")
    again.configure_teachers()
    ours, theirs = model.distill.state_dict(), again.distill.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[key].cpu(), theirs[key].cpu()) for key in ours)
    require(same, "the projections to teachers do not come back from a checkpoint")
    extra = sorted(stored.keys() - model.state_dict().keys())
    require(not extra, f"a checkpoint holds {_some(extra)}, which is no weight of the model")


def comes_back_from_a_model_folder(subject: Subject) -> None:
    """`save_pretrained` and `from_pretrained` restore the same model, and the folder contains no teachers."""
    model = subject.model()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        again = PixelSAIL.from_pretrained(model.save_pretrained(Path(folder) / "model")).to(subject.device)
    _require_same(model, again, "a model folder")
    require(not list(again.distill.parameters()), "a model folder holds teachers")


def _require_same(first: PixelSAIL, second: PixelSAIL, where: str) -> None:
    """Requires that two models have the same weights, outputs and answers."""
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    if lost := sorted(ours.keys() ^ theirs.keys()):
        raise Fault(f"{_some(lost)} does not come back from {where}")
    changed = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
    require(not changed, f"{_some(changed)} comes back from {where} with other values")
    with torch.no_grad():
        pairs = zip(*(_outputs(m.eval().model(packed(m, records()))) for m in (first, second)), strict=True)
        equal = all(torch.equal(a, b) for a, b in pairs)
    require(
        equal,
        f"after {where} the model gives other outputs with the same weights; something that matters is in no "
        "parameter, no persistent buffer and no argument",
    )
    answers = [m.predict(noise(20, 30), "please segment <Prompt0>.", [Box(1, 2, 15, 14)]) for m in (first, second)]
    same = answers[0].text == answers[1].text and bool((answers[0].masks == answers[1].masks).all())
    require(same, f"after {where} the model gives another answer")


def _outputs(output: ModelOutput) -> list[Tensor]:
    groups = [group.maps for group in (*output.vision, *output.mask)]
    assert output.logits is not None
    return [output.hidden, output.logits, *output.mask_logits, *groups]


def _gradients(model: PixelSAIL, samples: list[Sample]) -> dict[str, Tensor | None]:
    """Returns the gradients of the sum of all losses, by parameter."""
    model.zero_grad()
    sums, _ = model.losses(packed(model, samples))
    _backward(sums.values())
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _backward(sums: Iterable[Tensor]) -> None:
    torch.stack([value.float() for value in sums]).sum().backward()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
