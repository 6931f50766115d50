"""Imports go one way, and `import flowkern` costs little and changes nothing."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cases

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "flowkern").rglob("*.py")
}
OPS = sorted(path.parent.name[1:] for path in (ROOT / "flowkern" / "ops").glob("_*/__init__.py"))

# room of flowkern: the rooms it may import, beside _torch, which all may
ROOMS = {
    "_torch": set(),
    "": {"backends", "ops"},
    "_library": set(),
    "backends": {"_library"},
    "ops": {"_library", "backends"},
    "nn": {"ops"},
    "bases": {"nn", "ops"},
    "distributions": {"bases", "nn", "ops"},
    "programs": {"backends", "ops"},
    "transforms": {"nn", "ops", "programs"},
    "flows": {"bases", "distributions", "nn", "ops", "transforms"},
    "matching": {"ops"},
    "ode": {"ops"},
    "adapters": {"backends", "nn", "ode", "ops", "programs"},
    "report": {"", "backends"},
    "profiling": {"adapters", "report"},
    "verification": {"adapters", "profiling", "report"},
    "check": {"backends", "ops", "report"},
    "__main__": {"", "backends", "check", "ops", "report"},
}
# module of an op's folder: what it may import of flowkern beside _torch, written without "flowkern." and "ops.".
# An op with other modules has a table of its own in tests/cases.
OP_MODULES = {
    "reference": {"_arguments", "scale_map", "kinds"},
    "native": {"_library", "_arguments", "_dispatcher", "_native"},
    "triton": {"_dispatcher", "_launch_parameters", "_triton", "_arguments", "native", "scale_map", "triton_element"},
    "triton_element": {"_triton", "kinds"},
    "function": {"_function", "reference", "native", "triton"},
    "scale_map": set(),
    "kinds": set(),
    "__init__": {"backends", "_arguments", "_plain", "function", "native", "scale_map", "kinds"},
}


def imported(path, package="flowkern"):
    """The modules of the package that the file names, anywhere in it, in an import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == package)


def room(module):
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_rooms_import_downwards(name):
    for module, path in MODULES.items():
        if room(module) == name:
            above = {other for other in imported(path) if room(other) not in {name, "_torch", *ROOMS[name]}}
            assert not above, f"{module} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize(
    "folder, others",
    [
        ("flowkern", ("bench", "demo", "tests")),
        ("demo", ("bench", "tests")),
        ("bench", ("tests",)),
        ("tests", ("bench",)),
    ],
)
def test_folders_import_one_way(folder, others):
    """What tests and benchmarks both need is in the package; the gate knows parts that measure speed by name."""
    for path in (ROOT / folder).rglob("*.py"):
        for other in others:
            assert not {*imported(path, other)}, f"{path.relative_to(ROOT)} imports {other}"


def test_every_module_has_a_room():
    assert {room(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("op", OPS)
def test_op_modules_import_downwards(op):
    """An op knows no other op's Function, and its kernels know neither each other nor their own."""
    prefix = f"flowkern.ops._{op}"
    own = cases.modules("imports").get(op)
    modules = own.MODULES if own else OP_MODULES
    for module, path in MODULES.items():
        if module == prefix or module.startswith(prefix + "."):
            may = ({"problem": {"_problem", f"_{op}"}} | modules)[path.stem]
            for other in imported(path):
                short = other.removeprefix(prefix + ".").removeprefix("flowkern.")
                short = short.removeprefix("ops.")
                assert short in may | {"_torch"}, f"{module} imports {other}"


def test_others_use_the_public_ops():
    shared = (
        "activation",
        "arguments",
        "plain",
        "batched",
        "dispatcher",
        "modules",
        "problem",
        "random",
        "status",
        "tableau",
    )
    public = {"flowkern.ops", *(f"flowkern.ops._{name}" for name in shared)}
    public |= {f"flowkern.ops._{op}" for op in OPS}
    for module, path in MODULES.items():
        if room(module) != "ops":
            private = {m for m in imported(path) if room(m) == "ops"} - public
            assert not private, f"{module} imports {', '.join(sorted(private))}"


def private_names(path):
    """The names of torch in the file that start with one underscore, written out from where they are imported."""
    tree, known = ast.parse(path.read_text()), {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
        else:
            continue
        yield from (name for _, name in names if _is_private(name))
        known |= {short: name for short, name in names if name.split(".")[0] == "torch"}
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in known:
            name = ".".join((known[node.id], *parts))
            yield from [name] * _is_private(name)


def _is_private(name):
    return name.split(".")[0] == "torch" and any(re.match("_(?!_)", part) for part in name.split("."))


def test_one_file_holds_the_private_names_of_torch():
    holders = {module for module, path in MODULES.items() if any(private_names(path))}
    assert holders == {"flowkern._torch"}
    marks = {module for module, path in MODULES.items() if "_dynamo_marked" in path.read_text()}
    assert marks == {"flowkern._torch"}


def run(code, *options):
    result = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout + result.stderr == ""


def test_import_is_cheap():
    """Beyond torch it loads flowkern's own few modules: no Triton, no peer, no plotting."""
    run("""if True:
        import sys, torch
        before = set(sys.modules)
        import flowkern
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        assert new <= {"flowkern", *sys.stdlib_module_names}, new
        loaded = {n.split(".")[1] for n in sys.modules if n.startswith("flowkern.")}
        assert loaded <= {"_library", "_torch", "backends", "ops"}, loaded
        assert "torch._dynamo" not in sys.modules and "triton" not in sys.modules
    """)


def test_import_changes_nothing():
    """Nor warns: not a setting, a random state, a thread count or the floating-point mode."""
    run(
        """if True:
        import os, torch, threading
        def state():
            return (
                torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
                torch.get_rng_state().sum().item(), torch.are_deterministic_algorithms_enabled(),
                torch.cuda.is_initialized(), dict(os.environ), threading.active_count(),
                os.getcwd(), (torch.tensor([1e-40]) * 1).item(), float("5e-324") * 1.0,
                torch.full((64,), 1e-40).mul(1.5).sum().item(),
            )
        before = state()
        import flowkern
        assert state() == before
        """,
        "-W",
        "error",
    )


def test_lazy_attributes():
    run("""if True:
        import sys, flowkern
        assert "flowkern.flows" not in sys.modules
        assert flowkern.nn.VectorField and flowkern.ode_error and flowkern.distributions and flowkern.accelerate
        assert flowkern.flows.RealNVP and flowkern.transforms
        assert flowkern.profile is flowkern.profiling.profile and "rich" not in sys.modules
        try:
            flowkern.nonsense
        except AttributeError as error:
            assert "nonsense" in str(error)
        else:
            raise AssertionError("no AttributeError")
    """)


def test_no_public_name_hides_a_module():
    """What `flowkern.ops.name` gives is what `import flowkern.ops.name` gives, or there is no such module."""
    for module in MODULES:
        package, _, name = module.rpartition(".")
        if package and "._" not in module:
            importlib.import_module(module)
            assert getattr(importlib.import_module(package), name, None) in (None, sys.modules[module]), module


def used(op):
    """The other ops that an op imports something of."""
    folder = ROOT / "flowkern" / "ops" / f"_{op}"
    every = {name.split(".")[2][1:] for path in folder.glob("*.py") for name in imported(path) if name.count(".") > 1}
    return every & {*OPS} - {op}


def test_ops_can_be_removed(tmp_path):
    """Without the folders of ops that no other op uses, and their imports, what goes through all ops still imports."""
    for folder in ("flowkern", "tests", "csrc"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    names = tmp_path / "flowkern" / "ops" / "__init__.py"
    left = set().union(*map(used, OPS))
    for op in {*OPS} - left:
        for folder in (f"flowkern/ops/_{op}", f"csrc/{op}", f"tests/cases/{op}"):
            shutil.rmtree(tmp_path / folder)
        names.write_text(
            re.sub(rf"^from flowkern\.ops\._{op} import (\([^)]*\)|.*)\n", "", names.read_text(), flags=re.M)
        )
    code = f"""if True:
        import flowkern
        from tests import cases, options
        from tests.gpu.compiled import cuda_kernels, triton_kernels
        from tests.gpu.emulation import device
        from tests.gpu.gate import correctness
        from tests.gpu.sanitizers import planted, run, sample
        from flowkern.ops._problem import all_problems
        assert all_problems() and cases.modules("calls") and cases.modules("imports")
        compiled = cuda_kernels.SOURCES, triton_kernels.LAUNCHES
        for ops in (cases.OPS, options.SPACES, *compiled, correctness.OPS, run.ops("emulated")):
            assert {{*ops}} == {left}, ops
        assert planted.faults() and device.OPS and run.named("emulated")
    """
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "FLOWKERN_BACKEND": "reference"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
