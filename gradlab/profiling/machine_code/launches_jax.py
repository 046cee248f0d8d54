"""The Pallas kernels that an op launches on jax, found in the program that it is lowered to for CUDA, as Triton IR."""

from contextlib import nullcontext
from typing import Any

import jax

from gradlab.autodiff.frameworks.side_jax import SIDE
from gradlab.kernels.pallas_triton import backend_pallas
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.kernels.spec import Array, OpCase
from gradlab.profiling.machine_code.found import Found, largest, passes
from gradlab.profiling.machine_code.places import placed
from gradlab.profiling.machine_code.triton_ir_jax import CALL, PLACES, located, triton_calls


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
    with SIDE.double() if dtype == "float64" else nullcontext(), located():
        for direction, run in passes(at, SIDE):
            with backend_pallas.noting() as calls:
                program: Any = lowered(jax.jit(run), "cuda", inputs, cotangents, seconds)
            for name, text, warps, stages, grid in (*triton_calls(program), *calls):
                noted.setdefault((name, text, warps, stages), (direction, []))[1].append(grid)
    if not noted:
        raise RuntimeError(
            f"jax {jax.__version__} puts no Triton IR into its program ({CALL}), wanted jax 0.10 or "
            "GRADLAB_PALLAS=jax-triton"
        )
    found: list[Found] = []
    for (name, text, warps, stages), (direction, grids) in noted.items():
        short = name.removeprefix("gradlab_").removesuffix("_kernel")
        variant = 1 + sum(other.kernel == short for other in found)
        file, line = PLACES.get(name, ("", 0))
        found.append(
            Found(short, variant, direction, largest(grids), warps, stages, placed(text, file, line), file, line)
        )
    return found
