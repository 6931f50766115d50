"""Draws layout_*.svg and measured_*.svg, those of bench/results: python docs/pictures/draw.py [folder]"""

import sys
from pathlib import Path

import layouts
import measured


def main(folder):
    for kind, pictures in (("layout", layouts.ALL), ("measured", measured.ALL)):
        for name, draw in pictures.items():
            draw().save(folder / f"{kind}_{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent)
