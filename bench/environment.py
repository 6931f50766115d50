"""What a result depends on besides the code: machine, versions, threads, allocator, backend."""

import importlib
import os
import pkgutil
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

import flowkern
from bench import harness, memory
from flowkern import backends
from flowkern.report.machine import version


def describe(quick):
    """The environment as a dictionary of short strings, without names of hosts or folders."""
    effort = harness.effort(quick)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "effort": f"{effort.rounds} rounds, samples of {1e3 * effort.sample_seconds:.0f} ms",
        "machine": _cpu(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {sys.version.split()[0]}",
        "versions": ", ".join(
            f"{name} {version(name)}"
            for name in ("torch", "nflows", "zuko", "normflows", "torchdiffeq", "jax", "diffrax")
        ),
        "flowkern": f"{flowkern.__version__}, {_revision()}",
        "backends": _backends(),
        "threads": f"{torch.get_num_threads()} ({_thread_settings()})",
        "allocator": memory.keep_pages(),
    }


def _backends():
    """Which backend runs each op on the CPU: its name alone where it is the same for all."""
    chosen = {op: backends.resolve("cpu", kernels) for op, kernels in _kernels()}
    names = set(chosen.values())
    return f"{names.pop()} for all ops" if len(names) == 1 else ", ".join(f"{op} on {b}" for op, b in chosen.items())


def _kernels():
    """(op, the backends that have kernels of it)."""
    for module in pkgutil.iter_modules(flowkern.ops.__path__):
        if module.ispkg:
            yield module.name[1:], importlib.import_module(f"flowkern.ops.{module.name}.native").KERNELS


def _cpu():
    info = _read("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info)
    family = re.search(r"cpu family\s*:\s*(\d+)", info)
    cache = _read("/sys/devices/system/cpu/cpu0/cache/index3/size").strip()
    parts = [model[1] if model else platform.processor() or platform.machine()]
    parts += [f"family {family[1]}"] if family else []
    parts += [torch.backends.cpu.get_cpu_capability(), f"{os.cpu_count()} cores"]
    parts += [f"last-level cache {cache}"] if cache else []
    return ", ".join(parts)


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _revision():
    """The commit that was measured, and whether the tree differed from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "revision unknown"
    return f"revision {found.stdout.strip()}"


def _thread_settings():
    settings = sorted(v for v in os.environ if v.startswith(("OMP_", "GOMP_", "KMP_", "MKL_")))
    return ", ".join(f"{v}={os.environ[v]}" for v in settings) or "no OMP or MKL setting"
