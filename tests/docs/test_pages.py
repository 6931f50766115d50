"""Kernel pages have the same headings, and the pictures are those that their scripts draw from committed data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import flowkern

DOCS = Path(__file__).parents[2] / "docs"
KERNELS = sorted(page for page in (DOCS / "kernels").glob("*.md") if page.stem != "index")
HEADINGS = [
    "Mathematics", "Forward and inverse", "Backward", "Numerics", "Cost", "Data layout",
    "The same formula in each language", "Registers and roofline", "Measured", "Tests", "Planted faults",
]  # fmt: skip


@pytest.mark.parametrize("page", KERNELS, ids=lambda page: page.stem)
def test_a_kernel_page_has_the_headings_of_all_and_its_pictures(page):
    readme = DOCS.parent / "flowkern" / "ops" / f"_{page.stem}" / "README.md"
    text = page.read_text()
    assert re.findall(r"^## (.*)", readme.read_text() + text, re.M) == HEADINGS
    pictures = re.findall(r"\.\./(pictures/.*?\.svg)", text)
    assert f"pictures/layout_{page.stem}.svg" in pictures and all((DOCS / picture).exists() for picture in pictures)


def test_every_op_has_a_kernel_page():
    assert {page.stem for page in KERNELS} == {
        readme.parent.name[1:] for readme in DOCS.parent.glob("flowkern/ops/_*/README.md")
    }


def test_the_pictures_are_drawn_from_the_committed_data(tmp_path):
    subprocess.run([sys.executable, DOCS / "pictures" / "draw.py", tmp_path], check=True)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) > len(KERNELS)
    for picture in drawn:
        assert picture.read_text() == (DOCS / "pictures" / picture.name).read_text(), picture.name


def test_the_api_has_a_page_for_every_public_module_that_lists_its_names():
    modules = {name for name in flowkern.__all__ if hasattr(getattr(flowkern, name), "__all__")}
    assert {page.stem for page in (DOCS / "api").glob("*.md")} == modules | {"flowkern", "index"}
