"""jax's private names, each with what it is for."""

from collections.abc import Callable, Iterator
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


@contextmanager
def quiet_callbacks() -> Iterator[None]:
    """Within it an error of a host callback is not logged beside being raised."""

    from jax._src.callback import logger

    def drop(record: Any) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
