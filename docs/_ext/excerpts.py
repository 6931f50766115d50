"""The directives `excerpts`, `limits` and `predictions`.

Functions of the sources in tabs, what the compiled kernels use, and how fast they should run.

    ```{excerpts}
    Reference | flowkern/ops/_probability_path/reference.py | forward
    CUDA      | csrc/probability_path/*.cu                  | forward_kernel
    ```

Each line is a tab: a label, the one file that a pattern names, and the functions to show. They are read at every build.
"""

import json
import re

from repository import ROOT
from sphinx.util.docutils import SphinxDirective

LANGUAGE = {".py": "python", ".cu": "cuda", ".cuh": "cuda"}


def function(lines, name, python):
    """The lines of a function or struct, with what precedes its name."""
    start = next((i for i, line in enumerate(lines) if _defines(line, name, python)), None)
    if start is None:
        return None
    first = start
    while first and lines[first - 1].lstrip().startswith(("template", "@", "//", "#pragma unroll")):
        first -= 1
    indent = re.match(" *", lines[start]).group()
    ends = r"(?=\S)(?!\))" if python else indent + r"(?:\}|[^ }].*\}\s*;?$)"
    stop = next(i for i in range(start + (python or not lines[start].rstrip().endswith("}")), len(lines) + 1)
                if i == len(lines) or re.match(ends, lines[i]))  # fmt: skip
    text = lines[first : stop + (0 if python else 1)]
    return "\n".join(line.removeprefix(indent) for line in text).rstrip()


def _defines(line, name, python):
    if python:
        return line.startswith(f"def {name}(")
    return bool(re.search(rf"\b{name}\((?!.*;\s*$)|\bstruct {name}\b", line)) and not line.lstrip().startswith("//")


class Excerpts(SphinxDirective):
    has_content = True

    def run(self):
        tabs = [self.tab(*(part.strip() for part in line.split("|"))) for line in self.content]
        return self.parse_text_to_nodes("\n".join(["::::{tab-set}", *tabs, "::::"]))

    def tab(self, label, pattern, names):
        paths = list(ROOT.glob(pattern))
        if len(paths) != 1:
            raise self.error(f"{pattern}: expected one file, got {len(paths)}")
        self.env.note_dependency(str(paths[0]))
        lines, python = paths[0].read_text().splitlines(), paths[0].suffix == ".py"
        codes = [function(lines, name, python) for name in names.split()]
        if None in codes:
            raise self.error(f"{paths[0].name} defines no {names.split()[codes.index(None)]}")
        language = LANGUAGE.get(paths[0].suffix, "c++")
        code = "\n\n".join(codes)
        name = paths[0].relative_to(ROOT)
        return f":::{{tab-item}} {label}\n```{{code-block}} {language}\n:caption: {name}\n\n{code}\n```\n:::"


class Limits(SphinxDirective):
    """What one thread of each kernel may use, out of the limits.json that the tests hold the compiled kernels to."""

    required_arguments = 1

    def run(self):
        op = self.arguments[0]
        lines = ["| kernel | registers | shared memory | spilled | occupancy |", "|---|---:|---:|---:|---:|"]
        for label, path in (("CUDA", f"csrc/{op}/limits.json"), ("Triton", f"flowkern/ops/_{op}/limits.json")):
            self.env.note_dependency(str(ROOT / path))
            for name, most in json.loads((ROOT / path).read_text()).items():
                lines.append(
                    f"| {label} `{name}` | {most['registers']} | {most['shared']} B | {most['spilled']} B "
                    f"| {most['occupancy']:.0%} |"
                )
        return self.parse_text_to_nodes("\n".join(lines))


class Predictions(SphinxDirective):
    """The shares of the roofline that the tests count from the compiled CUDA kernels."""

    required_arguments = 1

    def run(self):
        path = ROOT / "csrc" / self.arguments[0] / "predictions.json"
        self.env.note_dependency(str(path))
        lines = ["| CUDA kernel | share | limited by | instructions of a thread per element |", "|---|---:|---|---:|"]
        for name, found in json.loads(path.read_text()).items():
            lines.append(f"| {name} | {found['share']:.0%} | {found['limit']} | {found['instructions']:g} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    app.add_directive("excerpts", Excerpts)
    app.add_directive("limits", Limits)
    app.add_directive("predictions", Predictions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
