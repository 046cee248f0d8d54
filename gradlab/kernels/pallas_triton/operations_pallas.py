"""Operations of a kernel's jaxpr as expressions of Triton's language, those that need nothing but their operands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


class Value(NamedTuple):
    """An operand or a result: its name in the text, its shape, () of a scalar, and its dtype."""

    text: str
    shape: Shape
    dtype: Any


# Each takes the texts of its operands.
_PLAIN = {
    "abs": "tl.abs({0})",
    "add": "{0} + {1}",
    "add_any": "{0} + {1}",
    "and": "{0} & {1}",
    "ceil": "tl.ceil({0})",
    "copy": "{0}",
    "cos": "tl.cos({0})",
    "eq": "{0} == {1}",
    "erf": "tl.erf({0})",
    "exp": "tl.exp({0})",
    "exp2": "tl.exp2({0})",
    "floor": "tl.floor({0})",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "le": "{0} <= {1}",
    "log": "tl.log({0})",
    "lt": "{0} < {1}",
    "max": "tl.maximum({0}, {1})",
    "min": "tl.minimum({0}, {1})",
    "mul": "{0} * {1}",
    "ne": "{0} != {1}",
    "neg": "-{0}",
    "not": "~{0}",
    "or": "{0} | {1}",
    "rem": "{0} % {1}",
    "rsqrt": "tl.rsqrt({0})",
    "shift_left": "{0} << {1}",
    "sin": "tl.sin({0})",
    "sqrt": "tl.sqrt({0})",
    "square": "{0} * {0}",
    "sub": "{0} - {1}",
    "xor": "{0} ^ {1}",
}
_REDUCED = {"reduce_max": "max", "reduce_min": "min", "reduce_sum": "sum"}


def name_of(dtype: Any) -> str:
    """Triton's name of a dtype."""
    dtype = jnp.dtype(dtype)
    return "tl.int1" if dtype == jnp.bool_ else f"tl.{dtype.name}"


def constant(value: Any, dtype: Any) -> str:
    """A scalar of a dtype. A bare number would be taken for a float32 in calls."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        number = float(value)
        text = repr(number) if np.isfinite(number) else f'float("{number}")'
    else:
        text = repr(bool(value) if dtype == jnp.bool_ else int(value))
    return f"tl.full((), {text}, {name_of(dtype)})"


def expression(name: str, operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    """What an operation computes.

    Raises:
        NotImplementedError: the operation has no counterpart here.
    """
    texts = [v.text for v in operands]
    if name in _PLAIN:
        return _PLAIN[name].format(*texts)
    if name in _REDUCED:
        return _reduced(_REDUCED[name], operands[0], params["axes"], result)
    if name not in _OTHERS:
        raise NotImplementedError(f"{name} has no counterpart in what is written in Triton's language")
    return _OTHERS[name](operands, params, result)


def _reduced(by: str, x: Value, axes: Sequence[int], result: Value) -> str:
    text = x.text
    for axis in sorted(axes, reverse=True):
        text = f"tl.{by}({text}, axis={axis})"
    # Triton carries reductions of narrow types in wider ones.
    return f"{text}.to({name_of(result.dtype)})"


def _divided(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    # Triton's // rounds towards 0, as jax's division of integers does.
    return ("{0} / {1}" if jnp.issubdtype(result.dtype, jnp.floating) else "{0} // {1}").format(
        operands[0].text, operands[1].text
    )


def _converted(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    return f"{operands[0].text}.to({name_of(result.dtype)})"


def _bits(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    return f"{operands[0].text}.to({name_of(result.dtype)}, bitcast=True)"


def _logically_shifted(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    x, by = (v.text for v in operands)
    if jnp.issubdtype(result.dtype, jnp.unsignedinteger):
        return f"{x} >> {by}"
    unsigned = name_of(f"u{jnp.dtype(result.dtype).name}")
    return f"({x}.to({unsigned}, bitcast=True) >> {by}.to({unsigned})).to({name_of(result.dtype)}, bitcast=True)"


def _chosen(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    which, no, *rest = operands
    if len(rest) != 1 or which.dtype != jnp.bool_:
        raise NotImplementedError("select_n among more than two has no counterpart in what is written")
    return f"tl.where({which.text}, {rest[0].text}, {no.text})"


def _clamped(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    low, x, high = (v.text for v in operands)
    return f"tl.minimum(tl.maximum({x}, {low}), {high})"


def _power(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    n, x = params["y"], operands[0].text
    product = " * ".join([x] * abs(n)) or f"{x} * 0 + 1"
    return product if n >= 0 else f"1 / ({product})"


def _spread(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    (x,) = operands[:1]
    if not x.shape:
        return f"tl.full({result.shape}, {x.text}, {name_of(result.dtype)})"
    kept = params["broadcast_dimensions"]
    text = x.text
    if len(x.shape) < len(result.shape):
        text += "[" + ", ".join(":" if i in kept else "None" for i in range(len(result.shape))) + "]"
    return f"tl.broadcast_to({text}, {result.shape})"


def _reshaped(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    x = operands[0]
    if not x.shape:
        return f"tl.full({result.shape}, {x.text}, {name_of(result.dtype)})"
    if not result.shape:
        # There is one element; a reduction makes a scalar of it.
        return _reduced("max", x, range(len(x.shape)), result)
    return f"tl.reshape({x.text}, {result.shape})"


def _transposed(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    return f"tl.permute({operands[0].text}, {tuple(params['permutation'])})"


def _counted(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    axis = params["dimension"]
    index = ", ".join(":" if i == axis else "None" for i in range(len(result.shape)))
    line = f"tl.arange(0, {result.shape[axis]})[{index}]"
    return f"tl.broadcast_to({line}, {result.shape}).to({name_of(result.dtype)})"


def _product(operands: Sequence[Value], params: Mapping[str, Any], result: Value) -> str:
    (over_a, over_b), batch = params["dimension_numbers"]
    a, b = operands
    if len(over_a) != 1 or any(batch) or len(a.shape) != 2 or len(b.shape) != 2:
        raise NotImplementedError("a dot_general of other than two matrices has no counterpart in what is written")
    left = f"tl.trans({a.text})" if over_a[0] == 0 else a.text
    right = f"tl.trans({b.text})" if over_b[0] == 1 else b.text
    exact = params["precision"] is not None and all(str(p) == "HIGHEST" for p in params["precision"])
    precision = "ieee" if exact or a.dtype == jnp.float64 else "tf32"
    out = name_of(result.dtype)
    return f'tl.dot({left}, {right}, input_precision="{precision}", out_dtype={out})'


_OTHERS: dict[str, Callable[[Sequence[Value], Mapping[str, Any], Value], str]] = {
    "bitcast_convert_type": _bits,
    "broadcast_in_dim": _spread,
    "clamp": _clamped,
    "convert_element_type": _converted,
    "div": _divided,
    "dot_general": _product,
    "expand_dims": _reshaped,
    "integer_pow": _power,
    "iota": _counted,
    "reshape": _reshaped,
    "select_n": _chosen,
    "shift_right_logical": _logically_shifted,
    "squeeze": _reshaped,
    "transpose": _transposed,
}
