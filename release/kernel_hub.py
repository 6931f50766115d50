"""Lays the ops out as a kernel hub takes them: one folder for each stable-ABI variant, into dist/kernel_hub/build/.

    python -m release.kernel_hub cpu cu130

A hub loads kernels under names of its own, and several versions side by side. So imports between modules become
relative, and the dispatcher's namespace is unique: flowkern_ and a digest of the sources. The folder holds
`flowkern.ops` and the choice of backends; flows and adapters stay in the package. `make wheels` has to have run, or
`setup.py` needs what it needs: ziglang and, for CUDA, nvcc.
"""

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from release.wheels import GLIBC

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build/kernel_hub"
DIST = ROOT / "dist/kernel_hub/build"
HELD = ("_library.py", "_torch.py", "backends.py", "ops")
INIT = '''"""Fused kernels for normalizing flows: flowkern's ops."""

from .backends import backend
from .ops import *  # noqa: F403
from .ops import __all__ as _ops

__all__ = ["backend", *_ops]
'''
ARCHITECTURES = {"cpu": None, "cu130": ["8.0", "9.0a", "9.0+PTX"]}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m release.kernel_hub", description=__doc__.partition("\n")[0])
    parser.add_argument("variants", nargs="*", default=["cpu"], choices=ARCHITECTURES, help="default: cpu")
    for variant in parser.parse_args(arguments).variants:
        print(folder_of(variant, build=True))


def folder_of(variant, build, dist=DIST):
    """Lay out one variant; build: compile its libraries too."""
    folder = dist / f"torch-stable-abi211-{variant}-{platform.machine()}-linux"
    shutil.rmtree(folder, ignore_errors=True)
    namespace = f"flowkern_{digest_of_sources()}"
    for source in python_sources():
        target = folder / source.relative_to(ROOT / "flowkern")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rewritten(source, namespace) if source.suffix == ".py" else source.read_text())
    (folder / "__init__.py").write_text(INIT)
    if build:
        for library in libraries(variant, namespace):
            shutil.copy(library, folder)
    (folder / "metadata.json").write_text(json.dumps(metadata(folder, variant, namespace), indent=2) + "\n")
    return folder


def python_sources():
    found = [path for name in HELD for path in ((ROOT / "flowkern" / name).rglob("*"), [ROOT / "flowkern" / name])]
    found = {path for paths in found for path in paths if path.is_file() and path.name != "limits.json"}
    return sorted(path for path in found if path.suffix in (".py", ".json"))


def digest_of_sources():
    """Seven digits that change with any source."""
    digest = hashlib.sha256()
    for path in (*python_sources(), *sorted((ROOT / "csrc").rglob("*.*"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:7]


def rewritten(source, namespace):
    """A module with relative imports, whose dispatcher ops are in that namespace."""
    up = "." * len(source.relative_to(ROOT / "flowkern").parts)
    text = re.sub(r"^(\s*)from flowkern import ", rf"\1from {up} import ", source.read_text(), flags=re.M)
    text = re.sub(r"^(\s*)from flowkern\.(\S+) import ", rf"\1from {up}\2 import ", text, flags=re.M)
    text = re.sub(r"\btorch\.ops\.flowkern\b", f"torch.ops.{namespace}", text)
    text = re.sub(r"\btorch\.ops\.flowkern_triton\b", f"torch.ops.{namespace}_triton", text)
    text = re.sub(r'"flowkern(_triton)?"', rf'"{namespace}\1"', text)
    return re.sub(r"\bflowkern(_triton)?::", rf"{namespace}\1::", text)


def libraries(variant, namespace):
    """The compiled libraries of a variant, their ops in that namespace."""
    shutil.rmtree(TREE, ignore_errors=True)
    for name in ("csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        TREE.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, TREE / name)
    for path in (TREE / "csrc").rglob("*.cpp"):
        path.write_text(path.read_text().replace("LIBRARY_IMPL(flowkern,", f"LIBRARY_IMPL({namespace},"))
    settings = {"FLOWKERN_GLIBC": GLIBC, "FLOWKERN_CUDA": str(int(variant != "cpu"))}
    line = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib=lib", "--build-temp=temp"]
    subprocess.run(line, cwd=TREE, env=os.environ | settings, check=True)
    return sorted((TREE / "lib/flowkern").glob("*.so"))


def metadata(folder, variant, namespace):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "metadata.json")
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    backend = {"type": "cpu"} if variant == "cpu" else {"type": "cuda", "archs": ARCHITECTURES[variant]}
    return {
        "name": "flowkern", "id": namespace, "version": 0, "license": "mit", "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests},
    }  # fmt: skip


def _digest(path):
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()


if __name__ == "__main__":
    main()
