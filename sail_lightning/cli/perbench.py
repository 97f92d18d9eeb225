"""`sail-lightning perbench`: PerBench's three files, of the laboratory's held-out scenes."""

from __future__ import annotations

from sail_lightning.cli.arguments import Parser
from sail_lightning.cli.folders import output_folder

EXAMPLE = """\
example:
  sail-lightning perbench --out data --count 200
  SAIL_DATA=data sail-lightning test -c eval/synthperbench --ckpt_path sail-tiny"""


def run(args: list[str]) -> int:
    """Writes SynthPerBench; returns the exit code."""
    parser = Parser(
        prog="sail-lightning perbench",
        description="Writes SynthPerBench: held-out synthetic scenes in the files of PerBench (captions, multiple\n"
        "choice, visual-text referring), to be evaluated like it.",
        epilog=EXAMPLE,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="written to DIR/perbench; then SAIL_DATA=DIR")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="questions of each task (200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws other scenes (0)")
    parser.add_argument(
        "--split", choices=("test", "compositional"), default="test", help="compositional: unseen pairs"
    )
    given = parser.parse_args(args)
    out = output_folder(given.out)

    from sail_lightning.data.sources import layout
    from sail_lightning.data.synthetic.perbench import SynthPerBench

    folder = output_folder(out / layout.PERBENCH)
    for path in SynthPerBench(given.count, given.seed, given.split).write(folder):
        print(path)
    print(f"evaluate: SAIL_DATA={given.out} sail-lightning test -c eval/synthperbench --ckpt_path MODEL")
    return 0
