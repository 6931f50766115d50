"""Butcher tableaux of explicit Runge-Kutta methods.

Stage i is k_i = f(t0 + c_i h, y0 + h Σ_j a_ij k_j), the step y1 = y0 + h Σ_i b_i k_i, and the local
error h Σ_i b_error_i k_i. The dense output is y(t0 + θh) = y0 + h Σ_i k_i Σ_p dense_ip θ^(p+1).

A name that torchdiffeq has means what it means there: `rk4` is the 3/8 rule, `rk4_classic` the
classical method.

Sources: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I (II.1, II.4); Dormand and
Prince 1980 with Shampine's midpoint 1986; Bogacki and Shampine 1989; Tsitouras 2011.
"""

from typing import NamedTuple


class Tableau(NamedTuple):
    """Coefficients of one method. In adaptive ones the last stage is f(t1, y1), the next step's first.

    Attributes:
        a: stage i's weights of the stages before it: row i has i entries.
        b: weights of the step; c: times of the stages.
        b_error: weights of the local error; None for methods without error control.
        dense: stage i's polynomial, coefficients of θ, θ², …; None for methods without dense output.
    """

    name: str
    order: int
    a: tuple
    b: tuple
    c: tuple
    b_error: tuple | None = None
    dense: tuple | None = None


def tableau(name):
    """The tableau called `name`; a ValueError that names `method` where there is none."""
    if name not in TABLEAUX:
        raise ValueError(f"method: expected one of {', '.join(TABLEAUX)}, got {name!r}")
    return TABLEAUX[name]


def _quartic(b, middle):
    """The dense output that meets y and f at both ends, and y0 + h Σ middle_i k_i in the middle."""
    last = len(b) - 1
    rows = []
    for i, (end, mid) in enumerate(zip(b, middle, strict=True)):
        f0, f1 = float(i == 0), float(i == last)
        square = f1 - 4 * f0 - 5 * end + 16 * mid
        cube = 5 * f0 - 3 * f1 + 14 * end - 32 * mid
        rows.append((f0, square, cube, 2 * (f1 - f0) - 8 * end + 16 * mid))
    return tuple(rows)


def _difference(b, embedded):
    return tuple(x - y for x, y in zip(b, embedded, strict=True))


_BOSH3_B = (2 / 9, 1 / 3, 4 / 9, 0.0)
# Cubic Hermite. torchdiffeq's middle, (0, 1/2, 0, 0), is wrong in the second order.
_BOSH3_MIDDLE = (1 / 9 + 1 / 8, 1 / 6, 2 / 9, -1 / 8)
_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_DOPRI5_EMBEDDED = (
    1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60,
)  # fmt: skip
_DOPRI5_MIDDLE = (
    6025192743 / 30085553152 / 2, 0.0, 51252292925 / 65400821598 / 2, -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2, -1776094331 / 19743644256 / 2, 11237099 / 235043384 / 2,
)  # fmt: skip
_TSIT5_B = (
    0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
    2.324710524099774, 0.0,
)  # fmt: skip
_TSIT5_DENSE = (
    (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
    (0.0, 0.1317, -0.2234, 0.1017),
    (0.0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
    (0.0, -12.411077166933676, 30.338188630282318, -16.548102889244902),
    (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
    (0.0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
    (0.0, 1.5, -4.0, 2.5),
)

_METHODS = (
    Tableau("euler", 1, ((),), (1.0,), (0.0,)),
    Tableau("midpoint", 2, ((), (1 / 2,)), (0.0, 1.0), (0.0, 1 / 2)),
    Tableau("heun2", 2, ((), (1.0,)), (1 / 2, 1 / 2), (0.0, 1.0)),
    Tableau("heun3", 3, ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), (0.0, 1 / 3, 2 / 3)),
    Tableau(
        "rk4", 4,
        a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        c=(0.0, 1 / 3, 2 / 3, 1.0),
    ),
    Tableau(
        "rk4_classic", 4,
        a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 1 / 2, 1 / 2, 1.0),
    ),
    Tableau(
        "bosh3", 3,
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=_BOSH3_B,
        c=(0.0, 1 / 2, 3 / 4, 1.0),
        b_error=_difference(_BOSH3_B, (7 / 24, 1 / 4, 1 / 3, 1 / 8)),
        dense=_quartic(_BOSH3_B, _BOSH3_MIDDLE),
    ),
    Tableau(
        "dopri5", 5,
        a=(
            (), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656), _DOPRI5_B[:-1],
        ),
        b=_DOPRI5_B,
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        b_error=_difference(_DOPRI5_B, _DOPRI5_EMBEDDED),
        dense=_quartic(_DOPRI5_B, _DOPRI5_MIDDLE),
    ),
    Tableau(
        "tsit5", 5,
        a=(
            (), (0.161,), (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
                -0.028269050394068383,
            ),
            _TSIT5_B[:-1],
        ),
        b=_TSIT5_B,
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        b_error=(
            -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995,
            -0.1447110071732629, 0.5823571654525552, -0.45808210592918697, 1 / 66,
        ),
        dense=_TSIT5_DENSE,
    ),
)  # fmt: skip

TABLEAUX = {method.name: method for method in _METHODS}
