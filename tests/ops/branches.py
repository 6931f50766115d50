"""Which way the `if`s of Triton kernels went while the interpreter ran them.

All of them are decided when a kernel is compiled, so each way is code of its own. The interpreter runs
a kernel's source under its own file name and line numbers, so a trace of lines tells.
"""

import ast
import contextlib
import sys
from pathlib import Path


def branches(path):
    """{(line of the if, whether it holds)} for every `if` in a function marked @triton.jit."""
    for function in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(function, ast.FunctionDef) and _compiled(function):
            for node in ast.walk(function):
                assert not isinstance(node, ast.IfExp), f"{path}:{node.lineno}: lines do not tell its way"
                if isinstance(node, ast.If):
                    yield from ((node, True), (node, False))


def _compiled(function):
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@contextlib.contextmanager
def traced(paths):
    """Collects {path: {(line, the next line in the same call)}} while the block runs."""
    steps, last = {str(path): set() for path in paths}, {}

    def line(frame, event, _):
        if event == "line":
            steps[frame.f_code.co_filename].add((last.get(frame), frame.f_lineno))
            last[frame] = frame.f_lineno
        elif event == "return":
            steps[frame.f_code.co_filename].add((last.pop(frame, None), None))
        return line

    previous = sys.gettrace()
    sys.settrace(lambda frame, *_: line if frame.f_code.co_filename in steps else None)
    try:
        yield steps
    finally:
        sys.settrace(previous)


def not_taken(path, steps):
    """["line 12: KIND == 0 is never true", …] of a file's branches."""
    missing = []
    for node, holds in branches(path):
        inside = {b for a, b in steps if a == node.lineno}
        first = node.body[0].lineno
        if first not in inside if holds else not inside - {first}:
            missing.append(f"line {node.lineno}: {ast.unparse(node.test)} is never {str(holds).lower()}")
    return missing
