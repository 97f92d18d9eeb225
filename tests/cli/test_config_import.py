"""`sail-lightning configs import`: what it says first, what it writes, and that the result loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cli_harness import Command

OFFICIAL = Path(__file__).parents[2] / "examples" / "official_config.py"


def test_the_imported_config_loads_and_parses_to_what_was_reported(sail: Command, workdir: Path) -> None:
    made = sail("configs", "import", OFFICIAL, "--out", "mine.yaml")
    assert made.code == 0 and "Carried over" in made.out and "Not carried over" in made.out
    shown = sail("fit", "-c", "mine.yaml", "--print_config")
    assert shown.code == 0, shown.err
    parsed = yaml.safe_load(shown.out)
    assert parsed["model"]["mask_loss"]["init_args"]["bce_weight"] == 2.0
    assert len(parsed["data"]["train"]["init_args"]["sources"]) == 20


def test_it_says_that_it_executes_the_config_before_it_does(sail: Command, workdir: Path) -> None:
    harm = ("import sys", "from pathlib import Path", "Path('harm').touch()", "sys.stderr.write('HARM')")
    Path("official.py").write_text("\n".join([*harm, "raise RuntimeError('stop')"]))
    done = sail("configs", "import", "official.py", "--out", "mine.yaml")
    assert Path("harm").exists() and not Path("mine.yaml").exists()
    before, _, after = done.err.partition("HARM")
    assert before.startswith("official.py is Python and is executed now, with all your rights") and before[-1] == "\n"
    assert "official.py cannot be read as an mmengine config: line 5: RuntimeError: stop" in after
    assert done.code == 1 and "Traceback" not in done.err


@pytest.mark.parametrize(("name", "code"), [("official.yaml", 2), ("missing.py", 1)])
def test_a_file_that_is_no_config_is_refused_without_executing(
    name: str, code: int, sail: Command, workdir: Path
) -> None:
    Path("official.yaml").write_text("model: {}\n")
    assert sail("configs", "import", name).is_one_sentence(code, name)


def test_a_file_that_is_there_is_not_overwritten_and_nothing_is_executed(sail: Command, workdir: Path) -> None:
    Path("mine.yaml").write_text("mine: true\n")
    assert sail("configs", "import", OFFICIAL, "--out", "mine.yaml").is_one_sentence(2, "mine.yaml exists", "--force")
    assert Path("mine.yaml").read_text() == "mine: true\n"
    assert sail("configs", "import", OFFICIAL, "--out", "mine.yaml", "--force").code == 0


def test_without_out_the_config_is_printed_alone(sail: Command) -> None:
    made = sail("configs", "import", OFFICIAL)
    assert yaml.safe_load(made.out)["model"]["mask_channels"] == 512
    assert "Report on" in made.err
