"""What is installed: the archive of sources, a wheel made from it without a compiler, what a build needs."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

import flowkern
from release import kernel_hub

ROOT = Path(__file__).parents[1]
# Not for users: limits that tests hold compiled GPU kernels to.
LEFT_OUT = {"limits.json"}


def files(folder, *kinds):
    """Relative paths of the files below a folder of the sources, of these kinds."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in kinds)
    return {str(path) for path in found if path.name not in LEFT_OUT}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The unpacked archive of sources."""
    folder = tmp_path_factory.mktemp("sources")
    build("build_sdist", ROOT, folder)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as file:
        file.extractall(folder)
    return folder / packed.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(archive, tmp_path_factory):
    """The wheel that holds no compiled kernels."""
    folder = tmp_path_factory.mktemp("wheel")
    build("build_wheel", archive, folder, FLOWKERN_COMPILED="0")
    (path,) = folder.iterdir()
    return path


def build(step, source, target, **environment):
    code = f"from setuptools import build_meta; build_meta.{step}({str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_archive_holds_all_that_a_build_needs(archive):
    held = {str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()}
    assert files("csrc", ".cpp", ".h", ".cu", ".cuh") <= held
    assert files("flowkern", ".py", ".json", ".md", ".html", ".typed") <= held
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= held
    assert not [name for name in held if name.endswith(".so") or name.startswith("tests/")]


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == files("flowkern", ".py", ".json", ".md", ".html", ".typed")


def test_a_wheel_without_kernels_is_for_every_machine(wheel):
    assert wheel.name == f"flowkern-{flowkern.__version__}-py3-none-any.whl"


def test_the_wheel_tells_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as file:
        (path,) = (name for name in file.namelist() if name.endswith("METADATA"))
        told = email.message_from_bytes(file.read(path))
    assert told["Version"] == flowkern.__version__ and told["License-Expression"] == "MIT"
    assert told["Requires-Python"] == ">=3.10" and "torch>=2.11" in told.get_all("Requires-Dist")
    assert told["Summary"] and told.get_payload().startswith("# flowkern")


def test_versions_agree():
    """In the package, its citation, the recipe for conda, and the newest section of the changes."""
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    newest = re.search(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    recipe = re.search(r'^  version: "(.+)"$', (ROOT / "release/conda/recipe.yaml").read_text(), re.M)[1]
    assert flowkern.__version__ == cited == newest == recipe


def test_without_kernels_the_first_call_tells_how_to_get_them(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """if True:
        import sys, torch, flowkern, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y, l = flowkern.ops.affine_coupling(torch.zeros(2, 3), torch.zeros(2, 3, 2))
        assert torch.equal(y, torch.zeros(2, 3)) and flowkern.__file__.startswith(sys.argv[1])
        print(caught[0].message)"""
    told = run(["-c", code, str(tmp_path)], tmp_path)
    assert told.startswith("flowkern falls back to its slow reference implementation (cpu: this installation holds no ")
    assert "with a C++20 compiler (g++ 11 or later) so does what pip install" in told
    info = run(["-m", "flowkern", "info"], tmp_path)
    assert "cpu        not available: this installation holds no cpu kernels" in info
    assert "CPU tensors run on: reference" in info
    assert "Everything that was checked is right." in run(["-m", "flowkern", "check"], tmp_path)


def test_where_nothing_is_compiled_triton_runs(wheel, tmp_path):
    """In its interpreter here, which stands for a GPU; `python -m flowkern check` there checks every op."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """if True:
        import torch, flowkern
        inputs = torch.randn(5, 3), torch.randn(5, 3, 2)
        with flowkern.backend("triton"):
            found = flowkern.ops.affine_coupling(*inputs)
        with flowkern.backend("reference"):
            torch.testing.assert_close(found, flowkern.ops.affine_coupling(*inputs))
        print(flowkern.backends.unavailable("cpu"))"""
    told = run(["-c", code], tmp_path, TRITON_INTERPRET="1")
    assert told.startswith("this installation holds no cpu kernels")


def run(arguments, folder, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWKERN")}
    environment |= {"PYTHONPATH": ".", **settings}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def isolated(tmp_path_factory):
    """A folder that hides all installed packages but setuptools, as pip does from the builds that it runs."""
    folder = tmp_path_factory.mktemp("isolated")
    installed = Path(setuptools.__file__).parents[1]
    for part in ("setuptools", "_distutils_hack", *(path.name for path in installed.glob("setuptools-*.dist-info"))):
        shutil.copytree(installed / part, folder / part)
    hidden = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path[:] = [p for p in sys.path if p not in {hidden}]\n")
    return folder


def required(python, folder, **environment):
    """What a build asks for beyond setuptools."""
    code = "from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environment}
    done = subprocess.run([python, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_an_isolated_build_reads_the_headers_of_the_installed_torch(isolated):
    hides = subprocess.run(
        [sys.executable, "-c", "import torch"], env={"PYTHONPATH": str(isolated)}, capture_output=True
    )
    assert b"No module named 'torch'" in hides.stderr
    assert required(sys.executable, isolated) == "[]"


def test_a_build_asks_for_torch_only_where_there_is_none(isolated, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    python = tmp_path / "bin/python"
    compiler = {"CXX": sys.executable}  # any program: it is not run before torch is there
    assert required(python, isolated, **compiler) == "['torch>=2.11']"
    assert required(python, isolated, **compiler, FLOWKERN_COMPILED="0") == "[]"
    assert required(python, isolated, PATH=str(tmp_path)) == "[]", "nothing can be compiled"


def test_a_kernel_hub_loads_the_ops_beside_the_package(tmp_path):
    """Under another name, in a namespace of their own, from relative imports alone."""
    folder = kernel_hub.folder_of("cpu", build=False, dist=tmp_path)
    code = """if True:
        import importlib.util, json, sys, torch, warnings
        warnings.simplefilter("ignore")  # its kernels are not compiled here
        where = dict(submodule_search_locations=[sys.argv[1]])
        spec = importlib.util.spec_from_file_location("hub_1", sys.argv[1] + "/__init__.py", **where)
        hub = sys.modules["hub_1"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(hub)
        assert "flowkern" not in sys.modules
        namespace = json.load(open(sys.argv[1] + "/metadata.json"))["id"]
        assert getattr(torch.ops, namespace).affine_coupling and not hasattr(torch.ops.flowkern, "affine_coupling")
        import flowkern
        x, params = torch.randn(5, 3), torch.randn(5, 3, 2)
        with flowkern.backend("reference"):
            want = flowkern.ops.affine_coupling(x, params)
        assert all(map(torch.equal, hub.affine_coupling(x, params), want))"""
    run(["-c", code, str(folder)], ROOT)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_every_issue_form_asks_for_what_info_prints(form):
    assert "python -m flowkern info" in form.read_text()


def test_the_public_workflow_runs_what_ci_runs():
    assert "- run: bash .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()
