"""The op that docs/write/op.md adds: its C++ sources build, and the kernel agrees with the reference."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from flowkern import backends

ROOT = Path(__file__).parents[2]
OP = ROOT / "docs" / "write" / "tanh_scale"


@pytest.fixture(scope="module")
def rule(tmp_path_factory):
    """The page's rule, with a library of its kernel alone."""
    if backends.unavailable("cpu"):
        pytest.skip(backends.unavailable("cpu"))
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "csrc" / "common", tree / "csrc" / "common")
    shutil.copytree(OP, tree / "csrc" / "tanh_scale")
    (tree / "flowkern").mkdir()
    (tree / "flowkern" / "__init__.py").touch()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, env=os.environ | {"FLOWKERN_CUDA": "0"}, check=True)
    page = Sybil(parsers=[PythonCodeBlockParser()]).parse(OP.parent / "op.md")
    for example in page.examples():
        example.evaluate()
    torch.ops.load_library(tree / "flowkern" / "libflowkern_cpu.so")
    return page.namespace["rule"]


@pytest.mark.parametrize("shape", [(7, 3), (33, 17), (1, 1), (0, 4), (5, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_of_the_page_agrees_with_the_reference(rule, shape, dtype):
    x, u = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    cotangents = torch.randn(shape, dtype=dtype), torch.randn(shape[0], dtype=dtype)
    results = []
    for backend in ("cpu", "reference"):
        outputs = rule.apply(backend, (), x, u)
        results.append((*outputs, *torch.autograd.grad(outputs, (x, u), cotangents)))
    for ours, want in zip(*results):
        torch.testing.assert_close(ours, want)
