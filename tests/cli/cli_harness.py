"""What the tests of the command line share: a tiny model's options, and the result of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TINY = (
    "--model.backbone.hidden_size=32",
    "--model.backbone.num_layers=1",
    "--model.backbone.num_heads=2",
    "--model.backbone.num_key_value_heads=2",
    "--model.backbone.intermediate_size=64",
    "--model.max_new_tokens=4",
    "--data.token_budget=400",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
)
FIT = ("fit", "-c", "quickstart", *TINY, "--trainer.max_steps=2")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    def is_one_sentence(self, code: int, *words: str) -> bool:
        """Whether it failed with this code and one line that holds all these words, and a hint, and nothing else."""
        lines = self.err.splitlines()
        assert self.code == code, self.err
        assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  more: "), self.err
        assert [word for word in words if word not in lines[0]] == [], lines[0]
        return len(lines[0]) < 400 and "Traceback" not in self.out


Command = Callable[..., Result]
