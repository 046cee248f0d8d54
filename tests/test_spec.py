"""Specs: signatures, sizes, bytes, cases; and the references against scipy and finite differences of nothing else."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from gradlab.kernels.spec import Array, Case, Spec, spec, specs

OPS = specs()


def test_signature_is_parsed():
    linear = OPS["linear"]
    assert linear.inputs == (Array("x", ("M", "K")), Array("w", ("K", "N")), Array("b", ("N",)))
    assert linear.outputs == (Array("y", ("M", "N")),)
    assert OPS["cross_entropy"].inputs[1] == Array("t", ("M",), integer=True)
    assert [a.name for a in OPS["adam"].outputs] == ["p'", "m'", "v'", "x'"]
    plain, amsgrad = Case("", {"E": 3}, {"has_x": False}), Case("", {"E": 3})
    assert [a.name for a in OPS["adam"].at(plain).results] == ["p'", "m'", "v'"]
    assert OPS["adam"].at(amsgrad).results == OPS["adam"].outputs
    # lr counts as one element.
    assert OPS["adam"].at(plain).bytes("float64") == {"forward": 8 * 22, "backward": 8 * (22 + 13)}


def test_bytes_follow_from_the_signature():
    case = Case("", {"M": 2, "K": 3, "N": 5})
    # x 6, w 15, b 5, y 10 elements; backward reads them all and writes dx, dw, db.
    assert OPS["linear"].at(case).bytes("float32") == {"forward": 4 * 36, "backward": 4 * (36 + 26)}
    without = Case("", {"M": 2, "K": 3, "N": 5}, {"has_b": False})
    assert OPS["linear"].at(without).bytes("bfloat16") == {"forward": 2 * 31, "backward": 2 * (31 + 21)}
    reduced = Case("", {"M": 2, "V": 3}, {"has_q": False, "has_a": False})
    assert OPS["cross_entropy"].at(reduced).bytes("float64") == {
        "forward": 8 * (6 + 2 + 1),
        "backward": 8 * (6 + 2 + 1 + 6),
    }


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_cases_draw_what_the_signature_says(op: Spec):
    assert op.select("check")
    assert op.select("bench")
    for case in op.select("check"):
        arrays = op.at(case).make(seed=3)
        assert {n: a.shape for n, a in arrays.items()} == {
            a.name: a.shape(op.at(case).sizes) for a in op.at(case).inputs
        }
        again = op.at(case).make(seed=3)
        assert all(np.array_equal(arrays[n], again[n]) for n in arrays)
        if any(a.size > 1 for a in arrays.values()):
            other = op.at(case).make(seed=4)
            assert any(not np.array_equal(arrays[n], other[n]) for n in arrays)
        results = op.reference(*arrays.values(), **op.at(case).options)
        shapes = [np.shape(r) for r in (results if isinstance(results, tuple) else (results,))]
        assert shapes == [a.shape(op.at(case).sizes) for a in op.at(case).results]


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_flops_grow_with_every_size(op: Spec):
    case = op.select("bench")[0]
    base = op.flops(case.sizes, **op.at(case).options)
    assert set(base) == {"forward", "backward"}
    for axis in case.sizes:
        grown = op.flops({**case.sizes, axis: 2 * case.sizes[axis]}, **op.at(case).options)
        assert all(grown[k] > base[k] for k in base)


def test_cross_entropy_reference_is_scipys():
    rng = np.random.default_rng(0)
    x, t = 5 * rng.standard_normal((6, 4)), np.array([0, 3, -100, 1, 2, 2])
    wanted = -scipy.special.log_softmax(x, axis=1)[np.arange(6), np.clip(t, 0, None)]
    wanted[2] = 0
    reference = OPS["cross_entropy"].reference
    np.testing.assert_allclose(reference(x, t, reduction="none"), wanted, rtol=1e-14)
    np.testing.assert_allclose(reference(x, t), wanted.sum() / 5, rtol=1e-14)


def test_adam_reference_minimises():
    """The step does what an optimizer is for: Rosenbrock's function goes to its minimum."""
    p, m, v = np.array([-1.2, 1.0]), np.zeros(2), np.zeros(2)
    for step in range(1, 4001):
        p, m, v = OPS["adam"].reference(p, scipy.optimize.rosen_der(p), m, v, lr=0.02, step=step)
    assert scipy.optimize.rosen(p) < 1e-6


def test_unknown_op_is_one_line():
    with pytest.raises(ValueError, match=r"op: name is 'conv9d', wanted one of adam, .*linear, .*relu"):
        spec("conv9d")
