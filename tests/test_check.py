"""The check: right functions pass, planted faults are named, and what cannot be told is not passed off as ok."""

import itertools
import json

import numpy as np
import pytest

import gradlab
from gradlab.autodiff.checker.core import finite_differences
from gradlab.autodiff.checker.function import CheckPlan
from gradlab.autodiff.frameworks.side import installed
from gradlab.kernels.spec import specs

torch = pytest.importorskip("torch")


def normal(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Product(torch.autograd.Function):
    """y = x w + b, its pullback changed by `fault`."""

    fault = staticmethod(lambda dx, dw, db: (dx, dw, db))

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w + b

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return Product.fault(dy @ w.T, x.T @ dy, dy.sum(0))


def product(x, w, b):
    return Product.apply(x, w, b)


@pytest.fixture
def planted(monkeypatch):
    def use(fault):
        monkeypatch.setattr(Product, "fault", staticmethod(fault))

    return use


@pytest.mark.parametrize("op", specs())
def test_every_op_on_every_side(op):
    report = gradlab.check(op)
    sides = {f.side for f in report.findings}
    assert set(installed()) <= sides
    if len(installed()) == 2:
        assert "torch and jax" in sides
    checks = {f.check for f in report.findings}
    assert checks >= {"value vs NumPy", "gradient vs finite differences of NumPy", "derivative vs finite differences"}
    assert checks >= {"linear in dy", "edge inputs", "deterministic", "memory unchanged", "bfloat16 gradient", "vmap"}
    assert "negative bit" in checks


def test_a_right_function_passes_every_part():
    report = gradlab.check(
        product, normal(8, 5), normal(5, 7), normal(7), reference=lambda x, w, b: x.numpy() @ w.numpy() + b.numpy()
    )
    assert {f.check for f in report.findings} == {
        "derivative vs finite differences", "linear in dy", "deterministic", "strided dy", "repeated backward",
        "memory unchanged", "vmap of the backward", "forward", "strided inputs", "negative bit", "requires_grad",
        "no uninitialised or out-of-bounds writes", "empty inputs", "special dy", "two calls at once", "autocast", ".grad adds up",
        "second derivative vs finite differences",
        "second derivative vs finite differences, dy too", "edge inputs", "value vs reference",
        "gradient vs finite differences of reference",
    }  # fmt: skip
    assert {f.input for f in report.findings if f.check == "derivative vs finite differences"} == {"x", "w", "b"}
    assert set(report.seconds) == {"facts", "derivative", "contract", "second", "precision", "edges", "reference"}


def memory_of(t):
    """What a kernel reads that takes t's memory as it lies, whatever its negative bit says."""
    return torch._neg_view(t) if t.is_neg() else t


class Blind(Product):
    """The same, with a forward or a backward that does not look at the negative bit."""

    where = ""

    @staticmethod
    def forward(ctx, x, w, b):
        return Product.forward(ctx, memory_of(x) if Blind.where == "forward" else x, w, b)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = memory_of(dy) if Blind.where == "backward" else dy
        return dy @ w.T, (memory_of(x) if Blind.where == "saved" else x).T @ dy, dy.sum(0)


@pytest.mark.parametrize(
    ("where", "blamed"), [("forward", {"result", "w"}), ("backward", {"x", "w", "b"}), ("saved", {"w"}), ("", set())]
)
def test_a_negative_bit_that_is_not_looked_at_is_found(monkeypatch, where, blamed):
    monkeypatch.setattr(Blind, "where", where)
    args = normal(4, 5), normal(5, 3), normal(3)
    report = gradlab.check(lambda x, w, b: Blind.apply(x, w, b), *args, parts=("contract",), raises=False)
    wrong = {(f.check, f.input) for f in report.wrong()}
    assert wrong == {("negative bit", name) for name in blamed}
    assert report.findings


def element(dw):
    dw = dw.clone()
    dw[-3, 2] *= 1.01
    return dw, ((dw.shape[0] - 3, dw.shape[0] - 2), (2, 3)), 1, "a constant factor of 1.01, a single element"


def last_row(dw):
    dw = dw.clone()
    dw[-1] = 0
    return dw, ((dw.shape[0] - 1, dw.shape[0]), (0, dw.shape[1])), dw.shape[1], "missing: the gradient is 0 there"


def tile(dw):
    dw = dw.clone()
    dw[32:64, 16:32] *= 2
    return dw, ((32, 64), (16, 32)), 512, "a constant factor of 2, one tile of 32 x 16"


def sign(dw):
    return -dw, ((0, dw.shape[0]), (0, dw.shape[1])), dw.numel(), "the sign is flipped"


def zero(dw):
    return 0 * dw, ((0, dw.shape[0]), (0, dw.shape[1])), dw.numel(), "missing: the gradient is 0 there"


def scale(dw):
    return 1.0005 * dw, ((0, dw.shape[0]), (0, dw.shape[1])), dw.numel(), "a constant factor of 1.0005"


def tail(dw):
    dw = dw.clone()
    dw[:, -5:] = 0
    return (
        dw,
        ((0, dw.shape[0]), (dw.shape[1] - 5, dw.shape[1])),
        5 * dw.shape[0],
        "the tail only: the last 5 of axis 1",
    )


def transposed(dw):
    # The diagonal of a transposed matrix is right.
    return dw.T, ((0, dw.shape[0]), (0, dw.shape[1])), dw.numel() - len(dw), "transposed"


def rolled(dw):
    return dw.roll(1, 0), ((0, dw.shape[0]), (0, dw.shape[1])), dw.numel(), "shifted by 1 along axis 0"


FAULTS = (element, last_row, tile, sign, zero, scale, tail, transposed, rolled)


@pytest.mark.parametrize(
    ("fault", "size"),
    [(f, n) for f in FAULTS for n in (64, 256)] + [(f, 512) for f in (element, tile, last_row)],
    ids=lambda v: v if isinstance(v, int) else v.__name__,
)
def test_a_planted_fault_is_boxed_exactly(planted, fault, size):
    planted(lambda dx, dw, db: (dx, fault(dw)[0], db))
    args = normal(8, size), normal(size, size), normal(size)
    report = gradlab.check(product, *args, parts=("derivative",), raises=False, tiles={"w": (32, 16)})
    (found,) = report.wrong()
    assert (found.check, found.input, found.verdict) == ("derivative vs finite differences", "w", "wrong")
    _, box, count, pattern = fault(torch.ones(size, size, dtype=torch.float64))
    assert found.numbers["count"] == count
    assert tuple((found.numbers[f"box_{k}_a"], found.numbers[f"box_{k}_b"]) for k in range(2)) == box
    assert pattern in found.detail
    if fault is tile:
        assert f"all in program {size // 16 + 1}, tile (1, 1) of {size // 32} x {size // 16}" in found.detail


def test_a_fault_at_an_edge_shows_beside_a_gradient_a_million_times_larger():
    class Small(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.one = len(x) == 1
            return x + 1e6 * w

        @staticmethod
        def backward(ctx, dy):
            return dy * (1.001 if ctx.one else 1), 1e6 * dy

    args = normal(4, 3), normal(4, 3, seed=6)
    report = gradlab.check(Small.apply, *args, order=1, parts=("derivative", "edges"), raises=False)
    assert [(f.check, f.input) for f in report.wrong()] == [("edge inputs", "argument 0")]


def test_equal_and_opposite_errors_are_seen(planted):
    """Along half of all even directions they cancel."""

    def fault(dx, dw, db):
        db = db.clone()
        db[1] += 1e-3
        db[4] -= 1e-3
        return dx, dw, db

    planted(fault)
    for seed in range(12):
        report = gradlab.check(
            product, normal(8, 5), normal(5, 7), normal(7), parts=("derivative",), raises=False, seed=seed
        )
        assert [f.input for f in report.wrong()] == ["b"]
        assert report.wrong()[0].where == (1,)


def test_the_message_is_one_paragraph_and_raised(planted):
    planted(lambda dx, dw, db: (-dx, dw, db))
    with pytest.raises(
        gradlab.GradientError, match="product on torch, case 'given', derivative vs finite differences: x"
    ) as caught:
        gradlab.check(product, normal(8, 5), normal(5, 7), normal(7))
    assert "\n" not in str(caught.value)
    assert not caught.value.report


def test_leaked_into_masked_rows(planted):
    """A gradient where there should be none."""
    mask = torch.ones(8, 1, dtype=torch.float64)
    mask[5:7] = 0

    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * mask

        @staticmethod
        def backward(ctx, dy):
            return dy

    report = gradlab.check(lambda x: Masked.apply(x), normal(8, 4), parts=("derivative",), raises=False)
    (found,) = report.wrong()
    assert "leaked: it should be 0 there" in found.detail
    assert "8 of 32 elements are wrong, in [5:7, 0:4]" in found.detail


def test_a_kink_is_inconclusive_and_the_rest_is_judged():
    x = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    report = gradlab.check(torch.relu, x, raises=False)
    assert {f.verdict for f in report.wrong()} == {"inconclusive"}
    assert "1 of 3 results have a kink there" in report.wrong()[0].message

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return 1.01 * dy * (x > 0)

    report = gradlab.check(lambda x: Wrong.apply(x), x, raises=False, parts=("derivative",))
    assert report.wrong()[0].verdict == "wrong"


def test_many_kinks_near_by_do_not_disturb():
    """A relu network whose elements cross zero within any ordinary step."""
    assert gradlab.check(lambda x, w: torch.relu(x @ w).sum(), normal(64, 64), normal(64, 64), order=1)


def test_a_feature_narrower_than_the_first_steps():
    """x / (|x| + 1e-8) at 0 has the slope 1e8, which only tiny steps see."""

    class Narrow(torch.autograd.Function):
        wrong = False

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x / (x.abs() + 1e-8)

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return dy * (0.0 if Narrow.wrong else 1e-8) / (x.abs() + 1e-8) ** 2

    x = torch.zeros(3, dtype=torch.float64)
    # Its curvature jumps at 0, so the differences are of a percent: right is not called wrong, and 0 is.
    assert "wrong" not in {f.verdict for f in gradlab.check(Narrow.apply, x, order=1, raises=False).findings}
    Narrow.wrong = True
    report = gradlab.check(lambda x: Narrow.apply(x), x, order=1, raises=False, parts=("derivative",))
    assert report.wrong()


def test_noise_is_judged_by_what_differences_see():
    """Worked out in float32: no difference is sure to 1e-7; what they are sure of is said."""
    report = gradlab.check(lambda x: (x.float().sin() * 3).double(), normal(6))
    said = [f.detail for f in report.findings if f.check == "derivative vs finite differences"]
    assert said
    assert all("computed in low precision, an error below" in s for s in said)


def test_integer_arguments_none_and_trees():
    def fn(params, i, nothing):
        assert nothing is None
        return {"y": params["w"][i].sin(), "n": i + 1}, params["b"][0].sum()

    report = gradlab.check(fn, {"w": normal(4), "b": [normal(2)]}, torch.tensor([2, 0]), None)
    inputs = {f.input for f in report.findings if f.check == "derivative vs finite differences"}
    assert inputs == {"params['w']", "params['b'][0]"}


def test_cases_are_a_product():
    def power(x, n=2, negative=False):
        return (-1 if negative else 1) * x**n

    report = gradlab.check(power, normal(3), cases={"n": [2, 3], "negative": [False, True]})
    given = {f.case for f in report.findings if f.check == "derivative vs finite differences"}
    assert given == {f"n={n}, negative={b}" for n in (2, 3) for b in (False, True)}


def test_reference_finds_a_wrong_forward():
    """Forward and backward agree, both are wrong; the reference is NumPy, torch or a tuple of either."""
    for reference in (lambda x: np.square(x.numpy()), lambda x: x * x, lambda x: (x * x,)):
        report = gradlab.check(lambda x: 1.001 * x * x, normal(3, 4), reference=reference, raises=False)
        assert {f.check for f in report.wrong()} == {
            "value vs reference",
            "gradient vs finite differences of reference",
        }
        assert gradlab.check(lambda x: x * x, normal(3, 4), reference=reference)


def test_report_prints_as_json_and_as_a_table(planted):
    planted(lambda dx, dw, db: (dx, dw * torch.nan, db))
    report = gradlab.check(product, normal(8, 5), normal(5, 7), normal(7), raises=False)
    assert "product, torch" in str(report)
    assert "wrong" in str(report)
    assert max(len(line) for line in str(report).splitlines() if "vs finite" in line and "on torch" not in line) <= 120
    read = json.loads(report.to_json())
    assert not read["ok"]
    (found,) = [f for f in read["findings"] if f["verdict"] == "wrong"]
    assert found["input"] == "w"
    assert "35 of 35 elements are not finite" in found["message"]


def test_plot_draws_both_pictures(planted, tmp_path):
    pytest.importorskip("matplotlib")
    planted(lambda dx, dw, db: (dx, element(dw)[0], db))
    report = gradlab.check(
        product, normal(8, 40), normal(40, 24), normal(24), raises=False, parts=("derivative",), tiles={"w": (16, 16)}
    )
    for name in ("a.png", "a.svg"):
        assert report.plot(tmp_path / name).stat().st_size > 10_000
    assert not list(tmp_path.glob("*.part*"))
    text = (tmp_path / "a.svg").read_text()
    assert "tiles of 16 x 16" in text or "<path" in text
    with pytest.raises(ValueError, match=r"plot: path is a.txt, wanted a name that ends in .png, .svg, .pdf"):
        report.plot(tmp_path / "a.txt")


def test_random_and_stateful_functions_are_reported():
    report = gradlab.check(lambda x: x * torch.rand(()), normal(3), raises=False)
    assert not report
    assert "the function is random or keeps state" in report.wrong()[0].message
    assert "it changes torch's generator" in str(report)
    calls = []

    def counted(x):
        calls.append(1)
        return x * x

    report = gradlab.check(counted, normal(3))
    assert "counted has a side effect: it changes calls, which it closes over" in str(report)


def test_empty_inputs_and_numbers():
    assert gradlab.check(torch.sin, normal(0, 3))
    assert gradlab.check(torch.sin, torch.tensor(0.3, dtype=torch.float64))


def test_a_module_and_its_buffers():
    """Batch normalisation keeps a running mean: said, and no fault."""
    report = gradlab.check(torch.nn.BatchNorm1d(3).double(), normal(4, 3))
    assert "BatchNorm1d has a side effect: it changes its buffer running_mean" in str(report)


def test_what_a_module_s_call_rebuilds_is_no_side_effect():
    """An LSTM lists its weights anew when they are replaced, as the check's are."""
    report = gradlab.check(torch.nn.LSTM(2, 2), normal(2, 1, 2), order=1, parts=("derivative",))
    assert not any("side effect" in note for note in report.notes)


def test_a_lost_second_order_is_not_passed_off():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dy):
            return 3 * ctx.saved_tensors[0] ** 2 * dy

    def once(x):
        return Once.apply(x)

    assert gradlab.check(once, normal(3), order=1)
    report = gradlab.check(once, normal(3), raises=False)
    assert "second-order terms are lost silently" in str(report)


def test_a_budget_reports_what_was_left_out(monkeypatch):
    seen = []
    # Time passes with every look at the clock, however fast the machine is.
    clock = itertools.count()
    monkeypatch.setattr(CheckPlan, "spent", lambda plan: next(clock) / 8)
    report = gradlab.check(
        product,
        normal(8, 5),
        normal(5, 7),
        normal(7),
        raises=False,
        budget=30,
        on_event=lambda what, spent: seen.append((what, spent)),
    )
    assert seen
    assert "facts" in seen[0][0]
    assert all(0 <= spent < 1 for _, spent in seen)
    (found,) = report.wrong()
    assert (found.check, found.verdict) == ("budget", "inconclusive")
    assert "the budget of 30 s is spent; not checked:" in found.message


def slow(x):
    import time

    time.sleep(0.02)
    return x * x


BAD = {
    "no array": (lambda: gradlab.check(torch.sin, normal(2), "x"), TypeError, "argument 1 of sin is of type str, wanted a torch tensor"),
    "numpy": (lambda: gradlab.check(np.sin, np.ones(2)), TypeError, "arguments of sin are of numpy, wanted torch tensors or jax arrays"),
    "nothing": (lambda: gradlab.check(torch.sin), TypeError, "arguments of sin are of nothing"),
    "integers": (lambda: gradlab.check(torch.sin, torch.arange(3)), ValueError, "arguments of sin are of int64, wanted at least one of float64"),
    "no floats": (lambda: gradlab.check(torch.sin, torch.arange(3), torch.ones(2, dtype=torch.bool)), ValueError, "are of int64, bool, wanted at least one of .*bfloat16, complex128"),
    "nan": (lambda: gradlab.check(product, normal(2, 3), normal(3, 3).log(), normal(3)), ValueError, r"check: w of product holds nan at \[\d, \d\], wanted finite"),
    "no float": (lambda: gradlab.check(lambda x: x > 0, normal(2)), ValueError, "returns bool, wanted at least one float array"),
    "nothing out": (lambda: gradlab.check(lambda x: None, normal(2)), ValueError, "returns nothing, wanted at least one float array"),
    "raises": (lambda: gradlab.check(lambda x: x @ x, normal(2, 3)), ValueError, "raises RuntimeError: mat1 and mat2 shapes"),
    "op": (lambda: gradlab.check("conv9d"), ValueError, "op: name is 'conv9d'"),
    "target": (lambda: gradlab.check(3), TypeError, "target is a int, wanted a function or an op's name"),
    "side": (lambda: gradlab.check("relu", side="numpy"), ValueError, "side: name is 'numpy', wanted one of torch, jax"),
    "order": (lambda: gradlab.check("relu", order=3), ValueError, "check: order is 3, wanted 1 or 2"),
    "part": (lambda: gradlab.check("relu", parts=("all",)), ValueError, "parts holds 'all', wanted some of derivative, facts"),
    "dtype": (lambda: gradlab.check("relu", dtypes=("int8",)), ValueError, "dtypes holds 'int8', wanted some of float32"),
    "budget": (lambda: gradlab.check(slow, normal(2), budget=0.1), ValueError, r"a call of slow takes 0.0\d+ s, budget is 0.1 s, wanted at least"),
    "negative budget": (lambda: gradlab.check(slow, normal(2), budget=-1), ValueError, "budget is -1, wanted seconds above 0"),
    "cases": (lambda: gradlab.check(slow, normal(2), cases={"n": []}), ValueError, "cases are empty"),
    "tiles": (lambda: gradlab.check(slow, normal(2), tiles={"x": (2, 2)}), ValueError, r"tile of x is \[2, 2\], wanted 1 lengths"),
    "tile of nobody": (lambda: gradlab.check(slow, normal(2), tiles={"w": (2,)}), ValueError, "tiles name 'w', wanted one of x"),
    "raising reference": (lambda: gradlab.check(torch.sin, normal(2), reference=lambda x: 1 / 0), ValueError, "reference of sin raises ZeroDivisionError"),
    "reference": (lambda: gradlab.check(torch.sin, normal(2), reference=lambda x: (x, x)), ValueError, "reference returns 2 results, wanted 1 as sin"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_mixed_frameworks_are_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="arguments of add are of torch and jax, wanted arrays of one framework"):
        gradlab.check(torch.add, normal(2), jax.numpy.ones(2))


def test_differences_bound_their_own_error():
    x = np.linspace(-2, 2, 9)
    for f, derivative in ((np.sin, np.cos), (np.exp, np.exp), (lambda x: x**5, lambda x: 5 * x**4)):
        slope = finite_differences.along(lambda t, f=f: f(x + t), f(x))
        assert (np.abs(slope.value - derivative(x)) <= slope.error).all()
        assert slope.error.max() < 1e-8 * np.abs(derivative(x)).max()
    for near in (1e-3, 1e-6):
        slope = finite_differences.along(lambda t, near=near: np.abs(np.array([near]) + t), np.array([near]))
        assert slope.error[0] < 1e-3, "smaller steps stay on one side of a kink near by"
        assert abs(slope.value[0] - 1) <= slope.error[0]
    slope = finite_differences.along(lambda t: np.abs(np.array([t])), np.array([0.0]))
    assert slope.error[0] == np.inf, "a kink is not to look settled"
