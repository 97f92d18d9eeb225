"""Writes the model card (README.md) of a model folder, which is the same text for the same model on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import yaml
from torch import Tensor

from sail_lightning.errors import SailUsageError
from sail_lightning.model.bundle import ModelBundle

Metrics = Mapping[str, Mapping[str, float | str]]
"""Rows of a table of metrics, by name; `protocol` in a row names the protocol by which they were computed."""
Data = Mapping[str, str] | Sequence[str]
"""Names of training data, with the licence of each where it is known."""

TAGS = ["pixel-sail", "sail-lightning", "image-segmentation", "referring-segmentation", "visual-prompts"]
UNSTATED = "not stated"
PROTOCOLS = {
    "standard": "the definitions of `sail_lightning.evaluate`",
    "official": "the official code's definitions, faults included, for comparison with published figures",
}
"""What each protocol of an evaluation (`evaluate.rules.ProtocolName`) goes by."""
_OLD_PROTOCOLS = {"default": "standard"}
"""Names by which rows of older cards call a protocol."""


@dataclass(frozen=True)
class About:
    """Facts about a model that its own files do not hold.

    Args:
        metrics: Metrics by row (data set and split).
        data: Training data, with licences.
        licence: Licence of the weights, such as `Apache-2.0`.
        teachers: The class of each teacher that the model learned from, by the name that it was given.
    """

    metrics: Metrics | None = None
    data: Data | None = None
    licence: str | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)


def model_card(
    bundle: ModelBundle,
    config: str,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    about: About = About(),
) -> str:
    """Returns a model card in Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        bundle: The built model with its tokenizer.
        config: Its settings as YAML.
        state: The stored tensors by name.
        dtype: Type of the stored tensors; None means their own.
        about: Metrics, data, licence and teachers.

    Raises:
        SailUsageError: Metrics or data have another form.
    """
    front = {
        "license": (about.licence or "unknown").lower().replace(" ", "-"),
        "library_name": "sail-lightning",
        "pipeline_tag": "image-text-to-text",
        "tags": TAGS,
    }
    weights = f"Weights: {about.licence or UNSTATED}"
    sections = {
        "Load it": LOAD,
        "Parts": _parts(bundle),
        "Parameters": _parameters(state, dtype),
        "Data": _data(about.data, about.teachers),
        "Metrics": _metrics(about.metrics),
        "Licences": f"- {weights}.\n- Data: see above; each set keeps the licence of its owner.",
        "Limits": _limits(bundle),
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


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], rule: Iterable[str]) -> str:
    """Returns a Markdown table; `rule` is `---` for each column, with a colon at the side to which it is aligned."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _parts(bundle: ModelBundle) -> str:
    model = bundle.model
    parts = {"backbone": model.backbone, "upsampler": model.upsampler, "prompt_encoder": model.prompt_encoder}
    rows = []
    for name, plugin in parts.items():
        foreign = not type(plugin).__module__.startswith("sail_lightning.")
        needs = "not part of sail_lightning: give its file with --plugins" if foreign else ""
        what = (type(plugin).__doc__ or "").strip().partition("\n")[0]
        rows.append((name, f"`{type(plugin).__name__}`", needs or what))
    return _table(("part", "plugin", "what it does"), rows, ("---",) * 3)


def _parameters(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    counts: dict[str, int] = {}
    for name, value in state.items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + value.numel()
    counts["total"] = sum(counts.values())
    table = _table(("part", "weights"), ((name, f"{count:,}") for name, count in counts.items()), ("---", "---:"))
    types = sorted({str(dtype if dtype and v.is_floating_point() else v.dtype)[6:] for v in state.values()})
    return f"{table}\n\nStored as {', '.join(types)}. What is shared, such as a tied language head, counts once."


def part_of(name: str) -> str:
    """Returns the part of the model to which a tensor belongs: layers count as one part, the backbone as several.

    `backbone.model.layers.0.mlp.up_proj.weight` belongs to `backbone.model.layers`, and
    `mask_head.seg_projector.0.bias` to `mask_head`.
    """
    owners = name.split(".")[:-1]
    depth = next((index for index, owner in enumerate(owners) if owner.isdigit()), len(owners))
    return ".".join(owners[: min(depth, 3 if owners[0] == "backbone" else 1)])


def _data(data: Data | None, teachers: Mapping[str, str]) -> str:
    if isinstance(data, str):
        raise SailUsageError(f"data is a list of names, or names with their licences, not the text {data!r}")
    licences = data if isinstance(data, Mapping) else dict.fromkeys(data or (), "")
    lines = [f"- {name}: {licence or f'licence {UNSTATED}'}" for name, licence in licences.items()]
    if teachers:
        named = ", ".join(f"{name} (`{kind}`)" for name, kind in teachers.items())
        lines.append(
            f"- Distilled from {named}: seen in training only, and not in this folder; their licences "
            "may bind a model that learned from them"
        )
    return "\n".join(lines) or f"The training data are {UNSTATED}."


def _metrics(metrics: Metrics | None) -> str:
    if not metrics:
        return "None were given when this folder was written."
    rows: dict[str, dict[str, float]] = {}
    protocols = set()
    for name, row in metrics.items():
        values = {key: value for key, value in row.items() if key != "protocol"} if isinstance(row, Mapping) else {}
        if not values or not all(isinstance(value, int | float) for value in values.values()):
            raise SailUsageError(
                f"metrics are rows of numbers, such as {{'RefCOCO val': {{'ciou': 0.7}}}}; see {name!r}"
            )
        protocol = str(row.get("protocol", "standard"))
        protocol = _OLD_PROTOCOLS.get(protocol, protocol)
        protocols.add(protocol)
        rows[f"{name} ({protocol} protocol)"] = {key: float(value) for key, value in values.items()}
    lines = [f"- Protocol `{name}`: {PROTOCOLS[name]}." for name in sorted(protocols & PROTOCOLS.keys())]
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [[name, *(_cell(row.get(key)) for key in columns)] for name, row in rows.items()]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (["", *columns], *cells)]
    table = _table(escaped[0], escaped[1:], ("---", *("---:" for _ in columns)))
    return "\n".join([table, "", *lines]).strip()


def _cell(value: float | None) -> str:
    """Returns a metric with four decimals, or a dash where it is absent or NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _limits(bundle: ModelBundle) -> str:
    dims, prompts = bundle.model.dims, bundle.model.prompt_encoder
    resized = (
        f"to about {bundle.max_side} x {bundle.max_side} pixels"
        if bundle.model.backbone.resize_mode == "area"
        else f"to at most {bundle.max_side} pixels a side"
    )
    return "\n".join(
        [
            f"- Images are resized {resized}; a vision token is {dims.patch_size} pixels of that, and masks are "
            f"drawn every {dims.feature_stride} pixels: what is smaller may be missed.",
            f"- At most {prompts.num_prompts} visual prompts a question, {bundle.max_tokens} tokens a sequence and "
            f"{bundle.max_new_tokens} tokens an answer.",
            "- Answers and masks may be wrong, also where they sound sure. Measure on your own images before you "
            "rely on them.",
        ]
    )
