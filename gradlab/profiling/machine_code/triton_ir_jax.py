"""The Triton IR of Pallas kernels in a program lowered for CUDA, with the lines that the kernels stand on."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax.experimental import pallas as pl

from gradlab.kernels.private import private_jax
from gradlab.kernels.runtime.forking import Lock

CALL = "__gpu$xla.gpu.triton"
# Name of a kernel -> its file and first line: of all that were traced, since a program may be traced once only.
PLACES: dict[str, tuple[str, int]] = {}
# Pallas' own function, while another stands in its place, and how many want it so.
_real: Callable[..., Any] | None = None
_wanted = 0


def _put_back() -> None:
    """In a child forked while another thread put a function in Pallas' place: its own stands there again."""
    global _real, _wanted
    if _real is not None:
        pl.pallas_call, _real, _wanted = _real, None, 0


_lock = Lock(_put_back)


def triton_calls(program: Any) -> Iterator[tuple[str, str, int, int, tuple[int, ...]]]:
    """Name, Triton IR, warps, stages and grid of every Triton kernel of a lowered program."""
    return _calls(program.compiler_ir("stablehlo").operation)


def _calls(operation: Any) -> Iterator[tuple[str, str, int, int, tuple[int, ...]]]:
    ir = private_jax.mlir()
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield from _calls(inner.operation)
    if (
        operation.name != "stablehlo.custom_call"
        or ir.StringAttr(operation.attributes["call_target_name"]).value != CALL
    ):
        return
    config = operation.attributes["mhlo.backend_config"]
    with ir.Context() as context:
        private_jax.register_triton(context)
        module = ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes)
        text = str(module.operation.get_asm(enable_debug_info=True))
    warps, stages, *grid = (
        ir.IntegerAttr(config[key]).value for key in ("num_warps", "num_stages", "grid_x", "grid_y", "grid_z")
    )
    yield ir.StringAttr(config["name"]).value, text, warps, stages, tuple(grid)


@contextmanager
def located() -> Iterator[None]:
    """Within it kernels are traced with the lines they stand on, in every thread.

    Under a custom_vjp jax records for every operation the line where the rule was called; that is suspended for
    as long as the kernel's own function runs.
    """
    global _real, _wanted
    with _lock:
        if _real is None:
            _real, pl.pallas_call = pl.pallas_call, _pallas_call(pl.pallas_call)
        _wanted += 1
    try:
        yield
    finally:
        with _lock:
            _wanted -= 1
            if not _wanted and _real is not None:
                pl.pallas_call, _real = _real, None


def _pallas_call(real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def pallas_call(kernel: Callable[..., None], *args: Any, **options: Any) -> Any:
        fn = getattr(kernel, "func", kernel)
        if hasattr(fn, "__code__"):
            PLACES[options.get("name") or fn.__name__] = (fn.__code__.co_filename, fn.__code__.co_firstlineno)
        return real(in_its_lines(kernel), *args, **options)

    return pallas_call


def in_its_lines(kernel: Callable[..., None]) -> Callable[..., None]:
    """A kernel whose operations stand where they are written, whoever launches it."""

    def located(*refs: Any, **named: Any) -> None:
        state = private_jax.source_state()
        outside, state.context = state.context, private_jax.no_source()
        try:
            kernel(*refs, **named)
        finally:
            state.context = outside

    # jax names the place of what is wrapped. Of a partial function the signature is what is left of it.
    functools.update_wrapper(located, getattr(kernel, "func", kernel))
    located.__signature__ = inspect.signature(kernel)  # type: ignore[attr-defined]
    return located
