"""`python -m demo [--quick] [--output FOLDER]`."""

import argparse
from pathlib import Path

from demo.run import run
from demo.settings import FULL, QUICK


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: short training, no torch.compile")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder for the page and its pictures")
    options = parser.parse_args(arguments)
    run(QUICK if options.quick else FULL, options.output)


if __name__ == "__main__":
    main()
