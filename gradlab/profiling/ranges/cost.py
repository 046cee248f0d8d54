"""FLOPs and bytes of a call of a public op, from its Spec and the shapes of the arguments."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from gradlab.autodiff.arguments.errors import FLOATS, dtype_name
from gradlab.kernels.common.window import pads, pair
from gradlab.kernels.spec import Case, spec

Shape = tuple[int, ...]
# A call in terms of the Spec: shapes of its arrays by name, and options.
CallShapes = tuple[dict[str, Shape], dict[str, Any]]


class Cost(NamedTuple):
    """FLOPs and least bytes, {"forward": n, "backward": n} each, and how many inputs have a gradient."""

    flops: Mapping[str, int]
    bytes: Mapping[str, int]
    gradients: int


UNKNOWN = Cost({"forward": 0, "backward": 0}, {"forward": 0, "backward": 0}, 0)


def named(fn: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, None left out; a public op takes no more positional ones than it names."""
    given = dict(zip(_names(fn), args, strict=False)) | dict(options)
    return {name: value for name, value in given.items() if value is not None}


def shapes(arguments: Mapping[str, Any]) -> tuple[tuple[str, Shape], ...]:
    """The shape of every array among the arguments; those in containers follow one another."""
    found = []
    for name, value in arguments.items():
        leaves = list(_leaves(value))
        found += [(name if value is leaf else f"{name}.{i}", _shape(leaf)) for i, leaf in enumerate(leaves)]
    return tuple(found)


def dtype_of(arguments: Mapping[str, Any]) -> str:
    """The dtype of the first array that is named; "" where there is none."""
    return next((dtype_name(leaf) for value in arguments.values() for leaf in _leaves(value)), "")


def cost(side: str, op: str, arguments: Mapping[str, Any]) -> Cost:
    """The cost of the op for these arguments; zeros where its Spec does not know them, as with uneven borders.

    Invalid arguments are left for the op itself to refuse.
    """
    try:
        return _cost(side, op, arguments)
    except (ValueError, TypeError, LookupError, AttributeError):
        return UNKNOWN


def _cost(side: str, op: str, arguments: Mapping[str, Any]) -> Cost:
    arrays, options = _CALLS[op, side](arguments) if (op, side) in _CALLS else _default_call(op, arguments)
    one = spec(op)
    absent = {f"has_{a.name}": False for a in one.inputs if a.name not in arrays}
    sizes: dict[str, int] = {}
    for array in one.inputs:
        if array.name in arrays:
            sizes |= zip(array.axes, _folded(arrays[array.name], len(array.axes)), strict=True)
    dtype = dtype_of(arguments)
    if dtype not in FLOATS:
        return UNKNOWN
    at = one.at(Case("called", sizes, options | absent))
    return Cost(at.flops(), at.bytes(dtype), len(at.wrt))


@functools.cache
def _names(fn: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(fn).parameters)


def _leaves(value: Any) -> Iterator[Any]:
    """The arrays in nested containers."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)


def _shape(array: Any) -> Shape:
    return tuple(int(n) for n in array.shape)


def _folded(shape: Shape, axes: int) -> Shape:
    """The shape with `axes` axes: leading ones are folded into the first, missing ones are 1."""
    shape = (1,) * (axes - len(shape)) + shape
    return (math.prod(shape[: len(shape) - axes + 1]), *shape[len(shape) - axes + 1 :])


def _default_call(op: str, given: Mapping[str, Any]) -> CallShapes:
    """The usual call: arrays in the Spec's order, options by the Spec's names."""
    arrays = [value for value in given.values() if hasattr(value, "shape")]
    options = {name: value for name, value in given.items() if not hasattr(value, "shape")}
    named_ = dict(zip((a.name for a in spec(op).inputs), map(_shape, arrays), strict=False))
    return named_, {name: options[name] for name in _OPTIONS if name in options}


# The options that decide a size, by the Specs' names.
_OPTIONS = ("stride", "padding", "dilation", "groups", "kernel_size", "ceil_mode", "reduction")


def _linear(given: Mapping[str, Any], weight: str, transposed: bool) -> CallShapes:
    x, w = (_shape(given[name]) for name in ("input" if transposed else "x", weight))
    arrays = {"x": x, "w": _folded(w, 2)[::-1] if transposed else w}
    return arrays | ({"b": _shape(given["bias"])} if "bias" in given else {}), {}


def _images(shape: Shape) -> Shape:
    """[B C H W] of [B H W C], B perhaps absent."""
    B, H, W, C = _folded(shape, 4)
    return B, C, H, W


def _conv2d(given: Mapping[str, Any]) -> CallShapes:
    R, S, D, F = _shape(given["kernel"])
    arrays = {"x": _images(_shape(given["x"])), "w": (F, D, R, S)}
    arrays |= {"b": _shape(given["bias"])} if "bias" in given else {}
    padding = given.get("padding", "SAME")
    options = {"stride": given.get("strides", 1), "padding": _lower(padding)}
    return arrays, options | {name: given[name] for name in ("dilation", "groups") if name in given}


def _max_pool2d(given: Mapping[str, Any]) -> CallShapes:
    x = _images(_shape(given["x"]))
    window, spread = pair(given["window"]), pair(given.get("dilation", 1))
    steps = pair(given.get("strides", window))
    around = pads(_lower(given.get("padding", "valid")), window, steps, spread, x[2:])
    if any(before != after for before, after in around):
        raise ValueError("max_pool2d: padding is uneven, wanted equal borders for a cost")
    edge = around[0][0], around[1][0]
    return {"x": x}, {"kernel_size": window, "stride": steps, "dilation": spread, "padding": edge}


def _lower(padding: Any) -> Any:
    return padding.lower() if isinstance(padding, str) else padding


def _losses(given: Mapping[str, Any]) -> CallShapes:
    x, t = list(given)[:2]
    arrays = {"x": _shape(given[x]), "t": _shape(given[t])}
    arrays |= {name: arrays["x"] for name, came in (("w", "weight"), ("p", "pos_weight")) if came in given}
    return arrays, {"reduction": given.get("reduction", "mean")}


def _cross_entropy(given: Mapping[str, Any]) -> CallShapes:
    """Logits as rows of classes, wherever their axis stands; soft targets are recognised by their dtype."""
    x, target = list(given)[:2]
    shape = _shape(given[x])
    V = shape[given.get("axis", -1) if x == "logits" else min(1, len(shape) - 1)]
    table: Shape = (math.prod(shape) // V, V)
    soft = dtype_name(given[target]) in FLOATS
    arrays = {"x": table, "q" if soft else "t": table if soft else table[:1]}
    arrays |= {"a": (V,)} if "weight" in given else {}
    return arrays, {name: given[name] for name in ("reduction", "label_smoothing") if name in given}


def _step(names: str, given: Mapping[str, Any]) -> CallShapes:
    """An optimizer's step: every array of it has the parameters' elements."""
    first = next(iter(given.values()))
    E = sum(math.prod(leaf.shape) for leaf in _leaves(first))
    return dict.fromkeys(names, (E,)), {}


def _adam(where: str, given: Mapping[str, Any]) -> CallShapes:
    """A step of Adam, with the largest second moment where there is one: an argument, or a part of the state."""
    state = given.get("state", given)
    maximum = state.get(where) if isinstance(state, Mapping) else getattr(state, where, None)
    return _step("pgmv" if maximum is None else "pgmvx", given)


_CALLS: dict[tuple[str, str], Callable[[Mapping[str, Any]], CallShapes]] = {
    ("linear", "torch"): functools.partial(_linear, weight="weight", transposed=True),
    ("linear", "jax"): functools.partial(_linear, weight="kernel", transposed=False),
    ("conv2d", "jax"): _conv2d,
    ("max_pool2d", "jax"): _max_pool2d,
    ("binary_cross_entropy_with_logits", "torch"): _losses,
    ("binary_cross_entropy_with_logits", "jax"): _losses,
    ("cross_entropy", "torch"): _cross_entropy,
    ("cross_entropy", "jax"): _cross_entropy,
    ("adam", "torch"): functools.partial(_adam, "max_exp_avg_sq"),
    ("adam", "jax"): functools.partial(_adam, "nu_max"),
    ("sgd", "torch"): functools.partial(_step, "pgb"),
    ("sgd", "jax"): functools.partial(_step, "pgb"),
}
