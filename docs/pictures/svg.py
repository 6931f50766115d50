"""A few shapes as SVG, without a library, so that every machine writes the same bytes."""

import html

INK, QUIET, LINE, OURS, OTHER, LIMIT, PALE = "#1c2733", "#5b6875", "#9aa5b1", "#0f7b8a", "#a3adb8", "#e0a458", "#d6ecef"


class Picture:
    """A picture of a width; its height is what is drawn."""

    def __init__(self, width):
        self.width, self.height, self.shapes = width, 0, []

    def add(self, shape, bottom):
        self.shapes.append(shape)
        self.height = max(self.height, bottom)

    def box(self, x, y, width, height, fill="white", line=LINE, round=2):
        shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round}" fill="{fill}"'
        self.add(f'{shape} stroke="{line}"/>', y + height)

    def text(self, x, y, text, size=13, anchor="start", fill=INK, weight="normal"):
        shape = f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"'
        self.add(f'{shape} font-weight="{weight}">{html.escape(text)}</text>', y + 4)

    def line(self, x1, y1, x2, y2, color=LINE, width=1.2, arrow=False, dash=""):
        marks = ' marker-end="url(#arrow)"' if arrow else ""
        marks += f' stroke-dasharray="{dash}"' if dash else ""
        shape = (
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" stroke-width="{width}"{marks}/>'
        )
        self.add(shape, max(y1, y2))

    def cells(self, x, y, labels, marked=(), width=40, height=26):
        """A row of cells; those whose number is in `marked` are coloured."""
        for i, label in enumerate(labels):
            on = i in marked
            self.box(x + i * width, y, width, height, OURS if on else "white")
            self.text(x + (i + 0.5) * width, y + height / 2 + 4.5, label, 12.5, "middle", "white" if on else INK)

    def save(self, path):
        height = self.height + 14
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height:g}" width="{self.width}"'
        arrow = '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        lines = [
            f'{head} height="{height:g}" font-family="sans-serif">',
            f'<defs>{arrow}<path d="M0 0 8 4 0 8z" fill="{QUIET}"/></marker></defs>',
            f'<rect width="{self.width}" height="{height:g}" rx="6" fill="#fbfcfd"/>',
            *self.shapes,
            "</svg>",
        ]
        path.write_text("\n".join(lines) + "\n")
