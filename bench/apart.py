"""Measure each table in a process of its own.

A candidate that torch.compile gets wrong may also write where it should not (docs/benchmarks.md).
So once a candidate is refused its process is given up, and a new one measures the others.
"""

import multiprocessing

from bench import harness, memory, suite

_CONTEXT = multiprocessing.get_context("spawn")


def measure(name, quick):
    """The table `name` as plain data, each refused candidate with the reason.

    Raises:
        RuntimeError: the process died while it timed candidates that had passed their checks.
    """
    refused = {}
    while True:
        last, exit_code = _attempt(name, quick, refused)
        if isinstance(last, dict):
            return last
        if isinstance(last, tuple):
            refused.update(last)
        elif last in (None, harness.TIMING):
            raise RuntimeError(f"{name}: its process died with exit code {exit_code}")
        else:
            refused[last] = f"ended its process with exit code {exit_code}"


def _attempt(name, quick, refused):
    """What a new process said last, and its exit code."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(sender, name, quick, refused))
    process.start()
    sender.close()
    last = None
    try:
        while not isinstance(last, (dict, tuple)):
            last = receiver.recv()
    except EOFError:
        pass
    process.join()
    return last, process.exitcode


def _work(sender, name, quick, refused):
    """Send what is being checked, and at the end the table (dict) or new refusals (tuple of pairs)."""
    memory.keep_pages()
    table = next(table for table in suite.tables(quick) if table.name == name)
    sender.send(harness.measure(table, harness.effort(quick), refused, sender.send))
