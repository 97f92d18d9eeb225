"""`python -m sail_lightning`: the same as the console script `sail-lightning`."""

import sys

from sail_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
