"""A self-contained HTML page: sections of text, pictures (embedded) and tables."""

import base64
import html
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class Section(NamedTuple):
    """A heading, a paragraph of plain text, then any of: code, a picture (PNG or GIF), a table."""

    title: str
    text: str
    code: str = ""
    picture: Path | None = None
    caption: str = ""
    table: object = None

    def for_page(self):
        parts = [f"<h2>{html.escape(self.title)}</h2>", f"<p>{html.escape(self.text)}</p>"]
        if self.code:
            parts.append(f"<pre>{html.escape(self.code)}</pre>")
        if self.picture is not None:
            parts.append(_figure(self.picture, self.caption))
        if self.table is not None:
            parts.append(_table(self.table))
        return "<section>" + "\n".join(parts) + "</section>"


def write(path, *, title, lead, headline, sections):
    """Write the page to `path`.

    Args:
        lead: one paragraph under the title.
        headline: (big figure, what it is) pairs, shown as cards.
        sections: a list of `Section`.
    """
    cards = "".join(
        f'<div class="card"><strong>{html.escape(value)}</strong>{html.escape(what)}</div>\n'
        for value, what in headline
    )
    template = files("demo").joinpath("page.html").read_text(encoding="utf-8")
    fields = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "cards": cards,
        "sections": "\n".join(section.for_page() for section in sections),
    }
    for name, value in fields.items():
        template = template.replace("{{" + name + "}}", value)
    path.write_text(template, encoding="utf-8")


def _figure(picture, caption):
    data, kind = base64.b64encode(picture.read_bytes()).decode(), picture.suffix[1:]
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _table(table):
    """As HTML, without its title."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in table.notes)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n{notes}'
