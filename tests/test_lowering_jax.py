"""Every jax program of the lab lowered for a GPU and a TPU that are not there: its kernels are in it, compiled."""

import re

import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp

from gradlab.jax import (
    AdamState,
    SGDState,
    adam,
    adam_init,
    adam_step,
    binary_cross_entropy_with_logits,
    clip_by_global_norm,
    cross_entropy,
    global_norm,
    linear,
    linear_cross_entropy,
    max_pool2d,
    mse_loss,
    relu,
    sgd,
    sgd_step,
    sigmoid,
    tanh,
)
from gradlab.kernels.runtime.launch_pallas import launch
from gradlab.kernels.runtime.lower_pallas import lowered

CALLS = {"cpu": None, "cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
TARGETS = [(p, d) for p in ("cuda", "tpu") for d in ("float32", "bfloat16", "float16")] + [("cuda", "float64")]


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def arrays(dtype, *shapes):
    return tuple(jax.ShapeDtypeStruct(s, dtype) for s in shapes)


def gradient(fn, wrt):
    return jax.grad(lambda *args: sum(jnp.sin(y).sum() for y in jax.tree.leaves(fn(*args))), wrt)


def linear_relu(x, w, b):
    return linear(x, w, b, activation="relu")


def entropy(x, t):
    return cross_entropy(x, t, ignore_index=2)


def every(x, w, t):
    return cross_entropy(x, t, weight=w, label_smoothing=0.1, z_loss=0.2, softcap=3.0)


def fused(p, g, m, v, lr):
    return adam_step(p, g, AdamState(jnp.int32(3), m, v), learning_rate=lr)


def descent(p, g, b, lr):
    return sgd_step(p, g, SGDState(jnp.int32(3), b), learning_rate=lr, momentum=0.9, weight_decay=0.1)


def plain_descent(p, g, lr):
    return sgd_step(p, g, SGDState(jnp.int32(3), None), learning_rate=lr)[0]


def descent_update(g, b, lr):
    return sgd(lr, 0.9, nesterov=True).update(g, SGDState(jnp.int32(3), b))


def maximal(p, g, m, v, x, lr):
    return adam_step(p, g, AdamState(jnp.int32(3), m, v, x), learning_rate=lr, weight_decay=0.1)


def rounded(p, g):
    options = {"master_weights": True, "state_dtype": jnp.bfloat16}
    state = adam_init(p, amsgrad=True, **options)
    return adam_step(p, g, state, **options, grad_scale=jnp.float32(8), found_inf=jnp.float32(0))[1]


def update(g, m, v, lr):
    return adam(lr).update(g, AdamState(jnp.int32(3), m, v))


def norm(x, y):
    return global_norm([x, y])


def clip(x, max_norm):
    return clip_by_global_norm(max_norm).update(x, ())[0]


def pool(x):
    return max_pool2d(x, 3, strides=2, padding=1)


def fused_entropy(h, w, b, t):
    return linear_cross_entropy(h, w, t, b, ignore_index=2, label_smoothing=0.1, z_loss=0.1, softcap=5.0)


def weighed(x, t, w):
    return binary_cross_entropy_with_logits(x, t, weight=w, pos_weight=w)


# name: the function, what it is differentiated by, how often it can be, its shapes (an int dtype's alone last),
# and the kernels that must be in the program of each order.
ODD, TALL, WHOLE = ((5, 7), (7, 3), (3,)), ((1601, 70), (70, 130), (130,)), ((128, 256), (256, 128), (128,))
PROGRAMS = {
    "linear": (linear, (0, 1, 2), 2, ODD, ()),
    "linear without bias": (linear, (0, 1), 2, ODD[:2], ()),
    "linear, relu": (linear_relu, (0, 1, 2), 2, ODD, ()),
    "linear, relu, tall": (linear_relu, (0, 1, 2), 2, TALL, ()),
    "linear, relu, whole tiles": (linear_relu, (0, 1, 2), 2, WHOLE, ()),
    "relu": (relu, (0,), 2, ((5, 3, 300),), ()),
    "max_pool2d": (pool, (0,), 2, ((2, 9, 7, 3),), ()),
    "sigmoid": (sigmoid, (0,), 2, ((5, 3, 300),), ()),
    "tanh": (tanh, (0,), 2, ((5, 3, 300),), ()),
    "mse_loss": (mse_loss, (0, 1), 2, ((5, 7), (5, 7)), ()),
    "mse_loss, stretches": (mse_loss, (0, 1), 2, ((70, 1024), (70, 1024)), ()),
    "binary_cross_entropy_with_logits": (binary_cross_entropy_with_logits, (0, 1), 2, ((5, 7), (5, 7)), ()),
    "binary_cross_entropy_with_logits, weighed": (weighed, (0, 1), 2, ((5, 7), (5, 7), (7,)), ()),
    "cross_entropy": (entropy, (0,), 2, ((5, 7),), ((5,),)),
    "cross_entropy, many classes": (entropy, (0,), 2, ((19, 1030),), ((19,),)),
    "cross_entropy, every option": (every, (0,), 2, ((5, 7), (7,)), ((5,),)),
    "cross_entropy, soft labels": (lambda x, q: cross_entropy(x, q, reduction="none"), (0, 1), 2, ((5, 7), (5, 7)), ()),
    "linear_cross_entropy, many classes": (fused_entropy, (0, 1, 2), 2, ((130, 70), (70, 50257), (50257,)), ((130,),)),
    "adam_step": (fused, (0, 1, 2, 3, 4), 1, ((3, 7),) * 4 + ((),), ()),
    "adam_step, amsgrad": (maximal, (0, 1, 2, 3, 4, 5), 1, ((3, 7),) * 5 + ((),), ()),
    "adam_step, rounded": (rounded, (), 0, ((33, 129),) * 2, ()),
    "adam_step, large": (fused, (0, 1, 2, 3), 1, ((33, 129),) * 4 + ((),), ()),
    "adam": (update, (0, 1, 2), 1, ((3, 7),) * 3 + ((),), ()),
    "sgd_step": (descent, (0, 1, 2), 2, ((3, 7),) * 3 + ((),), ()),
    "sgd_step, without momentum": (plain_descent, (0, 1), 2, ((3, 7),) * 2 + ((),), ()),
    "sgd_step, large": (descent, (0, 1, 2), 2, ((33, 129),) * 3 + ((),), ()),
    "global_norm": (norm, (0, 1), 2, ((5, 7), (300,)), ()),
    "clip_by_global_norm": (clip, (0,), 2, ((5, 7), ()), ()),
    "sgd": (descent_update, (0, 1), 2, ((3, 7),) * 2 + ((),), ()),
}
KERNELS = {
    "linear": ({"matmul"}, {"matmul", "column_sum"}, {"matmul", "column_sum"}),
    "linear without bias": ({"matmul"}, {"matmul"}, {"matmul"}),
    "linear, relu": ({"matmul"}, {"matmul", "column_sum"}, {"matmul", "column_sum", "relu_mask"}),
    "relu": ({"relu_mask"}, {"relu_mask"}, {"relu_mask"}),
    "max_pool2d": ({"max"}, {"max", "scatter"}, {"max", "scatter", "gather"}),
    "sigmoid": ({"sigmoid"}, {"sigmoid", "slope"}, {"sigmoid", "slope", "times"}),
    "tanh": ({"tanh"}, {"tanh", "slope"}, {"tanh", "slope", "times"}),
    "mse_loss": ({"squares", "column_sum"}, *[{"squares", "column_sum", "differences"}] * 2),
    "binary_cross_entropy_with_logits": (
        {"losses", "column_sum"},
        {"losses", "column_sum", "derivative"},
        {"losses", "column_sum", "derivative", "times"},
    ),
    "cross_entropy": (
        {"loss", "sum_rows"},
        {"loss", "sum_rows", "backward"},
        {"loss", "sum_rows", "backward", "second_backward"},
    ),
    "cross_entropy, soft labels": (
        {"loss"},
        {"loss", "backward", "target_backward"},
        {"loss", "backward", "target_backward", "second_backward"},
    ),
    "linear_cross_entropy": (
        {"statistics", "merge", "sum_rows"},
        {"statistics", "merge", "sum_rows", "backward", "matmul", "column_sum"},
        {"statistics", "merge", "sum_rows", "backward", "matmul", "column_sum", "second_backward"},
    ),
    "adam_step": ({"adam"}, {"adam", "adam_pullback", "column_sum"}),
    "adam": ({"adam"}, {"adam", "adam_pullback", "column_sum"}),
    "sgd_step": ({"sgd"}, {"sgd", "sgd_pullback"}, {"sgd", "sgd_pullback"}),
    "global_norm": (
        {"squares", "column_sum"},
        {"squares", "column_sum", "scale"},
        {"squares", "column_sum", "scale", "dot"},
    ),
    "clip_by_global_norm": ({"squares", "column_sum", "scale"}, *[{"squares", "column_sum", "scale", "dot"}] * 2),
    "sgd": ({"sgd"}, {"sgd", "sgd_pullback"}, {"sgd", "sgd_pullback"}),
}


def text_of(name, order, platform, dtype):
    """The program's text for a platform, of the value (0), the gradient (1) or the gradient of the gradient (2)."""
    fn, wrt, most, floats, ints = PROGRAMS[name]
    assert order <= most
    for _ in range(order):
        fn = gradient(fn, wrt)
    args = arrays(dtype, *floats) + arrays("int32", *ints)
    return lowered(jax.jit(fn), platform, *args).as_text()


def kernels(text, call):
    """The names of the kernels in the program, by custom call."""
    lines = [line for line in text.splitlines() if f"@{call}" in line]
    return {name for line in lines for name in re.findall(r"gradlab_(\w+?)_kernel", line)}


# Shapes of more than one block once in full and once in half precision; small ones in every dtype.
LARGE = (
    "linear, relu, tall",
    "linear, relu, whole tiles",
    "cross_entropy, many classes",
    "linear_cross_entropy, many classes",
    "adam_step, large",
    "adam_step, rounded",
    "mse_loss, stretches",
    "sgd_step, large",
)


@pytest.mark.parametrize(
    ("platform", "dtype", "name"),
    [(*t, name) for t in TARGETS for name in PROGRAMS if name not in LARGE or t[1] in ("float32", "bfloat16")],
)
def test_lowers_to_compiled_kernels(platform, dtype, name):
    stem = name if name in KERNELS else name.rsplit(",", 1)[0]
    most = PROGRAMS[name][2]
    # The last derivative's program has the kernels of all before it: in one dtype each is lowered alone too.
    for order in range(most + 1) if dtype == "float32" else [most]:
        found = kernels(text_of(name, order, platform, dtype), CALLS[platform])
        assert found == KERNELS[stem][order], f"order {order}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_has_no_compiled_kernel_on_a_cpu(name):
    text = text_of(name, min(1, PROGRAMS[name][2]), "cpu", "float32")
    assert "func.func public @main" in text
    assert not re.search("triton|tpu_custom_call|mosaic", text)


def test_a_launch_is_traced_for_the_platforms_it_is_lowered_for():
    traced = []

    def call(platform, x):
        traced.append(platform)
        return x + 1

    program = jax.jit(lambda x: launch(call, x)).trace(jnp.ones(3))
    program.lower(lowering_platforms=("cpu",))
    assert traced == ["cpu"]
    program.lower(lowering_platforms=("tpu",))
    assert traced == ["cpu", "tpu"]
    both = program.lower(lowering_platforms=("cpu", "cuda")).as_text()
    assert traced == ["cpu", "tpu", "cuda"]
    assert "platform_index" in both or "case" in both


def test_a_launch_holds_no_array():
    x = jnp.ones(3)
    with pytest.raises(TypeError, match=r"^launch: .* holds x, wanted arrays among its operands alone$"):
        launch(lambda platform, y: x + y, x)
