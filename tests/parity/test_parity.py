"""The official code's recorded values, from weights to masks; tolerances are those of `docs/parity.md`."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import parity_stages as stages
import pytest
import torch
from safetensors.torch import load_file

RECORDED = [pair for pair in itertools.product(stages.WEIGHTS, stages.STAGES) if pair != ("EVE", "distillation")]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The script that writes docs/parity.md."""
    path = Path(__file__).parents[2] / "docs" / "make_parity.py"
    spec = importlib.util.spec_from_file_location("make_parity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("together", [False, True], ids=["alone", "packed"])
@pytest.mark.parametrize(("family", "stage"), RECORDED)
def test_official_values_are_reproduced(family: str, stage: str, together: bool) -> None:
    rows = list(stages.STAGES[stage](family, together))
    assert rows
    off = [f"{row.stage}, {row.case}: {row.error:.1e}" for row in rows if not row.share <= 1]
    assert not off


@pytest.mark.parametrize("together", [False, True], ids=["alone", "packed"])
def test_the_official_fault_of_batches_is_not_reproduced(together: bool) -> None:
    """The official collate reads patches of the second image one too early; alone, it does not."""
    fault = load_file(stages.GOLDEN / "case3_batch2_quirk_and_persample.safetensors")["quirk.out.hidden_states.2"]
    first, second = stages.readings("SOLO", together)["case3_batch2_corrected"]
    assert stages.compare("hidden", "first", first.hidden, fault[0, : len(first.hidden)]).share <= 1
    assert stages.compare("hidden", "second", second.hidden, fault[1]).share > 1000


def test_rows_notice_what_is_off() -> None:
    assert stages.compare("", "", [1.0, 2.0], [1.0, 2.001]).share > 1
    assert stages.compare("", "", [1, 2], [1, 3], stages.EXACT).share == float("inf")
    assert stages.compare("", "", [1, 2], [1, 2], stages.EXACT).share == 0
    with pytest.raises(AssertionError, match="instead of"):
        stages.compare("", "", [1.0], [1.0, 2.0])
    with pytest.raises(AssertionError, match="not finite"):
        stages.compare("", "", [float("nan")], [1.0])


@pytest.mark.parametrize(("family", "mode"), list(itertools.product(stages.WEIGHTS, stages.MODES)))
def test_half_precision_is_near(family: str, mode: str) -> None:
    """Within 3 %; and, where sums cancel, near what rounding the weights costs by itself."""
    floor = {row.stage: row.relative for row in stages.rounding(family, "weights")}
    for row in stages.rounding(family, mode):
        if row.stage in ("[SEG] embeddings", "mask logits"):
            assert 0 < row.relative < 2.5 * floor[row.stage], row
        else:
            assert 0 < row.relative < 0.03, row


@pytest.mark.parametrize("family", stages.WEIGHTS)
def test_rotary_frequencies_stay_float32_and_must(family: str) -> None:
    model = stages.fresh(family)
    exact = dict(stages.fresh(family).model.backbone.model.rotary_emb.named_buffers())
    rotary = stages.HalfPrecision("bf16-true").convert_module(model).model.backbone.model.rotary_emb
    assert model.model.backbone.lm_head.weight.dtype == torch.bfloat16
    for name, frequencies in rotary.named_buffers():
        assert frequencies.dtype == torch.float32 and torch.equal(frequencies, exact[name])
    rounded = stages.fresh(family)
    for frequencies in rounded.model.backbone.model.rotary_emb.buffers():
        frequencies.copy_(frequencies.bfloat16())
    batch = stages.recorded(family)[0]
    with torch.no_grad():
        states = stages.read(rounded, batch.samples)[0].hidden
    assert stages.compare("hidden", batch.name, states, batch.official("hidden_states.2", 0)).share > 10


def test_presets_have_the_published_numbers_of_weights(table: ModuleType) -> None:
    """Qwen2.5's own: tied embeddings in 0.5B and 3B, a separate language head in 7B, at their vocabularies."""
    decoders = {name: parts["decoder"] for name, parts in table.counts().items()}
    assert decoders == {
        "SailQwen 0.5b": 494_032_768,
        "SailQwen 3b": 3_085_938_688,
        "EVEv2 7b": 7_615_616_512,
    }


def test_the_page_has_the_stages_of_today(table: ModuleType) -> None:
    """All but the measured numbers: `make parity` was run after the last change."""
    page = table.PAGE.read_text(encoding="utf-8")
    made = table.page()
    assert table.without_measurements(page) == table.without_measurements(made)
