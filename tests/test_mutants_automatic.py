"""The operators that make mutants of a rule, and a sample of their mutants against the check."""

import ast
import functools
import random

import pytest

from gradlab.autodiff.checker.report import INCONCLUSIVE, OK, Finding
from gradlab.autodiff.frameworks.side import SIDES, side
from gradlab.kernels.spec import specs
from tests.mutants import automatic
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.operators import mutants
from tests.mutants.overlooked import OVERLOOKED

FILES = [automatic.file_of(f"{op}_{framework}") for op in (*specs(), "elementwise") for framework in SIDES]

TORCH = '''
"""A rule."""
import torch

TABLE = {"a": "b"}
OTHER = {"c": "d"}


class Rule(torch.autograd.Function):
    """y = 3 x."""

    @staticmethod
    def forward(x):
        """One launch."""
        return kernels.three(x)

    @staticmethod
    def backward(ctx, dy: "torch.Tensor") -> "torch.Tensor":
        if dy.ndim > 7:
            raise ValueError("rule: dy has 8 axes")
        return BODY

    @staticmethod
    def vmap(info, in_dims, x):
        return Rule.apply(x + 1), 0


def _helper(x):
    return x < 5


def _apart(x):
    return x < 6


def rule(x):
    want_rank("rule", x, 4)
    return Rule.apply(x * 9)
'''

JAX = """
import jax
import jax.numpy as jnp


@jax.custom_vjp
def _rule(x, t):
    return kernels.three(x, t)


def _fwd(x, t):
    return rule(x, t), (x, t)


def _bwd(kept, dy):
    x, t = kept
    return dy * x, None


_rule.defvjp(_fwd, _bwd)
rule = jax.jit(_rule)
"""


def changes(body, source=TORCH):
    """What the mutants of the backward that returns `body` return."""
    made = [m for m in mutants(source.replace("BODY", body)) if m.text == f"return {ast.unparse(ast.parse(body))}"]
    return {m.change.removeprefix("return ") for m in made}


WRONG_BODIES = [
    ("a + b", {"a - b", "None", "-(a + b)"}),
    ("a * b", {"a / b", "a", "b", "None", "-(a * b)"}),
    ("a / b", {"a * b", "a", "None", "-(a / b)"}),
    ("-a", {"a", "None", "--a"}),
    ("f(a, b)", {"f(b, a)", "f(-a, b)", "f(a, -b)", "None", "-f(a, b)"}),
    (
        "(a, b, None)",
        {"(b, a, None)", "(a, None, b)", "(None, b, None)", "(a, None, None)", "(-a, b, None)", "(a, -b, None)"},
    ),
    ("a if b else c", {"c if b else a", "None"}),
    ("a if b is None else c", {"a if b is not None else c", "None"}),
    ("a if b == c else d", {"a if b != c else d", "None"}),
    ("a if b and c else d", {"d if b and c else a", "a if b or c else d", "None"}),
    ("a if b < c else d", {"a if b <= c else d", "a if b > c else d", "d if b < c else a", "None"}),
    ("a if b >= c else d", {"a if b > c else d", "a if b <= c else d", "d if b >= c else a", "None"}),
    ("a.sum(0)", {"a.sum(1)", "None", "-a.sum(0)"}),
    ("a.sum(1)", {"a.sum(0)", "a.sum(-1)", "None", "-a.sum(1)"}),
    ("a.sum(-1)", {"a.sum(1)", "a.sum(-0)", "a.sum(--1)", "None", "-a.sum(-1)"}),
    (
        "a.sum(2, keepdim=True)",
        {
            "a.sum(3, keepdim=True)",
            "a.sum(-2, keepdim=True)",
            "a.sum(2, keepdim=False)",
            "None",
            "-a.sum(2, keepdim=True)",
        },
    ),
    ("a['x'] + b['y']", {"a['y'] + b['y']", "a['x'] + b['x']", "a['x'] - b['y']", "None", "-(a['x'] + b['y'])"}),
]


@pytest.mark.parametrize(("body", "wanted"), WRONG_BODIES, ids=[body for body, _ in WRONG_BODIES])
def test_operators(body, wanted):
    assert changes(body) == wanted


def test_only_what_makes_derivatives():
    made = list(mutants(TORCH.replace("BODY", "_helper(dy)[TABLE[0]]")))
    texts = {m.text for m in made}
    assert texts == {"TABLE = {'a': 'b'}", "return kernels.three(x)", "return _helper(dy)[TABLE[0]]", "return x < 5"}
    for m in made:
        # Docstrings, what is refused, types and vmap are as they were.
        for kept in (
            "A rule.",
            "y = 3 x.",
            "One launch.",
            "dy.ndim > 7",
            "dy has 8 axes",
            "dy: 'torch.Tensor'",
            "x + 1",
            "x * 9",
            "x < 6",
        ):
            assert kept in m.source


def test_condition_of_a_statement():
    source = TORCH.replace("return BODY", "if dy:\n            dy = a + b\n        return dy")
    heads = {m.change for m in mutants(source) if m.text == "if dy:"}
    assert heads == {"if not dy:"}
    assert "dy = a - b" in {m.change for m in mutants(source)}


def test_jax_rules():
    made = {(m.text, m.change) for m in mutants(JAX)}
    assert ("return (dy * x, None)", "return (jnp.zeros_like(dy * x), None)") in made
    assert ("return (rule(x, t), (x, t))", "return (rule(x, t), (t, x))") in made
    assert ("x, t = kept", "t, x = kept") in made or ("(x, t) = kept", "(t, x) = kept") in made
    assert ("return kernels.three(x, t)", "return kernels.three(t, x)") in made


def test_line_and_words():
    (first, *_) = mutants(TORCH.replace("BODY", "dy"))
    assert TORCH.splitlines()[first.line - 1].strip() == "return kernels.three(x)"
    assert str(first) == f"{first.line}: sign: return kernels.three(x) -> return kernels.three(-x)"


@functools.cache
def mutants_of(path):
    """Every mutant of a file: several tests look at them, and making them takes seconds."""
    return tuple(mutants(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_every_mutant_compiles_and_differs(path):
    source, made = path.read_text(), mutants_of(path)
    assert made
    assert len({m.source for m in made} | {ast.unparse(ast.parse(source))}) == len(made) + 1
    for m in made[::5]:
        compile(m.source, path.name, "exec")
        assert m.text != m.change


def test_equivalent_are_mutants():
    """An entry that no mutant matches any more has outlived its rule."""
    made = {(p.stem, m.text, m.change) for p in FILES for m in mutants_of(p)}
    for file, text, change, reason in EQUIVALENT:
        assert (file, text, change) in made
        assert reason


def test_overlooked_are_mutated():
    made = {(p.stem, m.text) for p in FILES for m in mutants_of(p)}
    assert {(file, text) for file, text, _ in OVERLOOKED} <= made


def test_stops_at_the_first():
    found = automatic._UpToTheFirst(lambda: {("case", "check", "x")})
    found.append(Finding("check", OK))
    found += [Finding("check", INCONCLUSIVE, "x", case="case")]
    for verdict, name in ((INCONCLUSIVE, "y"), ("wrong", "x")):
        with pytest.raises(automatic._Caught):
            found.append(Finding("check", verdict, name, case="case"))
    assert len(found) == 2


def test_side_is_put_back():
    pytest.importorskip("torch")
    on = side("torch")
    before = on.op("relu")
    with automatic.in_place(on, len):
        assert on.op("relu") is len
    assert on.op("relu") is before
    with pytest.raises(ZeroDivisionError), automatic.in_place(on, len):
        on.op("relu")([] or 1 / 0)
    assert on.op("relu") is before


def test_source_that_is_no_module():
    assert automatic.build("relu_torch", "1 / 0") is None
    assert automatic.build("relu_torch", "def") is None


def test_rule_itself_is_not_caught():
    pytest.importorskip("torch")
    real = automatic.build("relu_torch", automatic.file_of("relu_torch").read_text())
    assert automatic.caught("relu", side("torch"), real.by_spec) == ""


SAMPLES = [("torch", op, 4) for op in ("relu", "tanh", "sigmoid", "mse_loss", "linear")] + [
    ("jax", op, 3) for op in ("relu", "tanh")
]


@pytest.mark.parametrize(("framework", "op", "count"), SAMPLES, ids=[f"{op}_{f}" for f, op, _ in SAMPLES])
def test_sample_is_caught(framework, op, count):
    pytest.importorskip(framework)
    name = f"{op}_{framework}"
    overlooked = {text for file, text, _ in OVERLOOKED if file == name}
    every = [m for m in mutants(automatic.file_of(name).read_text()) if not automatic.listed(name, m)]
    every = [m for m in every if m.text not in overlooked]
    for m in random.Random(1).sample(every, count):
        assert automatic.caught(op, side(framework), automatic.build(name, m.source).by_spec), m
