"""The directive `api`: the public names of a module, with their signatures and docstrings, as Markdown.

    ```{api} flowkern.ops
    ```

A docstring's `Args:`, `Returns:`, `Raises:`, `Attributes:`, `Source:` and `Example:` become lists and code.
"""

import importlib
import inspect
import re

from sphinx.util.docutils import SphinxDirective

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Example")
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):[ \n]?", re.M)


class Api(SphinxDirective):
    required_arguments = 1

    def run(self):
        module = importlib.import_module(self.arguments[0])
        names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        lines = [line for name in sorted(names, key=str.lower) for line in of(name, getattr(module, name))]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def of(name, value):
    """The Markdown lines of one public name."""
    lines = [f"## {name}", ""]
    if callable(value):
        lines += ["```python", signature(name, value), "```", ""]
    lines += markdown(inspect.getdoc(value) or "")
    of_class = list(methods(value))
    return lines + (["**Methods**", "", *of_class, ""] if of_class else [])


def signature(name, value):
    """The call without annotations; one argument a line where it is long."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return f"{name}(…)"
    bare = [_parameter(p) for p in parameters]
    line = f"{name}({', '.join(bare)})"
    return line if len(line) <= 90 else f"{name}(\n    " + ",\n    ".join(bare) + ",\n)"


def _parameter(parameter):
    """The parameter without its annotation; a class as default value by its name."""
    bare, default = parameter.replace(annotation=parameter.empty), parameter.default
    if inspect.isclass(default) and default is not parameter.empty:
        return f"{bare.replace(default=parameter.empty)}={default.__name__}"
    return str(bare)


def methods(cls):
    """The first line of the docstring of each public method and property that the class itself defines."""
    if not inspect.isclass(cls):
        return
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        call = name if isinstance(value, property) else signature(name, getattr(cls, name))
        first = function.__doc__.strip().partition("\n\n")[0]
        yield f"- `{' '.join(call.split())}`: {' '.join(first.split())}"


def markdown(text):
    """A docstring as Markdown lines."""
    parts = _SECTION.split(text)
    lines = [*parts[0].splitlines(), ""]
    for section, body in zip(parts[1::2], parts[2::2]):
        body = inspect.cleandoc(body) if not body.startswith(" ") else inspect.cleandoc("\n" + body)
        lines += _section(section, body)
    return lines


def _section(section, body):
    if section == "Example":
        return ["```pycon", *body.splitlines(), "```", ""]
    if section in ("Args", "Attributes", "Raises"):
        return [f"**{section}**", "", *_entries(body), ""]
    return [f"**{section}:** {' '.join(body.split())}", ""]


def _entries(body):
    """`name: text` with indented continuations as a list."""
    entries = []
    for line in body.splitlines():
        if line[:1].strip() and ":" in line:
            name, _, text = line.partition(":")
            entries.append(f"- `{name.strip()}`: {text.strip()}")
        elif entries and line.strip():
            entries[-1] += " " + line.strip()
        elif line.strip():
            entries.append(line.strip())
    return entries


def setup(app):
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
