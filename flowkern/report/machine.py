"""What this machine is and which versions run on it, as plain text fields."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import flowkern


def machine() -> Any:
    """Name → value for the hardware that a figure was measured on."""
    fields = {
        "Processor": processor(),
        "Instruction set": torch.backends.cpu.get_cpu_capability(),
        "Cores": str(cores()),
        "Threads used": str(torch.get_num_threads()),
        "System": f"{platform.system()} {platform.machine()}",
    }
    for i in range(torch.cuda.device_count()):
        fields[f"GPU {i}"] = torch.cuda.get_device_name(i)
    return fields


def versions(*packages):
    """Name → version of Python, torch, flowkern and those of `packages` that are installed."""
    found = {
        "Python": platform.python_version(),
        "torch": torch.version.__version__,
        "flowkern": flowkern.__version__,
    }
    for package in packages:
        found[package] = version(package)
    return found


def version(package):
    """The installed version of `package`, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cores() -> Any:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def processor() -> Any:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
