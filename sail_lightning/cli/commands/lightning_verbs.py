"""`fit`, `validate`, `test` and `predict`: LightningCLI parses their options, so their help pages are written here."""

from __future__ import annotations

import textwrap

from sail_lightning.cli import rescoring
from sail_lightning.cli.command import Command, command

SECTION = "train and use a model"
_OPTIONS = """\
  -c CONFIG              a YAML file, or a packaged one by name (sail-lightning configs list). May be repeated:
                         later files win over earlier ones, options win over files, files over a checkpoint
  --KEY=VALUE            any key: --trainer.max_steps=100 --model.upsampler=BilinearUpsampler --model.teachers=null;
                         another class starts from its own defaults. Arguments: sail-lightning plugins NAME
  --plugins FILE         your own plugins: a .py file or module; may be repeated (or a key `plugins:` in a config)
  --name NAME            name of the run; its folder is runs/NAME/version_N (--runs DIR: in DIR, not in runs/)
  --print_config         show the resolved config and stop (=skip_default: only what differs)
  --full_help            every option (hundreds of lines)"""

_CHECKPOINT = """\
  --ckpt_path X          a .ckpt file, a model folder, or a packaged model by name, such as sail-tiny. Its settings
                         are the defaults, so no config is needed"""

_RESCORING = textwrap.fill(
    "no model: score such answers again, also of several files, and write the report to --out DIR. Options: "
    f"{', '.join(rescoring.option_names())}",
    width=120,
    initial_indent="  --from FILE            ",
    subsequent_indent=" " * 25,
    break_on_hyphens=False,
)


@command(
    section=SECTION,
    page=f"""\
usage: sail-lightning fit -c CONFIG [options]

Trains a model. The run folder holds config.yaml, metrics.csv, TensorBoard logs, checkpoints/last.ckpt and best-*.ckpt.

{_OPTIONS}
  --ckpt_path X.ckpt     resume this run. To start from a model's weights only: --model.weights FOLDER
  --checkpoint.monitor=K the metric of the best checkpoint (val/ciou)

examples:
  sail-lightning fit -c quickstart
  sail-lightning fit -c quickstart -c ablation/bilinear_upsampler --trainer.max_steps=500
  sail-lightning fit -c quickstart --plugins my_upsampler.py --model.upsampler=MyUpsampler""",
)
def fit(*words: str) -> int:
    """Trains a model."""
    from sail_lightning.cli.lightning_cli import run

    return run(["fit", *words]).exit_code


@command(
    section=SECTION,
    page=f"""\
usage: sail-lightning validate --ckpt_path X [options]

Measures a model on `data.val`; without a data config, on the synthetic laboratory.

{_CHECKPOINT}
{_OPTIONS}

example:
  sail-lightning validate --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt""",
)
def validate(*words: str) -> int:
    """Measures a model on data.val."""
    from sail_lightning.cli.lightning_cli import run

    return run(["validate", *words]).exit_code


@command(
    section=SECTION,
    page=f"""\
usage: sail-lightning test --ckpt_path X [options]
       sail-lightning test --from FILE... --out DIR

Measures a model on `data.test`, for instance a benchmark of -c eval/NAME; without a data config, on the synthetic
laboratory. The run folder gets report.md, report.json, gallery/ and per_sample.jsonl (every answer and its score).

{_CHECKPOINT}
{_OPTIONS}
  --evaluation.out DIR   write to DIR; a test that was killed resumes if DIR is its folder
  --evaluation.protocol=official  the metrics of the official code, faults included
  --evaluation.no_target=text     an answer has no target if its text says so, not if its mask is empty
  --evaluation.combine=first      only the first mask of an answer counts, not their union
  --evaluation.benchmark=NAME     of your own data
  --evaluation.bootstrap=N, --evaluation.gallery=N: how many of each; 0 for none
  --model.metrics.NAME=CLASS      a metric of your own, with --plugins the file that it is in
{_RESCORING}

examples:
  sail-lightning test -c eval/refcoco_val --ckpt_path MODEL
  sail-lightning test --ckpt_path sail-tiny --data.test.split=compositional
  sail-lightning test --from runs/test/version_0/per_sample.jsonl --out rescored --protocol official""",
)
def test(*words: str) -> int:
    """Measures a model on data.test, or scores stored answers again."""
    if rescoring.is_rescoring(words):
        return Command("test", rescoring.rescore, SECTION).run(words)
    from sail_lightning.cli.lightning_cli import run

    return run(["test", *words]).exit_code


@command(
    section=SECTION,
    page=f"""\
usage: sail-lightning predict --ckpt_path X --data.images IMAGES --data.text QUESTION [options]

Asks one question about each image. The run folder gets predictions.jsonl (text, COCO RLE masks, prompts, seconds) and
overlays/*.png. Images that cannot be read are skipped and named; the exit code is then 1.

{_CHECKPOINT}
  --data.images IMAGES   a folder (searched whole), or one or several files
  --data.text QUESTION   the question; regions are called <Prompt0>, <Prompt1>, ...
  --data.prompts REGIONS mask:FILE.png box:X0,Y0,X1,Y1 point:X,Y scribble:X,Y,X,Y,... in pixels; K= in front: <PromptK>
  --predictions.out DIR  write there instead of the run folder
  --predictions.overlays=false   no images with masks drawn
{_OPTIONS}

examples:
  sail-lightning predict --ckpt_path sail-tiny --data.images photos/ --data.text "Please segment the red circle."
  sail-lightning predict --ckpt_path sail-tiny --data.images a.png --data.text "Describe <Prompt0>." \\
    --data.prompts box:10,20,40,60""",
)
def predict(*words: str) -> int:
    """Answers a question about images, with text, masks and overlays."""
    from sail_lightning.cli.lightning_cli import run

    return run(["predict", *words]).exit_code
