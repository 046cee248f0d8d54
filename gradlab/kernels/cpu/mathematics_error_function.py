"""erf and erfc."""

from gradlab.kernels.cpu.mathematics_exponential import exp, exp_of_sum, one_minus_exp2
from gradlab.kernels.cpu.mathematics_numbers import Number

# Where erf(x) / x - 1 in x^2 gives way to log2(erfc(x)) in x, and where erf is 1.
BORDER = 1.0
ONE = {"f32": 4.0, "f64": 6.0}
NEAR = {
    "f32": (0.12837917, -0.37612626, 0.112835824, -0.026853716, 0.0051882453, -0.00080103514, 7.856881e-05),
    "f64": (
        0.12837916709551256,
        -0.37612638903183454,
        0.11283791670942432,
        -0.026866170642896595,
        0.005223977604662379,
        -0.0008548325869239395,
        0.00012055291988707388,
        -1.4924684818184712e-05,
        1.6446821739566756e-06,
        -1.6204121666817414e-07,
        1.3702142157473223e-08,
        -7.763976507557232e-10,
    ),
}
# Fitted so that the error is small against erf(x).
FAR = {
    "f32": (-0.0004927554, -1.6260458, -0.92064863, -0.14875141, 0.03150558, -0.004252551, 0.00026888595),
    "f64": (-1.5343658741152454e-06, -1.6278919460975025, -0.9185171553914578, -0.14807483713108602,
            0.027217012370729946, 0.0008426067139410475, -0.0030278771666470377, 0.0013271916518749595,
            -0.0003327557039771787, 4.039537840145557e-05, 5.2079696327449865e-06, -3.85582682606622e-06,
            9.92119177646701e-07, -1.56116151043254e-07, 1.57289218112219e-08, -9.40297543625636e-10,
            2.5539934801457648e-11),
}  # fmt: skip

# exp(x^2) erfc(x) in (x - CENTRE) / (x + CENTRE) for 0 <= x <= ZERO, where erfc becomes 0; for float64 times 1 + 2 x.
CENTRE = {"f32": 3.0, "f64": 4.0}
ZERO = {"f32": 10.1, "f64": 27.3}
SCALED = {
    "f32": (0.17900115126018606, -0.32623356382990565, 0.24560379807694818, -0.15011578154959127, 0.07166585556230852,
            -0.024394239790267714, 0.00426892029945054, 0.0007157929360890815, -0.0005946251667835839,
            2.8749841784958134e-05, 5.58589447031376e-05),
    "f64": (1.2329951186255526, -0.1396211168405629, 0.015379652102605465, 0.06809705425473114, -0.10103906603556231,
            0.09373283499714236, -0.06633036582706957, 0.037167515554119776, -0.016197733903773125,
            0.005031969859258598, -0.0007577742356677287, -0.0001992562306039213, 0.0001506253674624808,
            -2.4400137943346196e-05, -1.1231412378708302e-05, 5.710121994801403e-06, 3.093193435415876e-07,
            -8.232551675470805e-07, 5.8582548704998595e-08, 1.053107114524547e-07, -8.505261090560094e-09,
            -1.0091214454640414e-08, -5.353342404112912e-10),
}  # fmt: skip


def erf(x: Number) -> Number:
    """The error function: an odd polynomial near zero, 1 - 2^(a polynomial) beyond."""
    size = x.abs().at_most(ONE[x.element])
    near = x.fma((x * x).polynomial(NEAR[x.element]), x)
    constant, *others = FAR[x.element]
    far = one_minus_exp2(size, size.polynomial(others), constant).signed(x)
    return (size < BORDER).choose(near, far)


def erfc(x: Number) -> Number:
    """1 - erf(x), accurate where it is small; negative x by erfc(-x) = 2 - erfc(x)."""
    if x.element == "f32":
        # In float64 the roundings of a float32 do not add up.
        wide = x.to("fpext", "f64")
        size = wide.abs().at_most(ZERO["f32"])
        far = exp(-(size * size)) * _scaled(size, "f32")
        return (wide < 0.0).choose(2.0 - far, far).to("fptrunc", "f32")
    size = x.abs().at_most(ZERO["f64"])
    square = size * size
    far = exp_of_sum(-square, (-size).fma(size, square)) * (_scaled(size, "f64") / size.fma(2.0, 1.0))
    near = 1.0 - x.fma((x * x).polynomial(NEAR["f64"]), x)
    return (size < 0.5).choose(near, (x < 0.0).choose(2.0 - far, far))


def _scaled(size: Number, element: str) -> Number:
    return ((size - CENTRE[element]) / (size + CENTRE[element])).polynomial(SCALED[element])
