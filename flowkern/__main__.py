"""`python -m flowkern info` tells what runs here, `python -m flowkern check` whether it computes the right numbers, and
`python -m flowkern schemas` prints what a C++ program needs."""

import argparse
import os
import sys
import warnings
from typing import Any

from flowkern import backends
from flowkern.ops._dispatcher import as_cpp
from flowkern.report.machine import machine, versions


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m flowkern")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, devices, and which backends run here")
    commands.add_parser("check", help="compare every op on every device with the float64 reference, in seconds")
    commands.add_parser("schemas", help="print the schemas of all ops as C++, for a program that runs exported models")
    command = parser.parse_args(arguments).command
    if command != "check":
        print(info() if command == "info" else as_cpp(), end="\n" if command == "info" else "")
        return True
    from flowkern.check import check

    return check()


def info() -> Any:
    """Versions, machine and backends as text."""
    return "\n\n".join(
        (
            _block("Versions", versions("triton", "nflows", "zuko", "normflows")),
            _block("Machine", machine()),
            _block("Backends", {name: _state(name) for name in backends.NAMES}),
            f"CPU tensors run on: {_chosen()}",
        )
    )


def _block(title, fields):
    width = max(map(len, fields))
    return "\n".join((title, *(f"  {name:{width}}  {value}" for name, value in fields.items())))


def _state(name):
    reason = backends.unavailable(name)
    return "available" if reason is None else f"not available: {reason}"


def _chosen() -> Any:
    """The backend for CPU tensors, or why the one that FLOWKERN_BACKEND names cannot serve them."""
    wish = os.environ.get("FLOWKERN_BACKEND")
    origin = f" (FLOWKERN_BACKEND={wish})" if wish else ""
    try:
        with warnings.catch_warnings():  # the table says already why there are no kernels
            warnings.simplefilter("ignore")
            return backends.resolve("cpu") + origin
    except (RuntimeError, ValueError) as error:
        return f"nothing: {error}"


if __name__ == "__main__":
    sys.exit(not main())
