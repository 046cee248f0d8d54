"""No false alarm: right functions at kinks, in low precision, with layouts and shapes that they refuse; torch."""

import functools
import os
import signal

import pytest

import gradlab
from gradlab.autodiff.checker.core.finding import Finding
from gradlab.autodiff.checker.inputs import captured_arrays, isolated
from gradlab.autodiff.checker.inputs.edge_verdict import EdgeSummary, EdgeVerdict

torch = pytest.importorskip("torch")
from tests.sweeps.everyday_torch import EVERYDAY

F = torch.nn.functional


def normal(*shape, seed=5):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ruled(forward, backward):
    """An autograd.Function of these two; backward takes dy and the arguments."""

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args)
            return forward(*args)

        @staticmethod
        def backward(ctx, dy):
            return backward(dy, *ctx.saved_tensors)

    return lambda *args: Rule.apply(*args)


def contiguous_only(x):
    assert x.is_contiguous()
    return x.sin()


def with_out(a, b):
    y = torch.empty(0, dtype=a.dtype)
    torch.mul(a, b, out=y)
    return y


def needs_its_batch(x, labels=torch.tensor([0, 2, 1, 1])):  # noqa: B008
    return x[torch.arange(4), labels].sin()


# Each right, or right wherever it is differentiable.
RIGHT = {
    "a detached result": (lambda x: (x.sin().sum(), x.cos().detach()), (normal(5),)),
    "normalize at 0": (F.normalize, (normal(5, 4),)),
    "cosine similarity at 0": (F.cosine_similarity, (normal(5, 4), normal(5, 4, seed=6))),
    "median at ties": (torch.median, (normal(5),)),
    "clamp with ties": (torch.clamp, (normal(4, 5), normal(4, 5, seed=6), normal(4, 5, seed=7) + 2)),
    "qr of 0": (torch.linalg.qr, (normal(4, 3),)),
    "a gradient of zeros": (torch.sgn, (normal(5),)),
    "a view": (lambda x: x.view(-1).sin(), (normal(3, 4),)),
    "contiguous only": (contiguous_only, (normal(3, 4),)),
    "a tensor made anew by out=": (
        ruled(with_out, lambda dy, a, b: (dy * b, dy * a)),
        (normal(30), normal(30, seed=6)),
    ),
    "a sparse constant": (lambda x: torch.sparse.mm(torch.eye(4, dtype=x.dtype).to_sparse(), x), (normal(4, 3),)),
    "a sparse argument": (torch.sparse.mm, (torch.eye(4, dtype=torch.float64).to_sparse(), normal(4, 3))),
    "a gradient of rounding": (
        torch.corrcoef,
        (torch.tensor([[-6.0, 5.3], [-7.2, 4.1], [-1.7, 8.9]], dtype=torch.float64),),
    ),
    "terms that cancel": (
        lambda x: F.layer_norm(x, (1,), torch.full((1,), 8.6e3, dtype=x.dtype), None, 0.5),
        (normal(1, 1),),
    ),
    "an argument without a gradient": (
        lambda x, m, v: F.batch_norm(x, m, v, training=True),
        (normal(5, 3), torch.zeros(3), torch.ones(3)),
    ),
    "a domain": (F.binary_cross_entropy, (torch.sigmoid(normal(5)), torch.sigmoid(normal(5, seed=6)))),
    "a domain that raises": (F.gaussian_nll_loss, (normal(5), normal(5, seed=6), normal(5, seed=7).abs() + 0.1)),
    "its own batch": (needs_its_batch, (normal(4, 3),)),
    "var": (lambda x: x.var(-1), (normal(3, 5),)),
    "float32 inside": (lambda x: (x.float().sin() * 3).double(), (normal(6),)),
    "a float32 result": (lambda x: x.float().sin(), (normal(6),)),
    "a module in float32": (torch.nn.Linear(4, 3), (torch.randn(2, 4),)),
    "distinct places": (lambda x, src, i: x.scatter(0, i, src), (normal(5), normal(3), torch.tensor([4, 0, 2]))),
    "memory as it lies": (lambda x: torch.as_strided(x, (2, 2), (1, 2)).sin(), (normal(3, 4),)),
    "whole numbers": (torch.floor, (8 * normal(4, 5),)),
    "steps that depend on dy": (torch.linalg.matrix_exp, (normal(3, 3),)),
    "no shape but one": (F.pdist, (normal(5, 3),)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function_is_not_called_wrong(name):
    fn, args = RIGHT[name]
    report = gradlab.check(fn, *args, order=1, raises=False)
    assert report.verdict == "ok", report


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fn", [lambda x: x.var(-1), F.normalize, torch.median], ids=["var", "normalize", "median"])
def test_no_seed_makes_an_alarm(fn, seed):
    assert gradlab.check(fn, normal(5, 4, seed=seed), order=1, seed=seed, parts=("derivative", "edges"))


def test_a_fault_is_proven_beside_a_kink_and_a_kink_is_none():
    """The same function, its gradient 1 % too large: away from the kink that is wrong, at the kink nobody can tell."""
    too_large = ruled(torch.relu, lambda dy, x: 1.01 * dy * (x > 0))
    away = torch.tensor([1e-3, 1.0, -2.0], dtype=torch.float64)
    assert gradlab.check(too_large, away, order=1, raises=False, parts=("derivative",)).verdict == "wrong"
    at = torch.tensor([0.0], dtype=torch.float64)
    assert gradlab.check(too_large, at, order=1, raises=False, parts=("derivative",)).verdict == "inconclusive"


def test_a_tie_of_two_inputs_is_a_kink_though_each_alone_is_smooth():
    """clamp(x, 0, 0) is flat in x, and every share of the gradient is right there."""
    zeros = torch.zeros(3, dtype=torch.float64)
    report = gradlab.check(torch.clamp, zeros, zeros, zeros, order=1, raises=False, parts=("derivative",))
    assert report.verdict == "inconclusive"


def test_a_gradient_that_is_nan_is_wrong_where_the_function_has_a_bounded_slope():
    nan_at_0 = ruled(torch.abs, lambda dy, x: dy * x / x.abs())
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    report = gradlab.check(nan_at_0, x, order=1, raises=False, parts=("derivative",))
    assert report.verdict == "wrong"
    assert "1 of 2 elements are not finite" in report.wrong()[0].message


def test_module_parameters_are_inputs_by_name():
    wrong = ruled(lambda x, w: x @ w, lambda dy, x, w: (dy @ w.T, 3 * x.T @ dy))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(normal(4, 3))

        def forward(self, x):
            return wrong(x, self.w)

    report = gradlab.check(Module(), normal(2, 4), raises=False, parts=("derivative",))
    assert {f.input: f.verdict for f in report.findings if f.check == "derivative vs finite differences"} == {
        "w": "wrong",
        "x": "ok",
    }
    module = Module()
    report = gradlab.check(lambda x: module(x), normal(2, 4), raises=False, parts=("derivative",))
    assert report.verdict == "ok"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_staircase_of_a_low_precision_has_no_slope_of_its_own(dtype):
    for fn, shape in (
        (lambda x: x.to(dtype), (1,)),
        (lambda x: (2 * x.to(dtype)).double(), (1, 1)),
        (lambda x: x.to(dtype).double(), (4, 4)),
    ):
        report = gradlab.check(fn, 3 * normal(*shape), order=1, raises=False, parts=("derivative", "edges"))
        assert report.verdict != "wrong", report


def test_low_precision_says_what_it_cannot_see():
    report = gradlab.check(lambda x: (x.float().sin() * 3).double(), normal(6), order=1, parts=("derivative",))
    (found,) = [f for f in report.findings if f.check == "derivative vs finite differences"]
    assert "an error below" in found.detail
    wrong = ruled(lambda x: x.float().sin().double(), lambda dy, x: 1.1 * dy * x.cos())
    assert gradlab.check(wrong, normal(6), order=1, raises=False, parts=("derivative",)).verdict == "wrong"


def test_what_arguments_do_wrong_is_a_finding_where_nothing_is_raised():
    for fn, args in (
        (lambda x: x @ x, (normal(2, 3),)),
        (torch.sin, (torch.arange(3),)),
        (torch.sin, (normal(2).log(),)),
    ):
        report = gradlab.check(fn, *args, raises=False)
        assert report.verdict == "inconclusive"
        with pytest.raises(ValueError, match=r"^check: "):
            gradlab.check(fn, *args)


def test_inconclusive_raises_only_when_requested_and_is_printed(capsys):
    x = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    report = gradlab.check(F.relu, x)
    assert report.verdict == "inconclusive"
    assert "1 of 3 results have a kink there" in capsys.readouterr().err
    with pytest.raises(gradlab.GradientError, match="have a kink there"):
        gradlab.check(F.relu, x, strict=True)


def test_no_second_derivative_is_a_note_unless_it_is_requested():
    def raising(dy, x):
        return _NoSecond.apply(dy) * x.cos()

    class _NoSecond(torch.autograd.Function):
        @staticmethod
        def forward(ctx, dy):
            return dy.clone()

        @staticmethod
        def backward(ctx, ddy):
            raise NotImplementedError("no second derivative")

    fn = ruled(torch.sin, raising)
    report = gradlab.check(fn, normal(3), parts=("derivative", "second"))
    assert report.verdict == "ok"
    assert "has no second derivative: NotImplementedError" in str(report)
    assert gradlab.check(fn, normal(3), order=2, raises=False, parts=("derivative", "second")).verdict == "wrong"


def test_an_edge_finding_can_be_reproduced():
    fn = ruled(torch.square, lambda dy, x: 2 * dy * x + (x == 0).all() * dy)
    report = gradlab.check(fn, normal(3), order=1, raises=False, parts=("derivative", "edges"))
    (found,) = report.wrong()
    assert found.check == "edge inputs"
    assert "; to reproduce: <lambda>(torch.zeros((3,), dtype=torch.float64))" in found.message
    assert list(found.inputs.values()) == [[0.0, 0.0, 0.0]]
    assert '"inputs": {' in report.to_json()


def test_a_function_of_its_own_shapes_is_given_no_others():
    labels = torch.tensor([0, 1])
    assert captured_arrays.captures_arrays(lambda x: x[labels], {})
    assert captured_arrays.captures_arrays(functools.partial(torch.add, other=labels), {})
    assert captured_arrays.captures_arrays(needs_its_batch, {})
    assert captured_arrays.captures_arrays(torch.nn.Linear(2, 2).forward, {})
    assert captured_arrays.captures_arrays(torch.sin, {"out": labels})
    assert captured_arrays.captures_arrays(lambda x: outer(x), {}), "a function that a function calls"
    for fn in (torch.sin, F.layer_norm, functools.partial(F.conv2d, stride=(2, 1)), lambda x: x.sin()):
        assert not captured_arrays.captures_arrays(fn, {}), fn


def test_a_function_that_launches_triton_kernels_is_given_other_shapes():
    triton = pytest.importorskip("triton")
    kernel = triton.jit(nothing_kernel)

    def launches(x):
        kernel[(1,)](x)
        return x

    assert not captured_arrays.captures_arrays(launches, {})


def nothing_kernel(x_ptr):
    pass


def outer(x):
    return x + WEIGHTS


WEIGHTS = torch.ones(3)


def test_a_crash_on_other_shapes_is_isolated():
    def fragile(x):
        if len(x) == 0 or x.shape != (5, 3):
            os.kill(os.getpid(), signal.SIGSEGV)
        return x.sin()

    report = gradlab.check(fragile, normal(5, 3), order=1)
    assert "the process that tried other shapes died" in str(report)
    assert "killed by SIGSEGV" in str(report)


def test_a_child_sends_its_findings_before_it_dies():
    def work(send):
        send("one")
        send(list(range(100_000)))
        os.kill(os.getpid(), signal.SIGKILL)

    sent, died = isolated.run_isolated(work)
    assert sent == ["one", list(range(100_000))]
    assert died == "killed by SIGKILL"
    sent, died = isolated.run_isolated(lambda send: __import__("time").sleep(60), patience=0.1)
    assert (sent, died) == ([], "it sent nothing for 0.1 s")


@pytest.mark.parametrize("name", EVERYDAY)
def test_what_people_differentiate_every_day_makes_no_alarm(name):
    """One seed each here, another for each function; `python -m tests.sweeps.everyday_torch` takes ten."""
    seed = sum(map(ord, name)) % 1000
    torch.manual_seed(seed)
    fn, args = EVERYDAY[name]()
    report = gradlab.check(fn, *args, order=1, seed=seed, raises=False)
    assert report.verdict != "wrong", report


def test_stairs_are_flat():
    """The first steps are four, two and one of these stairs, which looks like a slope of 1."""
    x = torch.tensor([-4.8269, 0.3331, 1.2711], dtype=torch.float64)
    fn = functools.partial(torch.round, decimals=3)
    assert gradlab.check(fn, x, order=1, raises=False, parts=("derivative",)).verdict == "ok"


def test_a_sparse_result_has_a_gradient_where_nothing_is_stored():
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert gradlab.check(torch.Tensor.to_sparse, x, order=1, raises=False, parts=("derivative",)).verdict == "ok"


@pytest.mark.parametrize("declared", [True, False])
def test_a_vmap_that_raises_is_a_fault_of_who_declares_it(declared):
    class Sine(torch.autograd.Function):
        generate_vmap_rule = declared

        @staticmethod
        def forward(x):
            return torch.from_numpy(x.detach().resolve_neg().cpu().numpy()).sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, dy):
            return dy * ctx.saved_tensors[0].cos()

    report = gradlab.check(lambda x: Sine.apply(x), normal(3), order=1, raises=False, parts=("contract",))
    assert [f.check for f in report.wrong()] == (["vmap"] if declared else []), report


def test_a_backward_that_is_marked_once_differentiable_has_no_second_derivative():
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dy):
            return dy * ctx.saved_tensors[0]

    report = gradlab.check(lambda x: Exp.apply(x), normal(3), raises=False, parts=("second",))
    assert report.verdict == "ok"
    assert "marked once_differentiable" in str(report)
    assert gradlab.check(lambda x: Exp.apply(x), normal(3), order=2, raises=False, parts=("second",)).verdict == "wrong"


@pytest.mark.parametrize(
    ("forward", "at"),
    [(torch.relu, -1.3), (lambda x: x.clamp(-0.5, 0.5), 2.0), (torch.sign, 2.0), (torch.round, 7.3)],
    ids=["relu", "clamp", "sign", "round"],
)
def test_a_gradient_that_leaks_where_the_function_is_flat_is_wrong(forward, at):
    """A cast to a low precision is flat over small steps as well, and its gradient is 1 by right."""
    fn = ruled(forward, lambda dy, x: dy)
    x = torch.tensor([at], dtype=torch.float64)
    assert gradlab.check(fn, x, order=1, raises=False, parts=("derivative",)).verdict == "wrong"


@pytest.mark.parametrize(("tolerance", "verdict"), [(3e-8, "ok"), (1e-4, "wrong")])
def test_a_backward_that_stops_at_a_tolerance_is_linear_to_that(tolerance, verdict):
    """As an adjoint that is solved for anew with every dy: what differences find it off by is no fault elsewhere."""
    fn = ruled(torch.sin, lambda dy, x: dy * x.cos() * (1 + tolerance * torch.sin(1e3 * dy.sum())))
    report = gradlab.check(fn, normal(4), order=1, raises=False, parts=("derivative", "facts"))
    assert report.verdict == verdict, report


@pytest.mark.parametrize("seed", range(10))
def test_a_tie_is_a_kink_though_a_few_lines_add_up(seed):
    """The same element may be the median of both lines and of their sum and difference: one in five, of three."""
    zeros = torch.zeros(3, dtype=torch.float64)
    report = gradlab.check(torch.median, zeros, order=1, seed=seed, raises=False, parts=("derivative",))
    assert report.verdict == "inconclusive", report


def test_an_error_inconclusive_at_the_given_inputs_is_inconclusive_at_an_edge():
    """A solver's gradient is off by its tolerance, a little more at other inputs."""
    little, large = (
        EdgeVerdict(name, [Finding("edge inputs", "wrong", "x", numbers={"error": error})])
        for name, error in (("little", 2e-6), ("large", 0.1))
    )
    assert EdgeSummary(set()).add(little)
    solved = EdgeSummary(set(), {"x": 1e-7})
    assert not solved.add(little)
    assert solved.inconclusive == ["little"]
    assert solved.add(large)


@pytest.mark.parametrize(("factor", "wrong"), [(1 + 4e-7, False), (1.001, True)])
def test_an_element_that_is_off_by_a_tolerance_proves_nothing_at_an_edge(factor, wrong):
    """An adjoint that is right at the given inputs, and at a cut of them off by what its solver stops at."""
    fn = ruled(torch.sin, lambda dy, x: dy * x.cos() * (1 if len(x) > 1 else factor))
    report = gradlab.check(fn, normal(4), order=1, raises=False, parts=("derivative", "edges"))
    assert (report.verdict == "wrong") == wrong, report


def test_forward_mode_covers_the_differentiated_inputs():
    """A function with a gradient inside detaches what needs none; its forward mode is not 0 for that."""

    def force(x):
        x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad((x**4).sum(), x, create_graph=True)[0]

    assert gradlab.check(force, normal(4), order=1, raises=False).verdict == "ok"


def root(x, eps):
    return (x.square().sum(-1, keepdim=True) + eps).rsqrt()


def unit_backward(eps):
    def backward(dy, x):
        r = root(x, eps)
        return r * dy - x * r**3 * (x * dy).sum(-1, keepdim=True)

    return backward


@pytest.mark.parametrize(("eps", "wrong"), [(1e-12, False), (0.0, True)])
def test_nan_where_a_small_eps_keeps_the_function_smooth_is_wrong(eps, wrong):
    """Quotients grow a millionfold up to the scale of the eps, and stand still below it."""
    fn = ruled(lambda x: x * root(x, 1e-12), unit_backward(eps))
    x = normal(3, 4)
    x[0] = 0
    report = gradlab.check(fn, x, order=1, raises=False, parts=("derivative",))
    assert (report.verdict == "wrong") == wrong, report
