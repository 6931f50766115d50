"""Explicit Runge–Kutta tableaux: y' = y + h Σ b_i k_i, k_i = f(t + c_i h, y + h Σ_{j<i} a_ij k_j)."""

from typing import NamedTuple


class Tableau(NamedTuple):
    """a: row i has its i entries a_ij, j < i.  b, c: one entry for each stage."""

    a: tuple
    b: tuple
    c: tuple

    @property
    def stages(self):
        return len(self.b)

    def flat(self):
        """(a row after row, b, c), as the kernels take them."""
        return tuple(entry for row in self.a for entry in row), self.b, self.c


_DOPRI5 = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)

# Names mean what they mean in torchdiffeq, so "rk4" is the 3/8 rule. dopri5 is that pair's fifth-order
# formula with the steps that are given; its seventh stage serves the error estimate alone.
TABLEAUX = {
    "euler": Tableau(((),), (1.0,), (0.0,)),
    "midpoint": Tableau(((), (0.5,)), (0.0, 1.0), (0.0, 0.5)),
    "heun2": Tableau(((), (1.0,)), (0.5, 0.5), (0.0, 1.0)),
    "rk4": Tableau(
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        (0.0, 1 / 3, 2 / 3, 1.0),
    ),
    "rk4_classic": Tableau(
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        (0.0, 0.5, 0.5, 1.0),
    ),
    "dopri5": Tableau(
        _DOPRI5,
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    ),
}


def tableau(method):
    """The tableau of that name.

    Raises:
        ValueError: method is none of TABLEAUX.
    """
    if not isinstance(method, str) or method not in TABLEAUX:
        raise ValueError(f"method: expected one of {', '.join(TABLEAUX)}, got {method!r}")
    return TABLEAUX[method]
