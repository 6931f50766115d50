"""The directive `layout`: how tensors lie in memory, as rows of cells.

    ```{layout}
    x | x₀ x₁* x₂ x₃*
    ```

Each line is one row: a label, and the cells from left to right. A star marks a cell; `…` is a gap.
"""

import html

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Layout(SphinxDirective):
    has_content = True

    def run(self):
        rows = "\n".join(_row(line) for line in self.content)
        return [nodes.raw("", f'<div class="layout">{rows}</div>', format="html")]


def _row(line):
    label, _, cells = (part.strip() for part in line.partition("|"))
    return f"<span>{html.escape(label)}</span><div>{''.join(map(_cell, cells.split()))}</div>"


def _cell(text):
    if text == "…":
        return "<em>…</em>"
    kind = ' class="marked"' if text.endswith("*") else ""
    return f"<i{kind}>{html.escape(text.rstrip('*'))}</i>"


def setup(app):
    app.add_directive("layout", Layout)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
