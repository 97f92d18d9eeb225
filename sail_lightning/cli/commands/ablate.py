"""`sail-lightning ablate`: a table of variants, each trained with several seeds at equal compute."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_lightning.cli.command import command
from sail_lightning.errors import SailError, SailUsageError

if TYPE_CHECKING:
    from types import FrameType

    from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

    from sail_lightning.ablation.runs import Result, Run
    from sail_lightning.ablation.study import Study


@command(section="compare")
def ablate(
    study: str | None = None,
    *,
    config: str | None = None,
    out: Path | None = None,
    seeds: list[NonNegativeInt] | None = None,
    steps: PositiveInt | None = None,
    minutes: PositiveFloat | None = None,
    jobs: PositiveInt = 1,
    only: list[str] | None = None,
    print_config: bool | str = False,
) -> None:
    """Trains and tests a table of variants, with several seeds each, and compares them.

    A study is a YAML file: a base, variants that are small patches on it, seeds, a budget, and metrics
    (docs/ablations.md). Every variant is checked before the first one runs. The same command resumes a study that was
    stopped. Writes table.md, table.csv, results.json and curves.png.

    Examples:
        sail-lightning ablate study/reduced
        sail-lightning ablate study/paper --jobs 2 --out runs/paper
        sail-lightning ablate my_study.yaml --seeds 0,1 --steps 200 --only plain,upsampling

    Args:
        study: A file, or a packaged study by name.
        config: The study, given as other commands take a config.
        out: Folder of runs and table; runs/ablate/STUDY if left out.
        seeds: Seeds in place of the study's, such as 0,1,2.
        steps: Optimiser steps in place of the study's.
        minutes: Minutes of a training in place of the study's.
        jobs: Processes at a time, with a CPU thread each.
        only: Run these variants only.
        print_config: Show the config of the baseline, or of a variant, and stop.
    """
    name = study or config
    if name is None or (study and config):
        raise SailUsageError("name one study: a file, or a packaged one such as study/reduced")

    import yaml

    from sail_lightning.ablation.study import parse_study
    from sail_lightning.cli.configs import find_config, read_config

    path = find_config(name)
    asked = _changed(parse_study(read_config(path), path.stem), seeds, steps, minutes)
    chosen = _chosen(asked, only or [])
    if print_config is not False:
        wanted = asked.baseline if print_config is True else print_config
        print(yaml.safe_dump(_resolved(asked, _chosen(asked, [wanted])[0], asked.seeds[0]), sort_keys=False), end="")
        return
    _run(asked, chosen, out or Path("runs", "ablate", asked.name), jobs)


def _changed(study: Study, seeds: Sequence[int] | None, steps: int | None, minutes: float | None) -> Study:
    """The study with the settings that the command line replaces."""
    if seeds is not None:
        if not seeds or len(set(seeds)) < len(seeds):
            given = ",".join(map(str, seeds))
            raise SailUsageError(f"--seeds must be different whole numbers such as 0,1,2, not {given!r}")
        study = replace(study, seeds=tuple(seeds))
    return replace(study, steps=steps or study.steps, minutes=minutes or study.minutes)


def _chosen(study: Study, names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in study.variants:
            raise SailUsageError(f"{study.name} has no variant {name}; there are {', '.join(study.variants)}")
    return [name for name in study.variants if name in names] if names else list(study.variants)


def _run(study: Study, chosen: Sequence[str], folder: Path, jobs: int) -> None:
    from sail_lightning.ablation.runner import run_all
    from sail_lightning.ablation.runs import finished

    runs = _planned(study, folder, 1 if jobs > 1 else 0)
    asked = [one for one in runs if one.variant in chosen]
    print(f"{len(asked)} runs: {len(chosen)} variants, {len(study.seeds)} seeds; into {folder}", flush=True)
    with _terminated_as_interrupted():
        outcome = run_all(asked, jobs, study.metrics[0], lambda line: print(line, flush=True))
    # Of variants that were left out, earlier results are in the table too.
    others = [result for one in runs if one.variant not in chosen and (result := finished(one)) is not None]
    order = {(one.variant, one.seed): index for index, one in enumerate(runs)}
    results = sorted([*outcome.results, *others], key=lambda result: order[result.variant, result.seed])
    if not results:
        raise SailError(f"all {len(asked)} runs failed; the last: {list(outcome.failures.values())[-1]}")
    written = _write(study, results, outcome.failures, folder)
    print(f"\n{(folder / 'table.md').read_text(encoding='utf-8')}\n{', '.join(map(str, written))}")
    _check_metrics(study, results)
    if outcome.failures:
        (variant, seed), error = next(iter(outcome.failures.items()))
        count = f"{len(outcome.failures)} of {len(asked)} runs failed, first {variant} with seed {seed}"
        raise SailError(f"{count}: {error}; the same command tries them again")


def _check_metrics(study: Study, results: Sequence[Result]) -> None:
    """Raises SailUsageError for a metric that no test gave."""
    for metric in study.metrics:
        if all(result.value(metric) is None for result in results):
            given = results[0].metrics[metric.evaluation]
            known = [f"{benchmark}/{name}" for benchmark, metrics in given.items() for name in metrics]
            raise SailUsageError(f"{study.name}: no test gave the metric {metric}; there are {', '.join(known)}")


def _write(study: Study, results: Sequence[Result], failures: dict[tuple[str, int], str], folder: Path) -> list[Path]:
    """Compares the results and writes the table; returns the files."""
    from sail_lightning.ablation.comparison import compare
    from sail_lightning.ablation.curves import draw_curves
    from sail_lightning.ablation.table import Findings, to_csv, to_json, to_markdown

    folders = {(one.variant, one.seed): _folder(folder, one.variant, one.seed) for one in results}
    found = Findings(study, results, compare(results, study.metrics, study.baseline, folders), failures)
    written = [folder / name for name in ("table.md", "table.csv", "results.json")]
    contents = (to_markdown(found), to_csv(found), json.dumps(to_json(found), indent=2) + "\n")
    for path, content in zip(written, contents, strict=True):
        path.write_text(content, encoding="utf-8")
    tables: dict[str, list[Path]] = {}
    for one in results:
        tables.setdefault(one.variant, []).append(folders[one.variant, one.seed] / one.curves)
    drawn = draw_curves(tables, study.curves, folder / "curves.png")
    return written if drawn is None else [*written, drawn]


def _folder(folder: Path, variant: str, seed: int) -> Path:
    return folder / variant / f"seed_{seed}"


def _planned(study: Study, folder: Path, threads: int) -> list[Run]:
    """All runs, seed by seed, so that a study that is stopped early has compared every variant on some.

    Raises:
        SailUsageError: A variant or an evaluation that does not parse; names it.
    """
    from sail_lightning.ablation.runs import Run
    from sail_lightning.cli.renamed import rename_sections

    evaluate = {name: rename_sections(dict(patch)) for name, patch in study.evaluate.items()}
    runs = [
        Run(
            variant,
            seed,
            _folder(folder, variant, seed),
            _resolved(study, variant, seed),
            evaluate,
            threads,
        )
        for seed in study.seeds
        for variant in study.variants
    ]
    for name in study.evaluate:
        _resolved(study, study.baseline, study.seeds[0], name)
    return runs


def _resolved(study: Study, variant: str, seed: int, evaluation: str | None = None) -> dict[str, Any]:
    """The whole config of a training, as `fit --print_config` shows it; `evaluation` puts its patch on top, to check.

    Raises:
        SailUsageError: It does not parse.
    """
    import yaml

    from sail_lightning.cli.lightning_cli import run as run_verb

    patches = [study.base, study.variants[variant], study.evaluate.get(evaluation or "", {})]
    options = [f"--{key}={seed}" for key in ("seed_everything", "data.seed", *study.seeded)]
    if study.steps is not None:
        options += [f"--trainer.max_steps={study.steps}"]
        options += [f"--trainer.val_check_interval={max(1, study.steps // study.checks)}"]
    options += [f"--trainer.max_time={_clock(study.minutes)}", "--trainer.enable_progress_bar=false"]
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch:
        layers = [f"-c={name}" for name in study.configs]
        for index, patch in enumerate(patches):
            path = Path(scratch, f"{index}.yaml")
            path.write_text(yaml.safe_dump(patch), encoding="utf-8")
            layers.append(f"-c={path}")
        try:
            if seed == study.seeds[0]:  # what only the classes themselves refuse
                run_verb(["fit", *layers, *options], dry=True)
            with contextlib.redirect_stdout(printed):
                run_verb(["fit", *layers, *options, "--print_config"])
        except SystemExit:  # --print_config ends the process
            pass
        except SailError as error:
            part = f"evaluate.{evaluation}" if evaluation else f"variant {variant}"
            raise SailUsageError(f"{study.name}, {part}: {error}") from None
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    for key in ("name", "runs"):
        config.pop(key, None)
    _limit_schedule(config, study.minutes)
    return config


def _clock(minutes: float | None) -> str:
    """Minutes as DD:HH:MM:SS, the form that the Trainer takes."""
    if minutes is None:
        return "null"
    whole, seconds = divmod(round(minutes * 60), 60)
    hours, rest = divmod(whole, 60)
    return f"{hours // 24:02}:{hours % 24:02}:{rest:02}:{seconds:02}"


def _limit_schedule(config: dict[str, Any], minutes: float | None) -> None:
    """Gives a schedule with a time limit that of the study, so that its rate is down when the training ends."""
    schedule = config["model"].get("schedule") or {}
    if "minutes" in (schedule.get("init_args") or {}):
        schedule["init_args"]["minutes"] = minutes


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A context in which a request to terminate ends the processes of the study too, as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
