"""One table, by rich, as plain text or as Markdown."""

import textwrap
from typing import NamedTuple


class Table(NamedTuple):
    """Cells are plain text; the first column holds names, the others figures."""

    title: str
    columns: tuple
    rows: list
    notes: tuple = ()

    def show(self, console):
        """Print the table on a rich console, its notes below."""
        import rich.box
        import rich.markup
        import rich.table

        table = rich.table.Table(
            title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD, collapse_padding=True,
            pad_edge=False,
        )  # fmt: skip
        for i, column in enumerate(self.columns):
            longest = max(map(len, column.split()), default=0)
            table.add_column(column, justify="right" if i else "left", no_wrap=i == 0, min_width=longest)
        for row in self.rows:
            table.add_row(*map(rich.markup.escape, row))
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", markup=False, highlight=False)

    def text(self, width):
        """The table as plain text, its notes below, filled to `width`."""
        lines = [self.columns, *self.rows]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        lines = ["  ".join((line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:]))) for line in lines]
        notes = [textwrap.fill(note, width) for note in self.notes]
        return "\n".join((self.title, lines[0], "─" * len(lines[0]), *lines[1:], *notes))


def grid(header, rows):
    """A Markdown table whose columns are padded, so that it reads well in a terminal too."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"

    return [line(header), line(["-" * width for width in widths]), *map(line, rows)]
