"""How tensors lie in memory, a picture for each op: {name: function that draws it}."""

from svg import INK, OURS, PALE, QUIET, Picture


def affine_coupling():
    p = Picture(700)
    _row(p, 20, "x", ["x₀", "x₁", "x₂", "x₃"], (1, 3), "a row of D = 4 features; index names 1 and 3")
    _row(
        p,
        66,
        "params, interleaved",
        ["b₁", "u₁", "b₃", "u₃"],
        (0, 1, 2, 3),
        "zuko, normflows: pairs of shift and scale",
    )
    _row(
        p,
        112,
        "or in halves",
        ["b₁", "b₃", "…", "u₁", "u₃"],
        (0, 1, 3, 4),
        "nflows, FrEIA: strides describe both, no copy",
    )
    _row(p, 158, "y", ["x₀", "y₁", "x₂", "y₃"], (1, 3), "features that are not named are copied in the same pass")
    _row(p, 204, "logabsdet", ["l"], (0,), "one number per row: the sum of log s over 1 and 3")
    return p


def rational_quadratic_spline():
    p = Picture(700)
    p.text(20, 24, "Parameters of elements (n, t), one after the other in memory:", fill=QUIET)
    columns = ["v₀", "v₁", "v₂", "v₃", "h₀", "h₁", "h₂", "h₃", "d₁", "d₂", "d₃"]
    for n in range(4):
        p.text(112, 58 + 28 * n, ("element 0", "element 1", "…", "element 15")[n], 12.5, "end", QUIET)
        p.cells(120, 40 + 28 * n, columns if n != 2 else ["…"] * 11, (2, 6, 9, 10) if n == 0 else (), 38)
    for i, text in ((1.5, "K widths"), (5.5, "K heights"), (9.5, "K − 1 slopes")):
        p.text(120 + 38 * (i + 0.5), 170, text, 12.5, "middle", QUIET)
    p.line(215, 182, 215, 204, QUIET, arrow=True)
    p.text(232, 198, "groups of four or eight columns are transposed in registers", fill=QUIET)
    p.text(112, 232, "registers", 12.5, "end", QUIET)
    for i, name in enumerate(("v₀", "v₁", "v₂", "v₃", "…")):
        p.cells(120 + 104 * i, 214, [f"{name} of 0…15"], (0,) if i == 2 else (), 98)
    p.text(
        20,
        268,
        "A lane is one element. Marked: what the bin with number 2 takes; of the slopes only two are read.",
        fill=QUIET,
    )
    return p


def masked_autoregressive():
    p = Picture(700)
    p.text(20, 24, "weights of a layer, units sorted by rank", fill=QUIET)
    for row in range(5):
        for column in range(5):
            fill = "white" if column > row else OURS if row == 3 else PALE
            p.box(58 + 34 * column, 40 + 34 * row, 34, 34, fill)
        p.text(48, 62 + 34 * row, str(row), 12, "end", QUIET)
        p.text(75 + 34 * row, 226, str(row), 12, "middle", QUIET)
    p.text(143, 246, "rank of what is read", 12.5, "middle", QUIET)
    p.text(20, 268, "white: never read; dark: read in step 3", fill=QUIET)
    p.line(246, 125, 306, 125, QUIET, arrow=True)
    p.text(330, 24, "a tile: one row per feature and unit, 32 samples wide", fill=QUIET)
    rows = ("x, rank 1 … 3", "x, rank 4", "u₁, rank 0 … 2", "u₁, rank 3", "u₂, rank 0 … 2", "u₂, rank 3")
    for i, name in enumerate(rows):
        p.text(430, 58 + 32 * i, name, 12.5, "end", INK)
        done = "rank 3" in name
        p.cells(440, 40 + 32 * i, ["n₀", "n₁", "n₂", "…", "n₃₁"], range(5) if done or "4" in name else (), 44)
    p.text(330, 246, "dark: computed in step 3, first units, then the", fill=QUIET)
    p.text(330, 264, "parameters of the feature of rank 4, then the feature", fill=QUIET)
    return p


def neural_ode():
    p = Picture(700)
    p.text(20, 24, "cache or shared memory: one tile of samples, from the first step to the last", fill=QUIET)
    for n in range(3):
        x = 24 + 222 * n
        p.box(x, 36, 206, 128, "#f1f6f7", round=4)
        p.text(x + 12, 56, ("step 0", "step 1", "step 2 …")[n], 12.5, fill=QUIET)
        for i, (name, width) in enumerate((("y", 1), ("k₁ … k₄", 4), ("u₁, u₂", 6), ("u₁′, u₂′", 6), ("∫ Tr", 1))):
            p.text(x + 66, 78 + 18 * i, name, 12, "end")
            p.box(x + 74, 67 + 18 * i, 20 * width, 13, OURS if name == "y" else PALE)
        if n:
            p.line(x - 16, 74, x + 2, 74, QUIET, arrow=True)
    p.text(100, 192, "main memory", fill=QUIET)
    for x, name in ((48, "y(t₀)"), (270, "y₁ kept"), (492, "y₂ kept"), (612, "y(t₁), ∫ Tr")):
        p.cells(x, 208, [name], (0,), 78 if x < 600 else 80)
    p.line(87, 206, 87, 168, QUIET, arrow=True)
    for x in (309, 531):
        p.line(x, 168, x, 206, QUIET, arrow=True)
    p.line(652, 168, 652, 206, QUIET, arrow=True)
    p.text(20, 264, "States are kept for the backward alone: every one, or one per checkpoint steps.", fill=QUIET)
    return p


def probability_path():
    p = Picture(700)
    p.text(20, 24, "128 elements in the order of memory, and the random word that each takes", fill=QUIET)
    names = ["c₀", "c₁", "c₂", "c₃", "…", "c₃₁"]
    for i, name in enumerate(names):
        p.text(170 + 62 * i, 50, f"counter {name}" if i == 0 else name, 12.5, "middle", QUIET)
    for j in range(4):
        first = 32 * j
        p.text(112, 78 + 34 * j, f"output {j}", 12.5, "end", QUIET)
        labels = [str(first), str(first + 1), str(first + 2), str(first + 3), "…", str(first + 31)]
        p.cells(139, 60 + 34 * j, labels, (0,) if j < 2 else (), 62, 28)
    p.text(
        20,
        220,
        "A lane of a vector, or a thread of a warp, has one counter, whose four outputs it stores 32 elements",
        fill=QUIET,
    )
    p.text(
        20, 238, "apart: neighbours store side by side. Dark: two outputs make a pair of normal numbers.", fill=QUIET
    )
    return p


def runge_kutta_stage():
    p = Picture(700)
    for i, name in enumerate(("y", "k₁", "k₂", "k₃", "k₄")):
        p.text(66, 42 + 32 * i, name, 13, "end")
        p.cells(76, 24 + 32 * i, ["0", "1", "2", "3", "…"], (2,), 40)
        p.line(282, 37 + 32 * i, 372, 101, QUIET)
    p.box(374, 78, 116, 46, PALE, round=4)
    p.text(432, 106, "y + Σ wⱼ kⱼ", 13.5, "middle")
    p.line(490, 101, 530, 101, QUIET, arrow=True)
    p.cells(534, 88, ["0", "1", "2", "…"], (2,), 36)
    p.text(374, 150, "weights w: one set for all rows,", 12.5, fill=QUIET)
    p.text(374, 167, "or one for each", 12.5, fill=QUIET)
    p.text(
        20,
        208,
        "Each tensor is read once and one is written: s + 2 numbers per element, where PyTorch moves 5s.",
        fill=QUIET,
    )
    return p


def flow_program():
    p = Picture(700)
    p.text(20, 24, "A tile of 32 samples goes through all steps; a feature is a row of the tile", fill=QUIET)
    orders = (
        ("x", "0123", ()),
        ("Conditioned", "0123", (1, 3)),
        ("Permutation", "3102", ()),
        ("LU", "0123", (0, 1, 2, 3)),
        ("Conditioned", "0123", (0, 2)),
    )
    for i, (name, order, changed) in enumerate(orders):
        x = 30 + 134 * i
        p.text(x + 46, 52, name, 12.5, "middle")
        for row, feature in enumerate(order):
            label = "₀₁₂₃"[int(feature)] if name == "Permutation" else "₀₁₂₃"[row]
            mark = name == "Permutation" and "s" or ("x" if not i else "s")
            p.box(x, 62 + 28 * row, 92, 24, OURS if row in changed else PALE if i else "white")
            p.text(x + 46, 79 + 28 * row, f"{mark}{label}", 12.5, "middle", "white" if row in changed else INK)
        if i:
            p.line(x - 40, 116, x - 4, 116, QUIET, arrow=True)
    p.text(30, 200, "log-density", 12.5)
    p.line(104, 196, 660, 196, OURS, 2, arrow=True)
    p.text(
        20, 226, "Dark: rows that a step computes. The rows between steps are all that the backward keeps.", fill=QUIET
    )
    return p


def _row(p, y, name, labels, marked, note):
    p.text(140, y + 18, name, 13, "end")
    p.cells(150, y, labels, marked)
    p.text(368, y + 18, note, 12, fill=QUIET)


ALL = {
    function.__name__: function
    for function in (
        affine_coupling, rational_quadratic_spline, masked_autoregressive, neural_ode, probability_path,
        runge_kutta_stage, flow_program,
    )
}  # fmt: skip
