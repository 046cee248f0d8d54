"""Classes of every integer dtype beside an ignore_index and a V that the dtype does not hold: no number wraps round."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

import gradlab.jax as lab
from gradlab.autodiff.class_losses import class_range_jax

# dtype, V, ignore_index, labels, the row whose label is out of range.
CASES = {
    "uint8 255 is not -1": ("uint8", 5, -1, [0, 255, 3], 1),
    "uint8 240 is below 300": ("uint8", 300, -100, [0, 240, 3], None),
    "uint8 3 is not 259": ("uint8", 5, 259, [0, 3, 1], None),
    "uint8 255 is ignored": ("uint8", 5, 255, [0, 255, 3], None),
    "int8 -100 is ignored": ("int8", 5, -100, [0, -100, 3], None),
    "int8 -1 is not 255": ("int8", 300, 255, [0, -1, 3], 1),
    "int16 -1 is not 2^40 - 1": ("int16", 5, 2**40 - 1, [0, -1, 3], 1),
    "uint16 2^16 - 1 is not -1": ("uint16", 5, -1, [0, 2**16 - 1, 3], 1),
    "uint32 2^32 - 1 is not -1": ("uint32", 5, -1, [0, 2**32 - 1, 3], 1),
    "uint32 2^32 - 1 is ignored": ("uint32", 5, 2**32 - 1, [0, 2**32 - 1, 3], None),
    "uint32 2^31 is not 2^40": ("uint32", 5, 2**40, [0, 2**31, 3], 1),
    "int32 1 is not 2^32 + 1": ("int32", 5, 2**32 + 1, [0, 1, 3], None),
    "int32 2^31 - 1 is not 2^40": ("int32", 5, 2**40, [0, 2**31 - 1, 3], 1),
    "int64 2^40 is ignored": ("int64", 5, 2**40, [0, 2**40, 3], None),
    "int64 2^41 is not 2^40": ("int64", 5, 2**40, [0, 2**41, 3], 1),
    "int64 2^32 + 1 is not 1": ("int64", 5, 1, [0, 2**32 + 1, 3], 1),
}


def ours(op, h, w, t, **options):
    if op == "cross_entropy":
        return lab.cross_entropy(h @ w, t, **options)
    return lab.linear_cross_entropy(h, w, t, **options)


def native(h, w, t, valid):
    y = -jnp.take_along_axis(jax.nn.log_softmax(h @ w), jnp.where(valid, t, 0)[:, None], 1)[:, 0]
    return jnp.where(valid, y, 0)


# Of what is right, linear_cross_entropy takes the way of cross_entropy, so two cases; a compiled program is a second.
PAIRS = [("cross_entropy", case) for case in CASES] + [
    ("linear_cross_entropy", case) for case, (_, _, _, _, wrong) in CASES.items() if wrong or "2^40 is" in case
]


@pytest.mark.parametrize(("op", "case"), PAIRS)
@pytest.mark.parametrize("x64", [True, False])
def test_no_label_wraps_round(op, case, x64):
    dtype, V, ignore_index, labels, wrong = CASES[case]
    host = np.array(labels, dtype)
    with jax.enable_x64(x64):
        rng = np.random.default_rng(0)
        h, w = (jnp.asarray(rng.standard_normal(s), "float64" if x64 else "float32") for s in ((3, 2), (2, V)))
        valid = np.array([label != ignore_index for label in labels])
        want = native(h, w, np.where(host == labels[0], 0, np.clip(host, 0, V - 1)), valid)
        if wrong is None and not x64 and dtype not in ("uint32", "int64"):
            return
        if wrong is None:
            # Without x64 a jax array holds no int64; NumPy's labels keep their own.
            y = ours(op, h, w, jnp.asarray(host) if x64 else host, ignore_index=ignore_index, reduction="none")
            np.testing.assert_allclose(y, want, rtol=0, atol=20 * V * jnp.finfo(h.dtype).eps)
            return
        for t in [host] if dtype == "int64" and not x64 else [host, jnp.asarray(host)]:
            said = rf"{op}: labels\[{wrong}\] is {labels[wrong]}, wanted a class in"
            with pytest.raises(IndexError, match=said):
                ours(op, h, w, t, ignore_index=ignore_index)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("x64", [True, False])
def test_labels_in_int32_are_the_same_labels(case, x64):
    dtype, V, ignore_index, labels, wrong = CASES[case]
    host, valid = np.array(labels, dtype), np.array([label != ignore_index for label in labels])
    if dtype == "int64" and not x64:
        return
    with jax.enable_x64(x64), jax.disable_jit():
        t = jnp.asarray(host)
        # What an accelerator is asked, where looking would make the host wait.
        row, value = np.asarray(class_range_jax.out_of_range(t, V, ignore_index))
        assert row == (-1 if wrong is None else wrong)
        assert wrong is None or value.astype(dtype) == labels[wrong]
        narrow, ignored = class_range_jax.narrow(t, ignore_index)
        assert narrow.dtype == jnp.int32
        known = (narrow >= 0) & (narrow < V)
        assert (narrow == ignored).tolist() == (~valid).tolist()
        assert (known | ~valid).tolist() == [i != wrong for i in range(3)]
        np.testing.assert_array_equal(narrow[known & valid], host[np.asarray(known & valid)])


@pytest.mark.parametrize("x64", [True, False])
def test_one_label_that_is_a_number(x64):
    with jax.enable_x64(x64):
        x = jnp.asarray([1.0, 2.0, 3.0])
        assert lab.cross_entropy(x, 2**40, ignore_index=2**40, reduction="sum") == 0
        with pytest.raises(IndexError, match=rf"cross_entropy: labels is {2**32 + 1}, wanted a class in \[0, 3\)"):
            lab.cross_entropy(x, 2**32 + 1)
