"""jax's private names, each with what it is for."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from jax._src import source_info_util

# How checkify is told of an operation's own error.
from jax._src.checkify import error_checks as error_checks


def pallas_of_any_size() -> AbstractContextManager[Any]:
    """Within it Pallas takes blocks of symbolic size, as an export means them."""
    from jax._src.pallas.core import pallas_export_experimental

    return pallas_export_experimental(dynamic_shapes=True)


def source_state() -> Any:
    """What says of each operation traced in this thread where it stands: its `context` can be put aside."""
    return source_info_util._source_info_context


def no_source() -> Any:
    """A context that says nothing yet: the next frame of the user's names the line."""
    return source_info_util.new_source_info()


def mlir() -> Any:
    """MLIR's Python bindings, for reading a lowered program."""
    from jax._src.lib.mlir import ir

    return ir


def register_triton(context: Any) -> None:
    """Teach a context of `mlir` Triton's dialect."""
    from jax._src.lib import triton

    triton.dialect.register_dialect(context)


def meshes_of_arguments(ctx: Any) -> list[dict[str, int]]:
    """The meshes, as sizes of their axes, that a program's arguments are said to lie on, while it is lowered.

    `jax.jit(in_shardings=...)` of arrays that are on no mesh yet says it there alone.
    """
    functions = [f for f in ctx.module_context.module.body.operations if "arg_attrs" in f.attributes]
    text = " ".join(str(f.attributes["arg_attrs"]) for f in functions if str(f.attributes["sym_name"]) == '"main"')
    found = dict.fromkeys(re.findall(r"#sdy.sharding<mesh<\[([^\]]*)\]>", text))
    return [{name: int(size) for name, size in re.findall(r'"(\w+)"=(\d+)', axes)} for axes in found]


def is_jaxs_own(jaxpr: Any) -> bool:
    """Whether a jaxpr was traced from a function of jax itself."""
    return "jax/_src/" in str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", ""))


@contextmanager
def lowered_on_cpus(operation: Any, rule: Callable[..., Any]) -> Iterator[None]:
    """Within it `rule(usual, ctx, *operands, **params)` lowers an operation for CPUs; `usual` is jax's own rule."""
    from jax._src.interpreters.mlir import _lowerings, _platform_specific_lowerings, register_lowering

    rules = _platform_specific_lowerings["cpu"]
    usual, before = _lowerings[operation].rule, rules.get(operation)

    def chosen(ctx: Any, *operands: Any, **params: Any) -> Any:
        return rule(usual, ctx, *operands, **params)

    register_lowering(operation, chosen, platform="cpu")
    try:
        yield
    finally:
        if before is None:
            rules.pop(operation, None)
        else:
            rules[operation] = before


def called_on_host(ctx: Any, fn: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """A rule's results where `fn` computes them, of NumPy arrays as they are.

    `jax.pure_callback` hands on arrays of jax. In a thread of XLA's, where `jax.enable_x64(True)` is not known, they
    come as float32, and so do results: what has 8 bytes travels as two integers.
    """
    import jax
    import numpy as np
    from jax._src.callback import _callback_op_sharding, emit_python_callback
    from jax.interpreters.mlir import lower_fun

    wide = [t.dtype.itemsize == 8 for t in ctx.avals_out]
    types = [
        jax.core.ShapedArray((*t.shape, 2), np.dtype("uint32")) if two else t
        for t, two in zip(ctx.avals_out, wide, strict=True)
    ]

    def host(*arrays: Any) -> list[Any]:
        results = zip(fn(*arrays), types, wide, strict=True)
        return [np.frombuffer(x.tobytes(), np.uint32).reshape(t.shape) if two else x for x, t, two in results]

    def joined(*results: Any) -> list[Any]:
        pairs = zip(results, ctx.avals_out, wide, strict=True)
        return [jax.lax.bitcast_convert_type(x, t.dtype) if two else x for x, t, two in pairs]

    results, _, _ = emit_python_callback(
        ctx.replace(avals_out=types),
        host,
        None,
        list(operands),
        ctx.avals_in,
        types,
        has_side_effect=False,
        returns_token=False,
        sharding=_callback_op_sharding(ctx.module_context.axis_context, None, types),
    )
    return lower_fun(joined, multiple_results=True)(ctx.replace(avals_in=types), *results)


def coordination() -> tuple[Any, int, int]:
    """What `jax.distributed.initialize` found: the client of its key-value store, this process's number, how many."""
    from jax._src.distributed import global_state

    return global_state.client, global_state.process_id, global_state.num_processes
