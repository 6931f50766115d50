"""docs/deploy.md: an exported flow runs in a C++ program that links flowkern's library."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zuko
from torch.export import Dim

import flowkern
from flowkern import backends

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"


class LogProb(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)


def test_a_cpp_program_that_links_the_library_computes_pythons_numbers(tmp_path):
    if backends.unavailable("cpu"):
        pytest.skip(backends.unavailable("cpu"))
    flow = zuko.flows.NSF(features=3, transforms=2, hidden_features=(8,))
    flowkern.accelerate(flow).eval().requires_grad_(False)
    x = torch.arange(15.0).view(5, 3) / 10
    program = torch.export.export(LogProb(flow), (x[:2],), dynamic_shapes=({0: Dim("batch")},))
    assert any("flowkern" in str(node.target) for node in program.graph.nodes)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "flow.pt2"))

    main = tmp_path / "main"
    subprocess.run(["bash", DEPLOY / "build.sh", sys.executable, main], check=True)
    done = subprocess.run([main, package], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor([float(line) for line in done.stdout.split()])
    torch.testing.assert_close(found, flow().log_prob(x), rtol=1e-6, atol=1e-6)
