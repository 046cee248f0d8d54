"""The Pallas kernels that an op launches on jax, found in the program that it is lowered to for CUDA, as Triton IR."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

from gradlab.autodiff.frameworks.side_jax import SIDE
from gradlab.kernels.private import private_jax
from gradlab.kernels.runtime import launch_pallas
from gradlab.kernels.runtime.forking import Lock
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.kernels.spec import Array, OpCase
from gradlab.profiling.machine_code.found import Found, largest, passes
from gradlab.profiling.machine_code.places import placed

CALL = "__gpu$xla.gpu.triton"
# Pallas' own function, while another stands in its place.
_real: Callable[..., Any] | None = None


def _put_back() -> None:
    """In a child forked while another thread looked for kernels: Pallas' function is its own again."""
    global _real
    if _real is not None:
        launch_pallas.pl.pallas_call, _real = _real, None


_lock = Lock(_put_back)
# Name of a kernel -> its file and first line: of all that were traced, since a program may be traced once only.
_places: dict[str, tuple[str, int]] = {}


def find(at: OpCase, dtype: str) -> list[Found]:
    """Every kernel of the op's forward, backward and second backward, each once.

    Raises:
        RuntimeError: this jax puts no Triton IR into the program.
    """

    def shape(a: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape(at.sizes), "int32" if a.integer else dtype)

    inputs = [shape(a) for a in at.inputs]
    cotangents = [shape(a) for a in at.results]
    seconds = [inputs[i] for i in at.wrt]
    noted: dict[Any, tuple[str, list[tuple[int, ...]]]] = {}
    with SIDE.double() if dtype == "float64" else nullcontext(), _located():
        for direction, run in passes(at, SIDE):
            program: Any = lowered(jax.jit(run), "cuda", inputs, cotangents, seconds)
            for name, text, warps, stages, grid in triton_calls(program):
                noted.setdefault((name, text, warps, stages), (direction, []))[1].append(grid)
    if not noted:
        raise RuntimeError(
            f"jax {jax.__version__} puts no Triton IR into its program ({CALL}), wanted jax 0.10 or 0.11"
        )
    found: list[Found] = []
    for (name, text, warps, stages), (direction, grids) in noted.items():
        short = name.removeprefix("gradlab_").removesuffix("_kernel")
        variant = 1 + sum(other.kernel == short for other in found)
        file, line = _places.get(name, ("", 0))
        found.append(
            Found(short, variant, direction, largest(grids), warps, stages, placed(text, file, line), file, line)
        )
    return found


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
def _located() -> Iterator[None]:
    """Within it kernels are traced with the lines they stand on.

    Under a custom_vjp jax records for every operation the line where the rule was called; that is suspended for
    as long as the kernel's own function runs.
    """
    global _real
    with _lock:
        pallas, real = launch_pallas.pl, launch_pallas.pl.pallas_call
        _real = real

        def pallas_call(kernel: Callable[..., None], **options: Any) -> Any:
            fn = getattr(kernel, "func", kernel)
            _places[options["name"]] = (fn.__code__.co_filename, fn.__code__.co_firstlineno)

            @functools.wraps(fn)
            def located(*refs: Any) -> None:
                state = private_jax.source_state()
                outside, state.context = state.context, private_jax.no_source()
                try:
                    kernel(*refs)
                finally:
                    state.context = outside

            return real(located, **options)

        pallas.pallas_call = pallas_call
        try:
            yield
        finally:
            pallas.pallas_call, _real = real, None
