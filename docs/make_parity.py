"""Writes docs/parity.md, ours against the official code, stage by stage: `make parity`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from sail_lightning import registry
from sail_lightning.conversion.official import IGNORED, PREFIXES
from sail_lightning.interfaces import Backbone, Dims
from sail_lightning.model.model import SailModel
from sail_lightning.plugins.backbones import EVEv2, SailQwen
from sail_lightning.plugins.prompt_encoders import PromptInjection
from sail_lightning.plugins.upsamplers import DeconvUpsampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))
import parity_stages as stages

PAGE = Path(__file__).with_name("parity.md")
HEAD = """# Parity with the official Pixel-SAIL

Written by `make parity`, which compares this code with recorded runs of the official code and fails where a tolerance
is passed; `make test` does the same. The recordings (`tests/golden/official`) are of tiny models with random weights,
run with the unmodified official code in float32 on a CPU. `SOLO` has one set of weights and positions on a grid, as the
SOLO and SAIL style models (`SailQwen`); `EVE` has weights by modality (`EVEv2`).

The recorded weights pass through the converter of this package. Texts, images and prompts pass through its encoder,
and the result is compared too. Each recorded sample is read `alone`, and `packed` into one row with all other samples.
"""
TOLERANCES = """
Largest absolute error of a stage over all its recordings. The tolerance is absolute, plus a share of the value where
`relative` stands; the official code's own noise in float32 is up to 1.1e-5. `exact` means equal. A dash: not recorded.
"""
DIFFERENCES = """## What is the same, and what is not

Exact: token ids, positions, labels, attention masks, which patches a prompt covers, sampled points, generated tokens,
masks. Everything else agrees within float32 noise.

Converted models behave like the official ones where this package has other defaults: mask features at the official
stride (2 pixels; the paper says 4), the last of overlapping prompts on top (ours adds them up), prompt masks shrunk
with nearest neighbours (ours never lose a thin region).

EVE: an image is one learned vector, then rows of patches, each closed by another learned vector. It stands inside
the first question. Attention is causal and positions are counted; the vectors are vision tokens and have the weights of
pixels. Prompts are added without a projection.

Intentionally not reproduced:

- **Batches of several images.** The official collate counts patches one too few per image, so that the second
  image of a batch reads its first patch from the image before it. Ours gives every sample what it gets alone; the
  table compares with the official code after the missing one was added. A test shows that ours has no such fault.
- **EVE's visual prompts in inference.** The official code stops there with an error, and would otherwise ignore them.
  Ours works as in training.
- **Images of extreme shapes.** The official rule makes images longer than 1024 pixels and very narrow empty; ours
  keep one patch.
- **The factor 0.1 on the language loss** of batches with masks. The official code takes it for the whole batch; ours
  weighs each sample by itself (`mask_sample_weight`), whatever else is in the batch. Both are equal for one sample.
- **Divisors.** The official code adds 1e-4 to the number of masks, points and images that it divides by; ours divides
  by the number, over the whole accumulation window by default. The table multiplies it back.
- **Placeholders.** For samples without an image or a mask, the official code runs its heads on the state of some token
  to keep all weights in the graph; ours does not run them. No loss differs.
- **Masks of a last `[SEG]`.** Officially, a `[SEG]` that is the last token before the limit has no mask; ours has one.
  A `[SEG]` of the question has one officially, ours only those of the answer.
- **bf16.** The official code in bf16 adds prompts in float32 and keeps their projection there; ours adds in the
  precision of the run.
"""
COUNTS = """## Presets

Parameters by part, built on the meta device with {prompts} visual prompts and mask features of 2 pixels. The decoder is
that of Qwen2.5 with its vocabulary, embeddings and language head included (tied in 0.5B and 3B).
"""
HALF = """## Half precision

Errors of the same models and samples in `bf16-true` and `bf16-mixed` against float32, as Lightning's precision plugins
run them: L2 norm of the error by that of the value, and the largest absolute error. `weights` is float32 with weights
rounded to bfloat16, the part that no arithmetic can fix. Rotary frequencies and angles, and the normalisation of
pixels, stay float32; cosines and sines are rounded to the run's precision. Mask logits are sums that cancel to a fifth
of their terms, so their relative error is larger.
"""
PRESETS: dict[str, tuple[Backbone, int]] = {
    "SailQwen 0.5b": (SailQwen("0.5b"), 151_936),
    "SailQwen 3b": (SailQwen("3b"), 151_936),
    "EVEv2 7b": (EVEv2("7b"), 152_064),
}
"""Presets, and the vocabularies of the Qwen2.5 models that they have the sizes of."""
PROMPTS = 15


def counts() -> dict[str, dict[str, int]]:
    """Parameters of each preset by part; the sum is under `all`."""
    found = {}
    for name, (backbone, vocabulary) in PRESETS.items():
        prompts = PromptInjection(PROMPTS, projection=not isinstance(backbone, EVEv2))
        model = SailModel(backbone, DeconvUpsampler(stride=2), prompts)
        with torch.device("meta"):
            model.build(vocabulary)
        parts = dict.fromkeys(PARTS, 0)
        for key, weight in model.named_parameters():  # a tied head is counted once
            parts[part_of(key)] += weight.numel()
        found[name] = parts | {"all": sum(parts.values())}
    return found


PARTS = ("decoder", "vision weights of layers", "patch embedding", "prompt projection", "upsampler", "mask head")


def part_of(key: str) -> str:
    """The part that a weight of `SailModel` belongs to."""
    if ".moe_" in key:
        return "vision weights of layers"
    if key.startswith(("backbone.model.", "backbone.lm_head.")):
        return "decoder"
    owners = {"backbone": "patch embedding", "prompt_encoder": "prompt projection", "mask_head": "mask head"}
    return owners.get(key.split(".")[0], "upsampler")


def rows_of(family: str, together: bool) -> dict[str, stages.Row]:
    """Of each stage, the row with the largest error."""
    worst: dict[str, stages.Row] = {}
    for function in stages.STAGES.values():
        for row in function(family, together):
            if not row.share <= 1:
                raise SystemExit(f"{family}, {row.stage}, {row.case}: error {row.error:.1e} is over the tolerance")
            if row.stage not in worst or row.error > worst[row.stage].error:
                worst[row.stage] = row
    return worst


def stage_table() -> str:
    """Stages by family, packed and alone."""
    columns = {
        f"{family}, {way}": rows_of(family, way == "packed") for family in stages.WEIGHTS for way in ("packed", "alone")
    }
    names = dict.fromkeys(stage for rows in columns.values() for stage in rows)
    order = {name: place for place, name in enumerate(names)}
    lines = []
    for stage in sorted(names, key=lambda name: (name.startswith(("generation", "prefix", "prompt:")), order[name])):
        found = [rows.get(stage) for rows in columns.values()]
        absolute, relative = next(row for row in found if row).tolerance
        limit = f"{absolute:.0e}" + (f" + {relative:.0e} relative" if relative else "")
        cells = ["—" if row is None else "exact" if absolute == 0 else f"{row.error:.1e}" for row in found]
        lines.append([stage, *cells, limit if absolute else "exact"])
    return table(["stage", *columns, "tolerance"], lines)


def name_table() -> str:
    """Official names of weights, and what becomes of them."""
    names = dict(PREFIXES)
    for channels in (8, 4):  # as wide as the states, and narrower
        upsampler = DeconvUpsampler(stride=1, channels=channels)
        upsampler.build(Dims(hidden_size=8, patch_size=2))
        for ours, official in upsampler.official_names().items():
            names[f"upsampler.{ours}".rsplit(".", 1)[0]] = official.rsplit(".", 1)[0]
    cells = [
        [f"`{re.sub('blocks.0', 'blocks.N', name.rstrip('.'))}`" for name in (official, ours)]
        for ours, official in names.items()
    ]
    return table(["official", "ours"], cells)


def half_table(family: str) -> str:
    """Errors of each stage in each mode."""
    modes = {mode: {row.stage: row for row in stages.rounding(family, mode)} for mode in (*stages.MODES, "weights")}
    lines = []
    for stage in modes["weights"]:
        errors = [error for rows in modes.values() for error in (rows[stage].relative, rows[stage].largest)]
        lines.append([stage, *(f"{error:.1e}" for error in errors)])
    head = [f"{mode}, {what}" for mode in modes for what in ("relative", "largest")]
    return table([f"{family}: stage", *head], lines)


def count_table() -> str:
    """Parameters of each preset by part."""
    found = counts()
    names = (*PARTS, "all")
    lines = [[name, *(f"{parts[name]:,}" if parts[name] else "—" for parts in found.values())] for name in names]
    return table(["part", *found], lines)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def page() -> str:
    """The whole page."""
    registry.discover()
    ignored = "\n".join(f"- `{pattern}`: {reason}" for pattern, reason in IGNORED.items())
    return (
        "\n".join(
            [
                HEAD,
                "## Stages",
                TOLERANCES,
                stage_table(),
                DIFFERENCES,
                "## Names of weights\n",
                name_table(),
                "Left out of official checkpoints (patterns of whole names):\n",
                ignored + "\n",
                HALF,
                *map(half_table, stages.WEIGHTS),
                COUNTS.format(prompts=PROMPTS),
                count_table(),
            ]
        ).rstrip()
        + "\n"
    )


def without_measurements(text: str) -> str:
    """A page with its measured numbers blotted out; counts and tolerances stay."""
    return re.sub(r"(?<=\| )\d\.\de[-+]\d\d(?= \|)", "x", text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
    for name, parts in counts().items():
        print(f"{name}: {', '.join(f'{part} {count:,}' for part, count in parts.items() if count)}")
    print(f"wrote {PAGE}")
