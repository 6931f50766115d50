"""Butcher tableaux of explicit Runge-Kutta methods.

Stage i is k_i = f(t0 + c_i h, y0 + h Σ_j a_ij k_j), the step y1 = y0 + h Σ_i b_i k_i, and the local
error h Σ_i b_error_i k_i. The dense output is y(t0 + θh) = y0 + h Σ_i k_i Σ_p dense_ip θ^(p+1).

A name that torchdiffeq has means what it means there: `rk4` is the 3/8 rule, `rk4_classic` the
classical method.

Sources: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I (II.1, II.4); Fehlberg 1969;
Dormand and Prince 1980 with Shampine's midpoint 1986, Prince and Dormand 1981 with the dense output from which
torchdiffeq 0.2.5 has its midpoint; Bogacki and Shampine 1989; Tsitouras 2011.
"""

from typing import Any, NamedTuple


class Tableau(NamedTuple):
    """Coefficients of one method. In adaptive ones the last stage is at t1, and the next step's first.

    It is f(t1, y1) but in `adaptive_heun` and `fehlberg2`, whose last stage sees a state of order 1 or 2
    there; that does not lower their order, and is what torchdiffeq does.

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

    def fixed(self) -> Any:
        """(a, b, c) of the stages that steps of a given size need: a last one of weight 0 serves the next step."""
        stages = max(i for i, weight in enumerate(self.b) if weight) + 1
        return self.a[:stages], self.b[:stages], self.c[:stages]


def tableau(name: str, argument: str = "method") -> Tableau:
    """The tableau called `name`; an error that names the argument where there is none.

    Example:
        >>> from flowkern import ode
        >>> ode.tableau("rk4").order
        4
    """
    if isinstance(name, str) and name in _NO_TABLEAU:
        raise NotImplementedError(f"{argument}: {name!r} is no Runge-Kutta method; use torchdiffeq.odeint")
    if not isinstance(name, str) or name not in TABLEAUX:
        raise ValueError(f"{argument}: expected one of {', '.join(TABLEAUX)}, got {name!r}")
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


def _hermite(b):
    """The cubic that meets y and f at both ends. torchdiffeq's middles of `bosh3` and `fehlberg2`, by the
    second stage alone, are wrong in the second order, by more than the tolerance."""
    last = len(b) - 1
    return _quartic(b, [end / 2 + ((i == 0) - (i == last)) / 8 for i, end in enumerate(b)])


def _meeting(b, dense):
    """The dense output whose digits, as they are published, meet the step at its end only to 1e-12."""
    return tuple((*row[:-1], end - sum(row[:-1])) for end, row in zip(b, dense, strict=True))


def _difference(b, embedded):
    return tuple(x - y for x, y in zip(b, embedded, strict=True))


_BOSH3_B = (2 / 9, 1 / 3, 4 / 9, 0.0)
_FEHLBERG2_B = (1 / 512, 255 / 256, 1 / 512)
_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_DOPRI5_EMBEDDED = (
    1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60,
)  # fmt: skip
_DOPRI5_MIDDLE = (
    6025192743 / 30085553152 / 2, 0.0, 51252292925 / 65400821598 / 2, -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2, -1776094331 / 19743644256 / 2, 11237099 / 235043384 / 2,
)  # fmt: skip
_DOPRI8_B = (
    14005451 / 335480064,
    0.0,
    0.0,
    0.0,
    0.0,
    -59238493 / 1068277825,
    181606767 / 758867731,
    561292985 / 797845732,
    -1041891430 / 1371343529,
    760417239 / 1151165299,
    118820643 / 751138087,
    -528747749 / 2220607170,
    1 / 4,
    0.0,
)
_DOPRI8_EMBEDDED = (
    13451932 / 455176623,
    0.0,
    0.0,
    0.0,
    0.0,
    -808719846 / 976000145,
    1757004468 / 5645159321,
    656045339 / 265891186,
    -3867574721 / 1518517206,
    465885868 / 322736535,
    53011238 / 667516719,
    2 / 45,
    0.0,
    0.0,
)
_DOPRI8_DENSE = (
    (1.0, -6.6910181737837595, 19.999006933368396, -30.061056828966645, 22.139650499809406, -6.34483493928604),
    *[(0.0,) * 6] * 4,
    (0.0, -7.6142658045872675, 52.227353279294555, -121.49996277313346, 116.44221495503422, -39.61079198522025),
    (0.0, 10.728139263042886, -46.89191641810936, 83.17210046398478, -67.14513188259572, 20.376121380879145),
    (0.0, 0.5526637063753649, -0.18908932250105956, 9.572450755599366, -16.56722435274965, 7.334709882679536),
    (0.0, 4.218656262566515, -35.70759759462221, 87.84060576772056, -89.9916014847245, 32.88017743524592),
    (0.0, -0.6627209125361597, 6.273644808324035, -17.415210777076297, 22.623748964853284, -10.158899052642676),
    (0.0, -1.2636789001135462, 10.316088127245076, -28.590328951479098, 32.23623401673554, -12.540126809878256),
    (0.0, 5.410603789859042, -34.76507698666118, 81.66309505843414, -82.10203154883598, 29.555300148451604),
    (0.0, -7.032137906794574, 47.745797107822554, -114.93752913770093, 116.26621857911195, -41.79234864243906),
    (0.0, 2.3537586759714983, -19.008209934160803, 50.255836422617605, -53.90207774663854, 20.300692582210083),
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
        "adaptive_heun", 2,
        a=((), (1.0,)),
        b=(1 / 2, 1 / 2),
        c=(0.0, 1.0),
        b_error=(1 / 2, -1 / 2),
        dense=_quartic((1 / 2, 1 / 2), (1 / 2, 0.0)),
    ),
    Tableau(
        "fehlberg2", 2,
        a=((), (1 / 2,), (1 / 256, 255 / 256)),
        b=_FEHLBERG2_B,
        c=(0.0, 1 / 2, 1.0),
        b_error=(-1 / 512, 0.0, 1 / 512),
        dense=_hermite(_FEHLBERG2_B),
    ),
    Tableau(
        "bosh3", 3,
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=_BOSH3_B,
        c=(0.0, 1 / 2, 3 / 4, 1.0),
        b_error=_difference(_BOSH3_B, (7 / 24, 1 / 4, 1 / 3, 1 / 8)),
        dense=_hermite(_BOSH3_B),
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
    Tableau(
        "dopri8", 8,
        a=(
            (), (1 / 18,), (1 / 48, 1 / 16), (1 / 32, 0.0, 3 / 32), (5 / 16, 0.0, -75 / 64, 75 / 64),
            (3 / 80, 0.0, 0.0, 3 / 16, 3 / 20),
            (
                29443841 / 614563906, 0.0, 0.0, 77736538 / 692538347, -28693883 / 1125000000,
                23124283 / 1800000000,
            ),
            (
                16016141 / 946692911, 0.0, 0.0, 61564180 / 158732637, 22789713 / 633445777,
                545815736 / 2771057229, -180193667 / 1043307555,
            ),
            (
                39632708 / 573591083, 0.0, 0.0, -433636366 / 683701615, -421739975 / 2616292301,
                100302831 / 723423059, 790204164 / 839813087, 800635310 / 3783071287,
            ),
            (
                246121993 / 1340847787, 0.0, 0.0, -37695042795 / 15268766246, -309121744 / 1061227803,
                -12992083 / 490766935, 6005943493 / 2108947869, 393006217 / 1396673457,
                123872331 / 1001029789,
            ),
            (
                -1028468189 / 846180014, 0.0, 0.0, 8478235783 / 508512852, 1311729495 / 1432422823,
                -10304129995 / 1701304382, -48777925059 / 3047939560, 15336726248 / 1032824649,
                -45442868181 / 3398467696, 3065993473 / 597172653,
            ),
            (
                185892177 / 718116043, 0.0, 0.0, -3185094517 / 667107341, -477755414 / 1098053517,
                -703635378 / 230739211, 5731566787 / 1027545527, 5232866602 / 850066563,
                -4093664535 / 808688257, 3962137247 / 1805957418, 65686358 / 487910083,
            ),
            (
                403863854 / 491063109, 0.0, 0.0, -5068492393 / 434740067, -411421997 / 543043805,
                652783627 / 914296604, 11173962825 / 925320556, -13158990841 / 6184727034,
                3936647629 / 1978049680, -160528059 / 685178525, 248638103 / 1413531060, 0.0,
            ),
            _DOPRI8_B[:-1],
        ),
        b=_DOPRI8_B,
        c=(
            0.0, 1 / 18, 1 / 12, 1 / 8, 5 / 16, 3 / 8, 59 / 400, 93 / 200, 5490023248 / 9719169821, 13 / 20,
            1201146811 / 1299019798, 1.0, 1.0, 1.0,
        ),
        b_error=_difference(_DOPRI8_B, _DOPRI8_EMBEDDED),
        dense=_meeting(_DOPRI8_B, _DOPRI8_DENSE),
    ),
)  # fmt: skip

TABLEAUX = {method.name: method for method in _METHODS}
_NO_TABLEAU = ("explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver")  # of torchdiffeq
