"""Formulas as MathML, which browsers draw themselves: no script, no font, no network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

# Between the name of a function and what it is applied to: browsers leave no space there.
_APPLIED = re.compile(r'<mo>&ApplyFunction;</mo>(?!\s*<mo stretchy="false">\()')


def _mathml(latex, as_block):
    return _APPLIED.sub('<mspace width="0.17em"></mspace>', tex2mathml(latex, as_block=as_block))


def _inline(translator, node):
    translator.body.append(_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _display(translator, node):
    formula = _mathml(_aligned(node.astext()), as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def _aligned(latex):
    """Lines that are aligned are an environment for docutils."""
    needs_environment = re.search(r"(?<!\\)&|\\\\", latex) and r"\begin" not in latex
    return rf"\begin{{aligned}}{latex}\end{{aligned}}" if needs_environment else latex


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
