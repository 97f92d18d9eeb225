"""Tables of figures for reports."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from sail_lightning.evaluate import markdown_table, write_csv

ROWS = {"untrained": {"ciou": 0.0625, "count": 3}, "a|b": {"ciou": 1 / 3, "n_acc": math.nan, "giou": 1.0}}


def test_a_markdown_table_has_a_row_per_name_and_a_column_per_key_in_order_of_appearance() -> None:
    assert markdown_table(ROWS, corner="model").splitlines() == [
        "| model | ciou | count | n_acc | giou |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| untrained | 0.0625 | 3 | - | - |",
        "| a\\|b | 0.3333 | - | - | 1.0000 |",
    ]


def test_a_markdown_table_without_rows_is_only_a_head() -> None:
    assert markdown_table({}) == "|  |\n| --- |"


def test_a_csv_file_keeps_full_precision_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "report" / "table.csv"
    write_csv(ROWS, path)
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["untrained", "a|b"]
    assert float(lines[1]["ciou"]) == 1 / 3
    assert (lines[0]["count"], lines[0]["giou"], lines[1]["n_acc"]) == ("3", "", "nan")
