"""Values of the paper's tables, so that a report can show a user's model beside them. None of them is measured here.

Pixel-SAIL, arXiv:2504.10465v1, tables 1 to 4, as printed there; a dash is a value that the paper does not give. cIoU,
gIoU and METEOR are printed in percent, `mcq_accuracy` as a share. VQA scores are printed on their own scales.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PAPER = "Pixel-SAIL, arXiv:2504.10465v1"
PERCENT = ("ciou", "giou", "meteor")
"""Metrics that the paper prints in percent, and this package as fractions of 1."""


@dataclass(frozen=True)
class Published:
    """One value as printed: of a model with a language model of this `size`, on a benchmark, in a numbered table."""

    model: str
    size: str
    benchmark: str
    metric: str
    printed: float
    table: int

    @property
    def value(self) -> float:
        """The value on this package's scale: a fraction of 1, except `perbench_overall` (0 to 100) and VQA scores."""
        return self.printed / 100 if self.metric in PERCENT else self.printed

    @property
    def source(self) -> str:
        """The paper and the table in which the value is printed."""
        return f"{PAPER}, table {self.table}"


_REFERRING = """
refcoco+_val refcoco+_testA refcoco+_testB refcocog_val refcocog_test \
refcoco_val refcoco_testA refcoco_testB grefcoco_val grefcoco_testA grefcoco_testB
Pixel-SAIL | 0.5B | 70.8 75.8 65.4 75.4 76.7 77.9 80.5 75.9 63.9 71.5 63.6
Pixel-SAIL (ft) | 0.5B | 73.0 77.0 68.0 75.6 76.1 79.1 81.7 77.0 68.0 74.0 66.8
Pixel-SAIL | 3B | 75.7 79.7 72.0 78.7 80.4 80.8 82.6 79.0 67.7 74.6 67.1
Pixel-SAIL (ft) | 3B | 76.2 79.7 71.2 78.5 79.4 81.8 83.4 78.8 72.1 77.1 70.4
LISA (ft) | 7B | 65.1 70.8 58.1 67.9 70.6 74.9 79.1 72.3 - - -
PixelLM | 7B | 66.3 71.7 58.3 69.3 70.5 73.0 76.5 68.2 - - -
GSVA (ft) | 7B | 64.5 67.7 58.6 71.1 72.0 76.4 77.4 72.8 61.7 69.2 60.3
GroundHog | 7B | 70.5 75.0 64.9 74.1 74.6 78.5 79.9 75.7 66.7 - -
GLaMM (ft) | 7B | 72.6 78.7 64.6 74.2 74.9 79.5 83.2 76.9 - - -
SAM4MLLM | 7B | 73.5 77.8 65.8 74.5 75.6 79.6 82.8 76.1 66.3 70.1 63.2
LaSagnA | 7B | 66.4 70.6 60.1 70.6 71.9 76.8 78.7 73.8 38.1 50.4 42.1
OMG-LLaVA (ft) | 7B | 69.1 73.1 63.0 72.9 72.9 78.0 80.3 74.1 - - -
F-LLM | 7B | 65.8 75.2 58.5 70.1 71.7 75.8 79.5 72.4 - - -
Sa2VA | 4B | 74.3 - - 76.7 - 80.4 - - - - -
ReLA | specialist | 66.0 71.0 57.7 65.0 66.0 73.8 76.5 70.2 56.4 59.0 58.4
PolyFormer-L | specialist | 69.3 74.6 61.9 69.2 70.2 76.0 78.3 73.3 - - -
"""
_CAPTIONS = """
region_caption
Pixel-SAIL | 0.5B | 16.0
Pixel-SAIL | 3B | 17.6
Sa2VA | 4B | 17.3
OMG-LLaVA | 7B | 15.3
Osprey | 7B | 16.6
GLaMM | 7B | 16.2
"""
_PERBENCH = """
perbench_caption:meteor perbench_mcq:mcq_accuracy perbench_vres:ciou perbench_vres:giou perbench:perbench_overall
LISA | 7B | 0 0 0 0 0
Osprey | 7B | 13.4 0.12 0 0 8.5
GLaMM | 7B | 12.6 0.14 24.3 14.6 15.3
Sa2VA | 4B | 19.2 0.71 31.9 21.9 39.0
Pixel-SAIL | 0.5B | 21.4 0.69 29.7 19.8 38.4
Pixel-SAIL | 3B | 24.2 0.74 33.4 23.5 42.2
"""
# MME's two scores are perception and cognition; SOLO's second one at 3B is printed as "257/5", and left out here.
_VQA = """
mme:perception mme:cognition mmbench:score seed:score mmstar:score
SOLO | 0.5B | 523.2 222.5 13.8 45.5 26.2
SOLO | 3B | 1155.7 - 53.4 65.4 40.3
EVEv2 (800x800) | 7B | 1128.0 240.7 60.3 54.2 44.9
Pixel-SAIL | 0.5B | 564.1 150.7 31.8 52.2 26.3
Pixel-SAIL | 3B | 1187.3 242.9 56.3 66.1 40.1
Pixel-SAIL (800x800) | 7B | 1081.0 260.4 58.9 64.7 44.3
"""


def _rows(text: str, table: int, metric: str = "") -> Iterator[Published]:
    head, *lines = text.strip().splitlines()
    columns = [(name, given or metric) for name, _, given in (column.partition(":") for column in head.split())]
    for line in lines:
        model, size, values = (cell.strip() for cell in line.split("|"))
        for (benchmark, name), value in zip(columns, values.split(), strict=True):
            if value != "-":
                yield Published(model, size, benchmark, name, float(value), table)


PUBLISHED: tuple[Published, ...] = (
    *_rows(_REFERRING, 1, "ciou"),
    *_rows(_CAPTIONS, 2, "meteor"),
    *_rows(_PERBENCH, 3),
    *_rows(_VQA, 4),
)


def published(benchmark: str) -> list[Published]:
    """Returns the values that the paper prints for a benchmark, in its order; none for one that it does not have.

    `refcoco_plus` is RefCOCO+, and `perbench/caption` or `PerBench caption` is `perbench_caption`.
    """
    name = re.sub(r"[\s/_-]+", "_", benchmark.casefold()).replace("refcoco_plus", "refcoco+")
    return [row for row in PUBLISHED if row.benchmark.casefold() == name]
