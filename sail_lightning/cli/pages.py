"""Help that fits one screen, as plain text: nothing is imported to show it."""

from __future__ import annotations

TOP = """\
usage: sail-lightning COMMAND ...

Pixel-SAIL: one transformer that reads pixels and words and answers in text and masks.

  quickstart                 train, test and predict from nothing, in minutes
  fit -c CONFIG              train
  validate, test             measure a model on held-out data
  predict                    answer a question about pictures: text, masks, overlays
  compare A B                two tests side by side, with significance
  ablate STUDY               variants of a model, trained and compared over seeds
  features -c CONFIG         a teacher's features of all pictures, computed once
  expert -c CONFIG --out DIR a Mask2Former of your own, trained on a data set's masks: a teacher
  perbench --out DIR         PerBench's files, of synthetic held-out scenes
  plugins [NAME]             all that can be swapped; a class's arguments and source; wildcards: "*Prompts*"
  convert SRC DST            official and Lightning checkpoints to model folders, and back
  bench                      speed and memory against a baseline in the official style
  configs list|show|copy     the configs that ship with the package
  configs schema --out FILE  a JSON schema of configs, for editors
  completion bash|zsh        a script by which the shell completes all of this
  data check -c CONFIG       every fault of a data set: its file, its record and the mend
  data stats|show -c CONFIG  what a data set holds: histograms, samples as one picture
  data convert -c CONFIG     any data set to JSONL or shards

examples:
  sail-lightning fit -c quickstart --trainer.max_steps=200
  sail-lightning fit -c quickstart --model.upsampler=BilinearUpsampler
  sail-lightning test --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt
  sail-lightning predict --ckpt_path sail-tiny --data.images photos/ --data.text "Please segment the red circle."

sail-lightning COMMAND --help says more.   --version: the version"""

_OPTIONS = """\
  -c CONFIG              a YAML file, or a packaged one by name (sail-lightning configs list). May be repeated:
                         later files win over earlier ones, options win over files, files over a checkpoint
  --KEY=VALUE            any key: --trainer.max_steps=100 --model.upsampler=BilinearUpsampler --model.teachers=null;
                         another class starts from its own defaults. Arguments: sail-lightning plugins NAME
  --plugins FILE         your own plugins: a .py file or module; may be repeated (or a key `plugins:` in a config)
  --name NAME            of the run; its folder is runs/NAME/version_N (--runs DIR: another place than runs/)
  --print_config         show the resolved config and stop (=skip_default: only what differs)
  --full_help            every option (hundreds of lines)"""

_CHECKPOINT = """\
  --ckpt_path X          a .ckpt file, a model folder, or a packaged model by name, such as sail-tiny. Its settings
                         are the defaults, so no config is needed"""

VERB = {
    "fit": f"""\
usage: sail-lightning fit -c CONFIG [options]

Trains a model. The run folder holds config.yaml, metrics.csv, TensorBoard logs, checkpoints/last.ckpt and best-*.ckpt.

{_OPTIONS}
  --ckpt_path X.ckpt     resume this run. To start from a model's weights only: --model.weights FOLDER
  --checkpoint.monitor=K the metric of the best checkpoint (val/ciou)

examples:
  sail-lightning fit -c quickstart
  sail-lightning fit -c quickstart -c ablation/bilinear_upsampler --trainer.max_steps=500
  sail-lightning fit -c quickstart --plugins my_upsampler.py --model.upsampler=MyUpsampler""",
    "validate": f"""\
usage: sail-lightning validate --ckpt_path X [options]

Measures a model on `data.val`; without a data config, on the synthetic laboratory.

{_CHECKPOINT}
{_OPTIONS}

example:
  sail-lightning validate --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt""",
    "test": f"""\
usage: sail-lightning test --ckpt_path X [options]
       sail-lightning test --from FILE... --out DIR

Measures a model on `data.test`, for instance a benchmark of -c eval/NAME; without a data config, on the synthetic
laboratory. The run folder gets report.md, report.json, gallery/ and per_sample.jsonl (every answer and its score).

{_CHECKPOINT}
{_OPTIONS}
  --answers.out DIR      write there; a test that was killed goes on where it stopped if DIR is its folder
  --answers.protocol=official     the official code's figures, faults included
  --answers.no_target=text        the text, not an empty mask, says that nothing is meant
  --answers.benchmark=NAME        of your own data; --answers.bootstrap=N, --answers.gallery=N: the effort, 0 for none
  --from FILE            no model: score such answers again, also of several files (--protocol, --no-target, --combine,
                         --bootstrap, --gallery), and write the report to --out DIR

examples:
  sail-lightning test -c eval/refcoco_val --ckpt_path MODEL
  sail-lightning test --ckpt_path sail-tiny --data.test.split=compositional
  sail-lightning test --from runs/test/version_0/per_sample.jsonl --out rescored --protocol official""",
    "predict": f"""\
usage: sail-lightning predict --ckpt_path X --data.images PICTURES --data.text QUESTION [options]

Asks one question of each picture. The run folder gets predictions.jsonl (text, COCO RLE masks, prompts, seconds) and
overlays/*.png. Broken pictures are skipped and named, and the exit code is then 1.

{_CHECKPOINT}
  --data.images PICTURES a folder (searched whole), or one or several files
  --data.text QUESTION   the question; regions are called <Prompt0>, <Prompt1>, ...
  --data.prompts REGIONS mask:FILE.png box:X0,Y0,X1,Y1 point:X,Y scribble:X,Y,X,Y,... in pixels; K= in front: <PromptK>
  --predictions.out DIR  write there instead of the run folder
  --predictions.overlays=false   no pictures
{_OPTIONS}

examples:
  sail-lightning predict --ckpt_path sail-tiny --data.images photos/ --data.text "Please segment the red circle."
  sail-lightning predict --ckpt_path sail-tiny --data.images a.png --data.text "Describe <Prompt0>." \\
    --data.prompts box:10,20,40,60""",
}
