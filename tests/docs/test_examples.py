"""Every Python example of README.md, of the documentation and of the READMEs beside the code runs."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.adapters import samplers

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    # test_write.py runs the page on ops: its op can be registered only once in a process.
    *sorted(set(ROOT.glob("docs/**/*.md")) - {ROOT / "docs" / "write" / "op.md"}),
    *sorted(ROOT.glob("flowkern/**/README.md")),
]
EXAMPLES = Sybil(parsers=[PythonCodeBlockParser()])
DOCUMENTS = {page.relative_to(ROOT).as_posix(): EXAMPLES.parse(page) for page in PAGES}
WITH_EXAMPLES = {name: document for name, document in DOCUMENTS.items() if list(document.examples())}

# What the examples use of packages that the tests do not install, from tests/adapters/samplers.py.
STAND_INS = {
    "flow_matching.solver": {"ODESolver": samplers.ODESolver},
    "torchdyn.core": {"NeuralODE": samplers.NeuralODE},
    "torchcfm.utils": {"torch_wrapper": samplers.torch_wrapper},
    "torchcfm.models": {"MLP": samplers.MLP},
}


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """The stand-ins, where the package itself is not installed."""
    for name in [name for name in STAND_INS if importlib.util.find_spec(name.partition(".")[0]) is None]:
        package = name.partition(".")[0]
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(STAND_INS[name])


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_the_examples_of_a_page_run_one_after_the_other(page, monkeypatch, tmp_path):
    if page == "docs/deploy.md":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    monkeypatch.chdir(tmp_path)
    for example in WITH_EXAMPLES[page].examples():
        example.evaluate()
