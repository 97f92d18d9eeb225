"""The model card (README.md) of a model folder: the same text for the same model, on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import yaml
from torch import Tensor

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate.table import markdown_table

if TYPE_CHECKING:
    from sail_lightning.module import PixelSAIL

Figures = Mapping[str, Mapping[str, float | str]]
"""Rows of a table of metrics by name; `protocol` in a row names the protocol of its figures."""
Data = Mapping[str, str] | Sequence[str]
"""What a model was trained on, with the licence of each where it is known."""

TAGS = ["pixel-sail", "sail-lightning", "image-segmentation", "referring-segmentation", "visual-prompts"]
UNSTATED = "not stated"
PROTOCOLS = {
    "default": "the definitions of `sail_lightning.evaluate`",
    "official": "the official code's definitions, faults included, for comparison with published figures",
}


def model_card(
    model: PixelSAIL,
    config: str,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metrics: Figures | None = None,
    data: Data | None = None,
    licence: str | None = None,
) -> str:
    """A card in Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        model: built.
        config: its settings as YAML.
        state: the tensors that are stored, by name.
        dtype: they are stored in; None is their own.
        metrics: figures by row (data set and split).
        data: training data, with licences.
        licence: of the weights, such as `Apache-2.0`.

    Raises:
        SailUsageError: metrics or data of another form.
    """
    front = {
        "license": (licence or "unknown").lower().replace(" ", "-"),
        "library_name": "sail-lightning",
        "pipeline_tag": "image-text-to-text",
        "tags": TAGS,
    }
    sections = {
        "Load it": LOAD,
        "Parts": _parts(model),
        "Parameters": _parameters(state, dtype),
        "Data": _data(data, model),
        "Metrics": _metrics(metrics),
        "Licences": f"- Weights: {licence or UNSTATED}.\n- Data: see above; each set keeps the licence of its owner.",
        "Limits": _limits(model),
        "Settings": f"```yaml\n{config}```",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# A Pixel-SAIL model\n\n{WHAT}\n\n{body}\n"


WHAT = """\
One transformer that reads pixels and words as one sequence and answers in words and masks: every `[SEG]` in an answer
stands for a mask. Visual prompts (points, boxes, scribbles, masks) are named `<Prompt0>`, `<Prompt1>`, ... in the
question. The method is that of "Pixel-SAIL: Single Transformer For Pixel-Grounded Understanding" (2025)."""

LOAD = """\
The folder holds settings, weights (safetensors) and a tokenizer: no pickle, no code.

```python
from sail_lightning import PixelSAIL
answer = PixelSAIL.from_pretrained("path/to/this/folder").predict("photo.jpg", "Please segment the red car.")
answer.text, answer.masks
```"""


def _parts(model: PixelSAIL) -> str:
    sail = model.model
    parts = {"backbone": sail.backbone, "upsampler": sail.upsampler, "prompt_encoder": sail.prompt_encoder}
    lines = ["| part | plugin | what it does |", "| --- | --- | --- |"]
    for name, plugin in parts.items():
        foreign = not type(plugin).__module__.startswith("sail_lightning.")
        needs = "not part of sail_lightning: give its file with --plugins" if foreign else ""
        what = (type(plugin).__doc__ or "").strip().partition("\n")[0]
        lines.append(f"| {name} | `{type(plugin).__name__}` | {needs or what} |")
    return "\n".join(lines)


def _parameters(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    counts: dict[str, int] = {}
    for name, value in state.items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + value.numel()
    rows = counts | {"total": sum(counts.values())}
    lines = ["| part | weights |", "| --- | ---: |", *(f"| {name} | {count:,} |" for name, count in rows.items())]
    types = sorted({str(dtype if dtype and v.is_floating_point() else v.dtype)[6:] for v in state.values()})
    return (
        "\n".join(lines)
        + f"\n\nStored as {', '.join(types)}. What is shared, such as a tied language head, counts once."
    )


def part_of(name: str) -> str:
    """The part of the network that a tensor belongs to: layers together, the backbone in its own parts.

    `backbone.model.layers.0.mlp.up_proj.weight` is of `backbone.model.layers`, `mask_head.seg_projector.0.bias` of
    `mask_head`.
    """
    owners = name.split(".")[:-1]
    depth = next((place for place, owner in enumerate(owners) if owner.isdigit()), len(owners))
    return ".".join(owners[: min(depth, 3 if owners[0] == "backbone" else 1)])


def _data(data: Data | None, model: PixelSAIL) -> str:
    if isinstance(data, str):
        raise SailUsageError(f"data is a list of names, or names with their licences, not the text {data!r}")
    licences = data if isinstance(data, Mapping) else dict.fromkeys(data or (), "")
    lines = [f"- {name}: {licence or f'licence {UNSTATED}'}" for name, licence in licences.items()]
    teachers = [f"{name} (`{type(teacher).__name__}`)" for name, teacher in model.distill.teachers.items()]
    if teachers:
        lines.append(
            f"- Distilled from {', '.join(teachers)}: seen in training only, and not in this folder; their licences "
            "may bind a model that learned from them"
        )
    return "\n".join(lines) or f"The training data are {UNSTATED}."


def _metrics(metrics: Figures | None) -> str:
    if not metrics:
        return "None were given when this folder was written."
    rows: dict[str, dict[str, float]] = {}
    protocols = set()
    for name, row in metrics.items():
        figures = {key: value for key, value in row.items() if key != "protocol"} if isinstance(row, Mapping) else {}
        if not figures or not all(isinstance(value, int | float) for value in figures.values()):
            raise SailUsageError(
                f"metrics are rows of figures, such as {{'RefCOCO val': {{'ciou': 0.7}}}}; see {name!r}"
            )
        protocol = str(row.get("protocol", "default"))
        protocols.add(protocol)
        rows[f"{name} ({protocol} protocol)"] = {key: float(value) for key, value in figures.items()}
    lines = [f"- Protocol `{name}`: {PROTOCOLS[name]}." for name in sorted(protocols & PROTOCOLS.keys())]
    return "\n".join([markdown_table(rows), "", *lines]).strip()


def _limits(model: PixelSAIL) -> str:
    dims, encoder = model.model.dims, model.model.prompt_encoder
    resized = (
        f"to about {model.max_side} x {model.max_side} pixels"
        if model.model.backbone.resize_mode == "area"
        else (f"to at most {model.max_side} pixels a side")
    )
    return "\n".join(
        [
            f"- Pictures are resized {resized}; a vision token is {dims.patch_size} pixels of that, and masks are "
            f"drawn every {dims.feature_stride} pixels: what is smaller may be missed.",
            f"- At most {encoder.num_prompts} visual prompts a question, {model.max_tokens} tokens a sequence and "
            f"{model.max_new_tokens} tokens an answer.",
            "- Answers and masks may be wrong, also where they sound sure. Measure on your own pictures before you "
            "rely on them.",
        ]
    )
