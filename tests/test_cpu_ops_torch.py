"""Every op over its Spec as machine code of a CPU: against the interpreter, with a CPU's tiles and with a GPU's."""

import contextlib
import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels.common import reduce_triton
from gradlab.kernels.cpu import launching
from gradlab.kernels.runtime.launch_triton import gpu_sizes, interpreting
from gradlab.profiling.machine_code.found import passes
from tests.several_programs import KINKED, OPS, RICHEST, large

CASES = [(name, case.name) for name, op in OPS.items() for case in op.select("check")]


def drawn(op, case, dtype):
    """Inputs, cotangents of the results, cotangents of the gradients."""
    arrays = op.at(case).make()
    random = np.random.default_rng(1)
    cotangents, seconds = ([random.standard_normal(shape) for shape in shapes] for shapes in op.at(case).shapes()[1:])
    return [
        [SIDE.put(array, dtype) for array in group]
        for group in ([arrays[a.name] for a in op.at(case).inputs], cotangents, seconds)
    ]


def run(op, case, given):
    """(pass, results) for forward, backward and second backward."""
    return [(name, [t.detach() for t in one(*given)]) for name, one in passes(op.at(case), SIDE)]


def assert_close(got, want, tolerance):
    """By the largest value of a result; what is not a number is none in both."""
    for (name, ours), (_, theirs) in zip(got, want, strict=True):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a, b = a.double(), b.double()
            assert a.shape == b.shape
            assert torch.equal(a.isnan(), b.isnan()), f"{name} {i}"
            error = (a - b).nan_to_num(0.0).abs().max().item() if a.numel() else 0.0
            assert error <= tolerance * max(1.0, b.nan_to_num(0.0).abs().max().item()), f"{name} {i}: {error}"


def assert_same_bits(got, want):
    for (name, ours), (_, theirs) in zip(got, want, strict=True):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert (
                a.numpy().tobytes() == b.numpy().tobytes()
                if a.dtype != torch.bfloat16
                else torch.equal(a.view(torch.int16), b.view(torch.int16))
            ), f"{name} {i}"


@pytest.mark.parametrize(("name", "case"), CASES)
def test_compiled_with_either_tiles_equals_interpreted(name, case):
    """In float64, where two orders of a sum differ by a few of its roundings; a second run gives the same bits."""
    op = OPS[name]
    case = next(c for c in op.select("check") if c.name == case)
    given = drawn(op, case, "float64")
    with interpreting():
        want = run(op, case, given)
    # A second backward sums over what the first one summed.
    tolerance = 4 * op.at(case).tolerance("float64")
    for sizes in (contextlib.nullcontext, gpu_sizes):
        with sizes():
            got = run(op, case, given)
            assert_close(got, want, tolerance)
            assert_same_bits(run(op, case, given), got)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", OPS)
def test_other_precisions_with_either_tiles(name, dtype):
    """Against float64 on the same rounded inputs, which is held against the interpreter above."""
    op, case = OPS[name], RICHEST[name]
    given = drawn(op, case, dtype)
    exact = [[t.double() if t.is_floating_point() else t for t in group] for group in given]
    want = run(op, case, exact)
    for sizes in (contextlib.nullcontext, gpu_sizes):
        with sizes():
            assert_close(run(op, case, given), want, 4 * op.at(case).tolerance(dtype))


@pytest.mark.parametrize("name", OPS)
def test_many_programs_agree_and_repeat_on_any_number_of_threads(name, monkeypatch):
    """The forward against the Spec's reference, every pass with a CPU's tiles against a GPU's.

    These cut sums otherwise. Each launch is spread over threads, however short it is.
    """
    # An op's own draw looks for values away from every kink, which so many numbers do not have.
    op, case = dataclasses.replace(OPS[name], **({"draw": None} if name in KINKED else {})), large(name)
    given = drawn(op, case, "float64")
    reference = as_tuple(op.reference(*(t.numpy() for t in given[0]), **op.at(case).options))
    want = [("forward", [torch.as_tensor(y) for y in reference])]
    monkeypatch.setattr(launching, "SPREAD", 0.0)
    # More would be summed by torch itself where a gradient was expanded, in an order of its threads.
    monkeypatch.setattr(reduce_triton, "CHUNK", 4096)
    teams, team = set(), launching.Team
    monkeypatch.setattr(launching, "Team", lambda *args: (teams.add(args[-1]), team(*args))[1])
    before = torch.get_num_threads()
    try:
        for sizes in (contextlib.nullcontext, gpu_sizes):
            with sizes():
                torch.set_num_threads(1)
                got = run(op, case, given)
                assert_close(got[: len(want)], want, 4 * op.at(case).tolerance("float64"))
                want = got
                for threads in (2, 3):
                    torch.set_num_threads(threads)
                    assert_same_bits(run(op, case, given), got)
    finally:
        torch.set_num_threads(before)
    assert {1, 2, 3} <= teams, "launches of several programs"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPS)
def test_what_is_not_finite_is_so_where_it_is_interpreted(name, dtype):
    op, case = OPS[name], RICHEST[name]
    given = drawn(op, case, dtype)
    for group in given:
        for i, t in enumerate(group):
            if t.is_floating_point() and t.numel() > 3:
                flat = t.view(-1)
                flat[i % 4], flat[(i + 1) % 4] = float("nan"), float("inf") if i % 2 else -float("inf")
    with interpreting():
        want = run(op, case, given)
    for sizes in (contextlib.nullcontext, gpu_sizes):
        with sizes():
            got = run(op, case, given)
        for (_, ours), (_, theirs) in zip(got, want, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a.isnan(), b.isnan())
                infinite = b.isinf()
                assert torch.equal(a[infinite], b[infinite])
                torch.testing.assert_close(a, b, rtol=1e-12 if dtype == "float64" else 1e-4, atol=1e-5, equal_nan=True)
