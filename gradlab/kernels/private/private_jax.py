"""jax's private names, each with what it is for."""

from contextlib import AbstractContextManager
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
