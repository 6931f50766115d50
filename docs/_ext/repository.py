"""What pages take from the repository: links to its files, and the table of planted faults."""

import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils import get_source_line
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
PAGE_OF = {"flowkern/ode": "solvers"} | {
    f"flowkern/ops/{readme.parent.name}": f"kernels/{readme.parent.name.lstrip('_')}"
    for readme in ROOT.glob("flowkern/ops/*/README.md")
}


def link(app, doctree):
    """Links to files that are no pages lead to the page that includes the file, or to a copy of it beside the site."""
    for node in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        target, _, fragment = node["reftarget"].partition("#")
        outside = node.get("refdomain") == "doc" and target not in app.env.found_docs  # as MyST sees ../CONTRIBUTING.md
        if node.get("reftype") != "myst" or not target or (node.get("refdomain") and not outside):
            continue
        here = Path(get_source_line(node)[0] or app.env.doc2path(node["refdoc"])).parent
        target = f"{target}.md" if outside else target
        path = (here / target).resolve()
        if path.is_relative_to(ROOT) and path.exists():
            node.replace_self(_reference(app, node, path, fragment))


def _reference(app, node, path, fragment):
    name = path.relative_to(ROOT).as_posix()
    page = PAGE_OF.get(name.removesuffix("/README.md"))
    if page is None and path.is_relative_to(app.srcdir):
        page = path.relative_to(app.srcdir).with_suffix("").as_posix()
    if page and Path(app.srcdir, f"{page}.md").exists():
        refers = dict(refdoc=node["refdoc"], reftype="myst", refexplicit=True)
        return addnodes.pending_xref(
            "", *node.children, refdomain="doc", reftarget=page, reftargetid=fragment or None, **refers
        )
    if path.is_dir():
        return nodes.inline("", "", *node.children)
    return nodes.reference("", "", *node.children, refuri=_copy(app, node["refdoc"], path, name))


def _copy(app, page, path, name):
    """The address, seen from `page`, of a copy that browsers show as text."""
    copy = Path(app.outdir, "source", f"{name}.txt")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    return "../" * page.count("/") + f"source/{name}.txt"


class Faults(SphinxDirective):
    """The planted faults of one kernel, out of the table in emulation.md."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        table = Path(self.env.srcdir, "emulation.md")
        self.env.note_dependency(str(table))
        rows = [line for line in table.read_text().splitlines() if line.startswith(f"| {self.arguments[0]} |")]
        if not rows:
            raise self.error(f"emulation.md has no fault of {self.arguments[0]}")
        rows = ["|" + row.split("|", 2)[2] for row in rows]
        return self.parse_text_to_nodes("\n".join(["| fault | caught by |", "|---|---|", *rows]))


def setup(app):
    app.add_directive("faults", Faults)
    app.connect("doctree-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
