"""How Pallas kernels are launched on a CPU: one program on whole arrays, as Pallas' interpreter has it, traced once."""

import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.experimental import pallas as pl

from gradlab.jax import linear
from gradlab.kernels.runtime import interpret_pallas
from gradlab.kernels.runtime.launch_pallas import launch, one_piece, pallas
from gradlab.kernels.runtime.traced_pallas import ByValue


def every_access(x_ref, i_ref, y_ref, z_ref, n_ref):
    """Static and traced places, numbers and whole blocks; the second row of y and the last of n are never written."""
    x = x_ref[...]
    i = i_ref[0, 0]
    y_ref[0, :] = x[0] + x_ref[2]
    y_ref[pl.ds(2, 1), :] = x_ref[pl.ds(i, 1), :] * 2
    z_ref[1:3, 1:3] = z_ref[0:2, pl.ds(0, 2)] + x_ref[1:3, 1:3]
    z_ref[pl.ds(i, 1), pl.ds(i, 1)] = x_ref[pl.ds(i, 1), pl.ds(i, 1)] + interpret_pallas.program_id(0)
    n_ref[0:1, :] = x_ref[1:2, :].astype(n_ref.dtype)


def accessed(x, z, i, whole):
    """What the kernel leaves, on whole arrays or by Pallas' interpreter."""
    results = [jax.ShapeDtypeStruct((3, 4), x.dtype), jax.ShapeDtypeStruct(z.shape, z.dtype)]
    results.append(jax.ShapeDtypeStruct((2, 4), jnp.int32))

    def kernel(x_ref, i_ref, z_given_ref, *outs):
        every_access(x_ref, i_ref, *outs)

    operands = (x, i.reshape(1, 1), z)
    if whole:
        return interpret_pallas.run(kernel, operands, results, {2: 1})
    return pl.pallas_call(kernel, out_shape=results, input_output_aliases={2: 1}, interpret=True, grid=(1,))(*operands)


@pytest.mark.parametrize("x64", [False, True])
def test_one_program_does_what_pallas_interpreter_does(x64):
    with jax.enable_x64(x64):
        x, z = jnp.arange(12.0).reshape(3, 4) + 1, jnp.arange(16.0).reshape(4, 4) * 10
        for i in (0, 1, 2):
            mine, pallas_s = (jax.jit(functools.partial(accessed, whole=w))(x, z, jnp.int32(i)) for w in (True, False))
            for got, want in zip(mine, pallas_s, strict=True):
                assert got.dtype == want.dtype
                np.testing.assert_array_equal(got, want)
            assert np.isnan(mine[0][1]).all()
            assert (mine[2][1] == np.iinfo(np.int32).min).all()


@pytest.mark.parametrize("value", [jnp.zeros((2, 4)), jnp.zeros((3, 4), jnp.bfloat16), jnp.zeros(4)])
def test_a_kernel_writes_its_results_shape_and_dtype(value):
    def kernel(y_ref):
        y_ref[...] = value

    result = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"^pallas_call: value to store is \w+\[.*\], wanted float32\[3, 4\]$"):
        interpret_pallas.run(kernel, [], [result], {})


def double(x, grid, block):
    def kernel(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    spec = pl.BlockSpec(block, lambda i: (i, 0))
    return pallas(kernel, "cpu", grid, [spec], spec, jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def test_a_loop_over_the_grid_only_where_there_are_several_programs():
    x = jnp.arange(8.0).reshape(4, 2)
    for grid, block in (((1,), (4, 2)), ((2,), (2, 2))):
        fn = jax.jit(functools.partial(double, grid=grid, block=block))
        np.testing.assert_array_equal(fn(x), 2 * x)
        assert ("stablehlo.while" in fn.lower(x).as_text()) == (grid != (1,))
    text = jax.jit(jax.grad(lambda x: linear(x, jnp.ones((2, 3))).sum())).lower(x).as_text()
    assert "stablehlo.while" not in text


class Noted:
    """What was noted, as an object that only itself is equal to: a list would be what it holds."""

    def __init__(self):
        self.all = []


def traced(*constants):
    """How often launches of one function that holds each of these constants are traced, mapped and alone."""
    noted = Noted()

    def launched(x, c):
        def call(platform, x):
            noted.all.append(platform)
            return x + np.asarray(c).astype(x.dtype).sum()

        return launch(call, x)

    x = jnp.arange(3.0)
    for c in constants:
        jax.make_jaxpr(lambda x, c=c: (launched(x, c), launched(2 * x, c), jax.vmap(lambda x: launched(x, c))(x)))(x)
    return len(noted.all)


def test_launches_that_say_the_same_are_traced_once():
    assert traced(1.5) == 2  # [3], and the scalar of a map
    assert traced(2.5, 2.5, (2.5,), [2.5]) == 6
    assert traced(0.0, -0.0, 0, False) == 8


def test_what_functions_say():
    def made(c, d=1):
        return lambda x, k=d: x + c

    assert ByValue(made(1)) == ByValue(made(1))
    assert hash(ByValue(made((1, {"a": [2]})))) == hash(ByValue(made((1, {"a": [2]}))))
    others = [made(1), made(2), made(1.0), made(True), made(1, 2), made((1,)), made([1]), made({"a": 1}), made(made(1)),
              made(made(2)), made(jnp.float32), made(jnp.float16), made(functools.partial(made, 1)), lambda x, k=1: x - 1]  # fmt: skip
    assert len(set(map(ByValue, others))) == len(others)
    held = made(jnp.ones(3))
    assert not ByValue(held).comparable
    assert ByValue(held) != ByValue(held)


def test_one_piece_of_the_same_settings_is_traced_once():
    noted = Noted()

    @one_piece
    def scaled(x, factor, shift):
        noted.all.append(factor)
        return x * factor + shift

    x = jnp.arange(3.0)
    one = jax.jit(lambda x: scaled(x, 2, x) + scaled(2 * x, 2, x) + scaled(x, 3, x))
    np.testing.assert_array_equal(one(x), 2 * x + x + 4 * x + x + 3 * x + x)
    assert noted.all == [2, 3]
