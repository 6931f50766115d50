"""Kernels against what the same run measured of copies and matrix products: tables, and a picture for each op."""

import html
import math

WIDTH, HEIGHT, EDGE = 440, 300, 44
COLOURS = {"cuda": "#1f6feb", "triton": "#d97706"}


def section(results, predictions):
    """HTML of all ops that were timed."""
    limits = results.get("limits", {})
    copy, matmul = limits.get("copy", {}).get("bytes/s"), limits.get("matmul float32", {}).get("FLOP/s")
    timed = [r for r in results.get("own", {}).values() if "seconds" in r]
    if not (copy and matmul and timed):
        return ["<p>The copy, the matrix product or the kernels have not been timed.</p>"]
    lines = [
        f"<p>Copy {copy / 1e9:.0f} GB/s, float32 product {matmul / 1e12:.1f} TFLOP/s. Bytes and operations are "
        "the least that a kernel must move and do, counted by hand; shares are of the bound that is nearer.</p>"
    ]
    for op in dict.fromkeys(r["op"] for r in timed):
        rows = [measured(r, copy, matmul, predictions) for r in timed if r["op"] == op]
        lines += [f"<h3>{html.escape(op)}</h3>", *_table(rows), picture(op, rows, copy, matmul)]
    return lines


def measured(result, copy, matmul, predictions):
    """The result, with `share` of the bound and `predicted`, that of CUDA's kernel, and what limits it."""
    bound = max(result["bytes"] / copy, result["flops"] / matmul)
    predicted = predictions.get(result["op"], {}).get(result["predicted"], {}) if result["backend"] == "cuda" else {}
    return result | {
        "share": bound / result["seconds"], "memory": result["bytes"] / copy >= result["flops"] / matmul,
        "predicted": predicted.get("share"), "limit": predicted.get("limit", ""),
    }  # fmt: skip


def _table(rows):
    header = ("kernel", "backend", "time", "GB/s", "TFLOP/s", "of the bound", "predicted", "predicted limit")
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in header) + "</tr>"
    for r in rows:
        predicted = "" if r["predicted"] is None else f"{r['predicted']:.0%}"
        bound = "copy" if r["memory"] else "product"
        rates = f"{r['bytes'] / r['seconds'] / 1e9:.0f}", f"{r['flops'] / r['seconds'] / 1e12:.2f}"
        time = f"{r['seconds'] * 1e6:.1f} µs"
        cells = r["name"], r["backend"], time, *rates, f"{r['share']:.0%} of {bound}", predicted, r["limit"]
        yield "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def picture(op, rows, copy, matmul):
    """Operations per second over operations per byte, both logarithmic, below the two bounds."""
    xs = [r["flops"] / r["bytes"] for r in rows] + [matmul / copy]
    left, right = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)) + 0.1)
    top = math.ceil(math.log10(matmul))
    bottom = min(math.floor(math.log10(r["flops"] / r["seconds"])) for r in rows)

    def at(x, y):
        across = EDGE + (math.log10(x) - left) / (right - left) * (WIDTH - 1.5 * EDGE)
        return across, HEIGHT - EDGE - (math.log10(y) - bottom) / (top - bottom) * (HEIGHT - 1.5 * EDGE)

    ridge = matmul / copy
    corners = (at(10**left, max(copy * 10**left, 10**bottom)), at(ridge, matmul), at(10**right, matmul))
    roof = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    points = [_point(r, *at(r["flops"] / r["bytes"], r["flops"] / r["seconds"])) for r in rows]
    marks = [_mark(*at(10**e, 10**bottom), f"{10.0**e:g}", 16) for e in range(left, right + 1)]
    marks += [_mark(*at(10**left, 10**e), f"{10.0 ** (e - 12):g}", 0) for e in range(bottom, top + 1)]
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
        f'<polyline points="{roof}" fill="none" stroke="#8b95a5" stroke-width="1.5"/>{"".join(points + marks)}</svg>'
        f"<figcaption>{html.escape(op)}: TFLOP/s over FLOP/byte; blue CUDA, orange Triton</figcaption></figure>"
    )


def _point(r, x, y):
    title = html.escape(f"{r['name']}, {r['backend']}: {r['share']:.0%}")
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[r["backend"]]}"><title>{title}</title></circle>'


def _mark(x, y, text, below):
    anchor = "middle" if below else "end"
    x = x if below else x - 5
    return f'<text x="{x:.1f}" y="{y + below:.1f}" font-size="11" text-anchor="{anchor}">{text}</text>'
